"""The log: a line an event on stderr, ``event`` a stable name in snake_case, units in the names of the members.

A line is one JSON object, or on a terminal short text; what stands in it is escaped, so that nothing that a client sent
can forge a line or move a cursor. A log that cannot be written (a full disk behind stderr, a closed pipe, one that
nobody reads) never stops or holds up the process that writes it: the line is dropped and counted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from netwatch.errors import StartError

LEVELS: Final = {"error": 3, "warning": 4, "info": 6}
"""Each level, and the priority that journald gives it."""
_STDERR: Final = 2
_MAX_LINE_BYTES: Final = 4096
"""A pipe takes a line of this size whole or not at all (PIPE_BUF), so the lines of many processes never mix."""
_MAX_CHARACTERS: Final = (1000, 100, 10)
_HEAD: Final = ("time", "level", "event", "pid")
_COLOURS: Final = {"error": "31", "warning": "33", "info": "32"}
_STRICT: Final[dict[str, Any]] = {"default": ascii, "allow_nan": False, "separators": (",", ":")}


def info(event: str, **members: object) -> None:
    """Log what is worth knowing."""
    _write("info", event, members)


def warning(event: str, **members: object) -> None:
    """Log what an operator should look at."""
    _write("warning", event, members)


def error(event: str, **members: object) -> None:
    """Log what an operator must act on."""
    _write("error", event, members)


def fatal(problem: StartError) -> None:
    """Say to the operator who waits for it why a command ends: a sentence, to journald an event."""
    if _is_journal():
        configure("json")
        error("start_failed", error=str(problem), exit_code=problem.exit_code)
    else:
        print(f"netwatch: {problem}", file=sys.stderr, flush=True)


def configure(form: str) -> None:
    """Write ``json`` or ``text``; ``auto`` is text on a terminal. Call it once, before the first fork."""
    is_terminal = os.isatty(_STDERR)
    has_colours = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    _state.form = _text if form == "text" or (form == "auto" and is_terminal) else _json
    _state.has_colours = has_colours
    _state.has_priorities = _is_journal()
    _state.put = _patient_put()


class _State:
    """How this process and those forked from it log."""

    def __init__(self) -> None:
        self.form: Callable[[dict[str, Any]], bytes] = _json
        self.has_colours = False
        self.has_priorities = False
        self.put: Callable[[bytes], int] = lambda line: os.write(_STDERR, line)
        self.dropped_total = 0


def _is_journal() -> bool:
    """Whether stderr leads to journald, which says so (systemd.exec(5))."""
    with contextlib.suppress(OSError):
        status = os.fstat(_STDERR)
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False


def _patient_put() -> Callable[[bytes], int]:
    """What writes to stderr and never waits for who reads it.

    stderr itself is left as it is: others write to the same description, the operator's shell among them.
    """
    try:
        mode = os.fstat(_STDERR).st_mode
        if stat.S_ISSOCK(mode):
            stream = socket.socket(fileno=os.dup(_STDERR))
            return lambda line: stream.send(line, socket.MSG_DONTWAIT)
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            fd = os.open(f"/proc/self/fd/{_STDERR}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            return lambda line: os.write(fd, line)
    except OSError:  # another user's, say: two processes can still meet in it, which a look ahead makes rare
        return _put_if_ready
    return lambda line: os.write(_STDERR, line)


def _put_if_ready(line: bytes) -> int:
    if not select.select([], [_STDERR], [], 0)[1]:
        raise BlockingIOError
    return os.write(_STDERR, line)


def _write(level: str, event: str, members: dict[str, object]) -> None:
    now = time.time()
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
    entry = {"time": stamp, "level": level, "event": event, "pid": os.getpid(), **members}
    if _state.dropped_total:
        entry["dropped_lines"] = _state.dropped_total
    line = _line(entry)
    try:
        _state.put(line)
    except OSError:
        _state.dropped_total += 1
    else:
        _state.dropped_total = 0


def _line(entry: dict[str, Any]) -> bytes:
    """The entry as it is written; its members are cut until it fits."""
    start = b"<%d>" % LEVELS[entry["level"]] if _state.has_priorities else b""
    line = start + _state.form(entry) + b"\n"
    for limit in _MAX_CHARACTERS:
        if len(line) <= _MAX_LINE_BYTES:
            break
        entry = {name: _cut(value, limit) for name, value in entry.items()}
        line = start + _state.form(entry) + b"\n"
    return line


def _cut(value: object, limit: int) -> object:
    if isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def _json(entry: dict[str, Any]) -> bytes:
    try:
        line = json.dumps({name: _text_of(value) for name, value in entry.items()}, **_STRICT)
    except Exception:  # what JSON cannot hold is better escaped than lost
        line = json.dumps({name: value if name in _HEAD else ascii(value) for name, value in entry.items()}, **_STRICT)
    return line.replace("\x7f", "\\u007f").encode()


def _text_of(value: object) -> object:
    """The value; a text that is no UTF-8, such as a file's name may be, escaped."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return ascii(value)
    return value


def _text(entry: dict[str, Any]) -> bytes:
    level, event, at = entry["level"], entry["event"], entry["time"][11:-1]
    rest = " ".join(f"{name}={_word(value)}" for name, value in entry.items() if name not in ("time", "level", "event"))
    if _state.has_colours:
        return f"\x1b[2m{at}\x1b[0m \x1b[{_COLOURS[level]}m{level:7}\x1b[0m \x1b[1m{event}\x1b[0m {rest}".encode()
    return f"{at} {level:7} {event} {rest}".encode()


def _word(value: object) -> str:
    """The value as one word of printable characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=ascii)
    return text if text.isprintable() and not set(text) & set(" \"'=\\") and text else json.dumps(text)


_state = _State()


class Handler(logging.Handler):
    """Brings what libraries log through :mod:`logging` into the same form, as the event ``library``."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; never raises."""
        try:
            message = record.getMessage()
            if record.exc_info and record.exc_info[1]:
                message += f": {record.exc_info[1]!r}"
        except Exception as problem:
            message = f"unprintable record: {problem!r}"
        level = (
            "error" if record.levelno >= logging.ERROR else "warning" if record.levelno >= logging.WARNING else "info"
        )
        _write(level, "library", {"logger": record.name, "message": message})
