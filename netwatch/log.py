"""The log: one JSON object a line on stderr, ``event`` a stable name in snake_case, units in the names of the members.

A log that cannot be written (a full disk behind stderr, a closed pipe) never stops the process that writes it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from typing import Final

import msgspec

from netwatch.errors import StartError

_STDERR: Final = 2
_encode = msgspec.json.Encoder().encode


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
    """Say to the operator who waits for it why something ends."""
    print(f"netwatch: {problem}", file=sys.stderr, flush=True)


def _write(level: str, event: str, members: dict[str, object]) -> None:
    now = time.time()
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
    head = {"time": stamp, "level": level, "event": event, "pid": os.getpid()}
    try:
        line = _encode({**head, **members})
    except Exception:  # a file's name that is no UTF-8, say: what JSON cannot hold is better escaped than lost
        line = _encode({**head, **{name: ascii(value) for name, value in members.items()}})
    with contextlib.suppress(OSError):
        os.write(_STDERR, line + b"\n")


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
