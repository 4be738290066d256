from __future__ import annotations

import time

import pytest

from netwatch import __version__
from netwatch.errors import ERRORS
from netwatch.http import health
from netwatch.metrics import table
from tests.http.door import Door

CODES = ["ack_timeout", "writer_away", "disk_full", "disk_error"]
"""What a link may say."""


def test_livez_is_200_whatever_the_writer_does() -> None:
    door = Door()
    door.link.code = "writer_away"
    result = door.request("GET", "/livez", state={"draining": True})
    assert (result.status_code, result.json) == (200, {"status": "ok"})
    assert door.link.max_waits_s == []


def test_readyz_is_200_when_a_report_would_be_stored() -> None:
    door = Door()
    result = door.request("GET", "/readyz")
    assert (result.status_code, result.json) == (200, {"status": "ready", "reasons": []})
    assert door.link.max_waits_s == [health.MAX_WAIT_S]
    assert door.settings.ack_timeout_s > health.MAX_WAIT_S  # it says so before clients see it


@pytest.mark.parametrize("is_draining", [False, True])
@pytest.mark.parametrize("code", [None, *CODES])
def test_readyz_is_503_with_every_reason(code: str | None, is_draining: bool) -> None:
    door = Door()
    door.link.code = code
    result = door.request("GET", "/readyz", state={"draining": is_draining})
    expected = [*([code] if code else []), *(["draining"] if is_draining else [])]
    assert result.status_code == (503 if expected else 200)
    assert result.json["status"] == ("not ready" if expected else "ready")
    assert [reason["code"] for reason in result.json["reasons"]] == expected
    assert all(" " in reason["detail"] for reason in result.json["reasons"])
    assert ("retry-after" in result.headers) == bool(expected)
    assert health._REASONS.keys() - ERRORS.keys() == {"writer_away", "draining", "disk_slow"}


def test_verbose_shows_each_check_with_its_figure() -> None:
    door = Door()
    door.link.ages = (0.25, 1.5)
    door.link.code = "disk_full"
    assert "checks" not in door.request("GET", "/readyz").json
    result = door.request("GET", "/readyz", query_string="verbose", state={"draining": True})
    assert result.status_code == 503
    checks = {check.pop("name"): check for check in result.json["checks"]}
    assert checks == {
        "writer": {"ok": True, "sign_of_life_age_s": 1.5, "limit_s": 3.0},
        "batch": {"ok": True, "oldest_without_ack_s": 0.25, "limit_s": 3.0},
        "disk": {"ok": False, "free_bytes": 0, "reserve_bytes": 0},
        "fdatasync": {"ok": True, "last_s": 0.0, "limit_s": 3.0},
        "quarantine": {"ok": True, "files": 0},
        "drain": {"ok": False},
    }


def test_an_fdatasync_that_took_too_long_is_told_for_a_while() -> None:
    """Not for ever: without reports, which go elsewhere now, there would be no faster one."""
    door = Door()
    meter = door.board.writer
    meter.set(table.LAST_SYNC_SECONDS, 4_000_000_000)
    meter.set(table.LAST_SYNC_AT, time.time_ns() - 1_000_000_000)
    result = door.request("GET", "/readyz")
    assert (result.status_code, [reason["code"] for reason in result.json["reasons"]]) == (503, ["disk_slow"])
    meter.set(table.LAST_SYNC_AT, time.time_ns() - int(1e9 * (health.SLOW_LASTS_S + 1)))
    assert door.request("GET", "/readyz").status_code == 200


def test_version() -> None:
    assert Door().request("GET", "/version").json["version"] == __version__


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_head_is_get_without_the_body(path: str) -> None:
    door = Door()
    door.link.code = "disk_full"
    get, head = door.request("GET", path), door.request("HEAD", path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers == get.headers
