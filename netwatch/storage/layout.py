"""Where each file stands below the data directory, and what its name says.

Paths are relative to the data directory. ``<instance>`` is 8 random hex digits for each writer process and ``<number>``
counts its segments, so that no name is ever used twice, whatever the clock does.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Final, NamedTuple

OPEN: Final = "open"
REPORTS: Final = "reports"
QUARANTINE: Final = "quarantine"

_OPEN_NAME: Final = re.compile(r"([0-9a-f]{8})-([0-9]{6,})\.jsonl\.zst\.open\Z")
_RECOVERING_NAME: Final = re.compile(r"([0-9a-f]{8})-([0-9]{6,})\.jsonl\.zst\.recovering\Z")
_SEALED_NAME: Final = re.compile(r"reports-[0-9T:.-]{23}Z-([0-9a-f]{8})-([0-9]{6,})\.jsonl\.zst\Z")
_COMPACTED_NAME: Final = re.compile(r"reports-([0-9T.-]{23}Z)--([0-9T.-]{23}Z)-[0-9a-f]{16}\.jsonl\.zst\Z")
_DAY: Final = re.compile(r"date=[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")


class SegmentId(NamedTuple):
    """Which segment: the writer process that opened it, and its count there."""

    instance: str
    number: int

    def __str__(self) -> str:
        return f"{self.instance}-{self.number:06d}"

    @property
    def open_path(self) -> str:
        """Where it grows. No reader's glob matches the name."""
        return f"{OPEN}/{self}.jsonl.zst.open"

    @property
    def recovering_path(self) -> str:
        """Where recovery writes it before it publishes it; what stands there is never whole."""
        return f"{OPEN}/{self}.jsonl.zst.recovering"

    @property
    def quarantine_path(self) -> str:
        """Where it is set aside, as it was found."""
        return f"{QUARANTINE}/{self}.jsonl.zst"

    def sealed_path(self, received_at: str) -> str:
        """Where it stands for ever; ``received_at`` is its first line's ``receivedAt``."""
        day, milliseconds = received_at[:10], received_at[:23].replace(":", "-")
        return f"{REPORTS}/date={day}/reports-{milliseconds}Z-{self}.jsonl.zst"


def new_instance() -> str:
    """A name for a writer process."""
    return secrets.token_hex(4)


def open_segment(name: str) -> SegmentId | None:
    """The segment that grows in the file ``name`` of ``open/``."""
    return _segment(_OPEN_NAME, name)


def recovering_segment(name: str) -> SegmentId | None:
    """The segment that an interrupted recovery was writing to the file ``name`` of ``open/``."""
    return _segment(_RECOVERING_NAME, name)


def sealed_segment(name: str) -> SegmentId | None:
    """The segment in the sealed file ``name``."""
    return _segment(_SEALED_NAME, name)


def is_day(name: str) -> bool:
    """Whether ``name`` is that of a day's directory in ``reports/``."""
    return bool(_DAY.match(name))


def time_text(time_s: float) -> str:
    """The time (seconds since the epoch) as it stands in a sealed file's name, to compare with one."""
    return f"{time.strftime('%Y-%m-%dT%H-%M-%S', time.gmtime(time_s))}.{int(time_s % 1 * 1000):03d}Z"


def time_in_name(name: str) -> str:
    """The time in the sealed file's ``name``, such as ``2026-11-22T10-24-10.123Z``; it sorts as text."""
    return name[8:32]


def times_in_name(name: str) -> tuple[str, str] | None:
    """The first and the last time in the name of a sealed file (where they are one) or of a compacted object.

    None if it is neither. Of a compacted object they are those of the sealed files that went into it.
    """
    if match := _COMPACTED_NAME.match(name):
        return match[1], match[2]
    return (time_in_name(name), time_in_name(name)) if sealed_segment(name) else None


def compacted_path(first: str, last: str, digest: str) -> str:
    """Where an object stands in a bucket that was made of several; relative to its prefix, as ``reports/`` is here."""
    return f"date={first[:10]}/reports-{first}--{last}-{digest}.jsonl.zst"


def _segment(pattern: re.Pattern[str], name: str) -> SegmentId | None:
    match = pattern.match(name)
    return SegmentId(match[1], int(match[2])) if match else None
