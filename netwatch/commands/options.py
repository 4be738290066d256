"""What several commands share on the command line: the data directory, and which lines are wanted in which form."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netwatch import settings
from netwatch.errors import StartError

if TYPE_CHECKING:
    from netwatch.storage.files import Files

_AGO: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([smhdw])\Z")
_AGO_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Declare ``--data-dir``; like the server's, it is also the variable ``NETWATCH_DATA_DIR``."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=usual_data_dir(),
        metavar="DIR",
        help="the data directory ($NETWATCH_DATA_DIR, else data)",
    )


def usual_data_dir() -> Path:
    """The data directory that is meant where none is given."""
    return Path(os.environ.get("NETWATCH_DATA_DIR") or "data")


def add_seconds(parser: argparse.ArgumentParser, flag: str, default_s: float, help_: str) -> None:
    """Declare a duration in seconds, whose default its help shows."""
    parser.add_argument(flag, type=seconds, default=default_s, metavar="S", help=f"{help_} (%(default)s)")


def add_wanted(parser: argparse.ArgumentParser) -> None:
    """Declare which lines are wanted, and how they are printed."""
    parser.add_argument(
        "--since",
        type=since,
        metavar="TIME",
        help="only what was received since: 90s, 10m, 2h, 7d ago, or a time such as 2026-11-22T10:24:10Z (UTC)",
    )
    parser.add_argument(
        "--client", type=_text, action="append", metavar="ID", help="only reports of this clientId; may be repeated"
    )
    parser.add_argument(
        "--host",
        type=_text,
        action="append",
        metavar="HOST",
        help="only reports about this host, by its name or in a URL; may be repeated",
    )
    parser.add_argument(
        "--kind", type=_text, action="append", metavar="KIND", help="only lines of this kind; may be repeated"
    )
    parser.add_argument(
        "--format",
        choices=["json", "pretty"],
        help="the lines as they are stored, or one readable line a report (pretty on a terminal, else json)",
    )


def _text(text: str) -> str:
    """What can stand in a report: Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"give UTF-8: {text!r}") from None
    return text


def since(text: str) -> float:
    """The time that ``text`` means, in seconds since the epoch."""
    if match := _AGO.match(text.strip()):
        return max(time.time() - float(match[1]) * _AGO_S[match[2]], 0.0)
    try:
        moment = datetime.fromisoformat(text.strip())
        return max((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp(), 0.0)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"give 90s, 10m, 2h, 7d, or a time such as 2026-11-22T10:24:10Z: {text!r}"
        ) from None


def seconds(text: str) -> float:
    """A duration in seconds, up to a year."""
    try:
        duration_s = float(text)
    except ValueError:
        duration_s = -1.0
    if not 0 <= duration_s <= 366 * 86400:
        raise argparse.ArgumentTypeError(f"give a number of seconds: {text!r}")
    return duration_s


def size(text: str) -> int:
    """A number of bytes, also as ``10MiB``."""
    try:
        return settings.size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}: {text!r}") from None


@contextlib.contextmanager
def opened(data_dir: Path) -> Iterator[Files]:
    """The data directory, open. What cannot be read in it becomes a :class:`StartError` that names it."""
    from netwatch.storage.files import Files

    try:
        root = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StartError(
            f"Cannot open the data directory {data_dir}: {error.strerror}. Name the server's (--data-dir).", 2
        ) from None
    try:
        yield Files(root)
    except FileNotFoundError as error:
        raise StartError(f"{data_dir} is no data directory: it has no {error.filename}.", 2) from None
    except BrokenPipeError:  # who reads what we print has seen enough
        raise
    except OSError as error:
        if error.filename is None:  # what we print cannot be written
            raise
        raise StartError(f"Cannot read {error.filename} in {data_dir}: {error.strerror}.") from None
    finally:
        os.close(root)
