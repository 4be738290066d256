from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from netwatch import log


def logged(capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one line that was logged."""
    text = capfd.readouterr().err
    assert text.count("\n") == 1
    assert text.endswith("}\n")
    value: dict[str, Any] = json.loads(text)
    return value


@pytest.mark.parametrize(("write", "level"), [(log.info, "info"), (log.warning, "warning"), (log.error, "error")])
def test_an_entry_is_one_json_object(write: Any, level: str, capfd: pytest.CaptureFixture[str]) -> None:
    write("segment_sealed", path="a/b", size_bytes=7, took_s=0.5, clean=True)
    entry = logged(capfd)
    time = datetime.fromisoformat(entry.pop("time"))
    assert abs(time - datetime.now(UTC)) < timedelta(seconds=10)
    assert entry == {
        "level": level,
        "event": "segment_sealed",
        "pid": os.getpid(),
        "path": "a/b",
        "size_bytes": 7,
        "took_s": 0.5,
        "clean": True,
    }


def test_the_time_has_milliseconds(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("netwatch.log.time.time", lambda: 1795343050.0075)
    log.info("now")
    assert logged(capfd)["time"] == "2026-11-22T10:24:10.007Z"


def test_what_a_client_sent_cannot_forge_an_entry(capfd: pytest.CaptureFixture[str]) -> None:
    hostile = '"}\n{"level":"error","event":"forged"}\r\x1b[31m\x00'
    log.warning("request_failed", path=hostile)
    entry = logged(capfd)
    assert (entry["event"], entry["path"]) == ("request_failed", hostile)


@pytest.mark.parametrize(
    "value", ["\udcff", b"\xff", object(), Path("a"), OSError(5, "x"), {1: {2}}, 2**70, {"\ud800": 1}]
)
def test_what_json_cannot_hold_is_logged_all_the_same(value: object, capfd: pytest.CaptureFixture[str]) -> None:
    log.error("odd", value=value, other="kept")
    entry = logged(capfd)
    assert entry["event"] == "odd"
    assert "kept" in entry["other"]
    assert entry["value"]


@pytest.mark.parametrize("stderr", ["/dev/full", "closed", "broken pipe"])
def test_a_log_that_cannot_be_written_stops_nobody(stderr: str) -> None:
    if stderr == "closed":
        redirect = "os.close(2)"
    elif stderr == "/dev/full":
        redirect = "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)"
    else:
        redirect = "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 2)"
    program = f"import os; from netwatch import log; {redirect}; log.error('lost'); print('on')"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert (run.returncode, run.stdout) == (0, "on\n")


@pytest.mark.parametrize(
    ("number", "level"),
    [(logging.DEBUG, "info"), (logging.INFO, "info"), (logging.WARNING, "warning"), (logging.CRITICAL, "error")],
)
def test_what_a_library_logs_takes_the_same_form(number: int, level: str, capfd: pytest.CaptureFixture[str]) -> None:
    log.Handler().handle(logging.LogRecord("gunicorn.error", number, "", 0, "worker %d\nends", (7,), None))
    entry = logged(capfd)
    assert (entry["level"], entry["event"], entry["logger"]) == (level, "library", "gunicorn.error")
    assert entry["message"] == "worker 7\nends"


def test_a_librarys_exception_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    log.Handler().handle(record)
    assert logged(capfd)["message"] == "failed: ValueError('why')"


def test_a_record_that_cannot_be_made_is_logged_as_such(capfd: pytest.CaptureFixture[str]) -> None:
    log.Handler().handle(logging.LogRecord("x", logging.ERROR, "", 0, "%d %d", ("one",), None))
    assert "unprintable record" in logged(capfd)["message"]
