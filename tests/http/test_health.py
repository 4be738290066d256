from __future__ import annotations

import pytest

from netwatch.errors import ERRORS
from netwatch.http import health
from tests.http.door import Door

CODES = ["ack_timeout", "writer_away", "disk_full", "disk_error", "recovering"]
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


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_head_is_get_without_the_body(path: str) -> None:
    door = Door()
    door.link.code = "disk_full"
    get, head = door.request("GET", path), door.request("HEAD", path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers == get.headers
