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


# Where stderr leads

PROGRAM = """
import os, sys
from netwatch import log
if sys.argv[2] == "journal":
    status = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
log.configure(sys.argv[1])
log.info("started", address="http://127.0.0.1:80")
log.warning("odd", text="two words", escape="\\x1b[31m\\x9b\\u202e", empty="", pair={"a": [1]}, none=None)
log.error("broken", count=3)
"""


def written(form: str, where: str = "", **environ: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, form, where],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        env=os.environ | environ,
    )
    return run.stderr.splitlines()


@pytest.mark.parametrize("form", ["auto", "json"])
def test_journald_reads_a_priority_before_each_line(form: str) -> None:
    lines = written(form, "journal")
    assert [line[:4] for line in lines] == ["<6>{", "<4>{", "<3>{"]
    assert [json.loads(line[3:])["event"] for line in lines] == ["started", "odd", "broken"]


def test_why_a_command_ends_is_a_sentence_and_to_journald_an_event(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "netwatch", "serve", "--workers", "0"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (said.returncode, said.stderr.startswith("netwatch: --workers")) == (2, True)
    with (tmp_path / "journal").open("w+") as journal:
        status = os.fstat(journal.fileno())
        environ = os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        code = subprocess.run(command, stderr=journal, timeout=20, check=False, env=environ).returncode
        text = (tmp_path / "journal").read_text()
    assert text.startswith("<3>")
    entry = json.loads(text[3:])
    assert (entry["event"], entry["exit_code"], code) == ("start_failed", 2, 2)
    assert "--workers" in entry["error"]


def test_a_variable_that_names_another_stream_is_not_believed() -> None:
    assert [line[0] for line in written("auto", JOURNAL_STREAM="8:12345")] == ["{"] * 3


def test_text_is_short_and_each_value_one_printable_word() -> None:
    started, odd, broken = written("text")
    assert started[12:].startswith(" info    started pid=")
    assert started.endswith(" address=http://127.0.0.1:80")
    words = ' text="two words" escape="\\u001b[31m\\u009b\\u202e" empty="" pair="{\\"a\\": [1]}" none=null'
    assert odd.endswith(words)
    assert broken[13:].startswith("error   broken pid=")
    assert all(line.isprintable() for line in (started, odd, broken))


def on_a_terminal(form: str, **environ: str) -> str:
    ours, theirs = os.openpty()
    try:
        clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
        subprocess.run(
            [sys.executable, "-c", PROGRAM, form, ""], stderr=theirs, timeout=20, check=True, env=clean | environ
        )
        return os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_terminal_gets_text_in_colours_unless_they_are_not_wanted() -> None:
    shown = on_a_terminal("auto", TERM="xterm")
    assert "\x1b[32minfo   \x1b[0m" in shown
    assert "\x1b[31merror  \x1b[0m" in shown
    assert "\x1b" not in on_a_terminal("auto", TERM="xterm", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal("auto", TERM="dumb")
    assert "\x1b[" in on_a_terminal("auto", TERM="xterm", NO_COLOR="")
    assert on_a_terminal("json", TERM="xterm").startswith("{")


@pytest.mark.parametrize("hostile", ["\x7f", "\x9b31m", "\u2028", "\u202e", "\x1b[2J"])
def test_nothing_that_moves_a_cursor_is_left_unescaped(hostile: str, capfd: pytest.CaptureFixture[str]) -> None:
    log.info("odd", value=hostile)
    text = capfd.readouterr().err
    assert text.rstrip("\n").isascii()
    assert text.rstrip("\n").isprintable()
    assert json.loads(text)["value"] == hostile


def test_a_line_is_never_longer_than_a_pipe_takes_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    log.info("long", **{f"member_{number}": "\x00" * 100_000 for number in range(20)}, size_bytes=7)
    text = capfd.readouterr().err
    assert len(text) <= 4096
    entry = json.loads(text)
    assert (entry["event"], entry["size_bytes"]) == ("long", 7)
    assert entry["member_19"].startswith("\x00")


NOBODY_READS = """
import os, socket, sys, time
from netwatch import log
if sys.argv[1] == "pipe":
    reader, writer = os.pipe()
else:
    ours, theirs = socket.socketpair()
    reader, writer = ours.fileno(), theirs.fileno()
os.dup2(writer, 2)
os.set_blocking(reader, False)
if sys.argv[1] == "foreign pipe":
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.dup2(writer, 2)
    real = os.open
    def refused(path, *rest):
        if path == "/proc/self/fd/2":
            raise PermissionError
        return real(path, *rest)
    os.open = refused
log.configure("json")
for number in range(20_000):
    log.info("filling", number=number)
assert os.get_blocking(2)
read = b""
while True:
    try:
        piece = os.read(reader, 65536)
    except BlockingIOError:
        break
    read += piece
log.info("after")
print(read.count(b"\\n"), read.endswith(b"\\n"), os.read(reader, 65536).decode())
"""


@pytest.mark.parametrize("stderr", ["pipe", "socket", "foreign pipe"])
def test_a_log_that_nobody_reads_holds_up_nobody(stderr: str) -> None:
    """The lines that do not fit are dropped whole, and counted in the next one that does."""
    run = subprocess.run(
        [sys.executable, "-c", NOBODY_READS, stderr], capture_output=True, text=True, timeout=20, check=True
    )
    count, is_whole, last = run.stdout.split(maxsplit=2)
    entry = json.loads(last)
    assert (entry["event"], is_whole) == ("after", "True")
    assert int(count) > 100
    assert entry["dropped_lines"] == 20_000 - int(count)
