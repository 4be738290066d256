"""Which sealed files a query has to read: those that may hold what was received in its time.

A line's ``receivedAt`` lies at most 5 s before the time in its file's name, whose day is ``date=``, and no later than
the file's last change. By its name it would be at most 65 s later; but some server seals later than the others, or had
its clock stepped, and a query would miss lines in silence.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from netwatch.storage import layout
from netwatch.storage.files import Files
from netwatch.storage.reader import MARGIN_S, Since, sealed_segments

if TYPE_CHECKING:
    from obstore.store import S3Store

_BEFORE_S: Final = 5.0
_DAY_S: Final = 86_400.0


class Span(NamedTuple):
    """What was received from ``since_s`` on and before ``until_s``, seconds since the epoch; None is no bound."""

    since_s: float | None = None
    until_s: float | None = None

    @property
    def since_text(self) -> str:
        """The bound as it stands in a line, to compare with one."""
        return "" if self.since_s is None else _received_at(self.since_s)

    @property
    def until_text(self) -> str:
        """The other one."""
        return "~" if self.until_s is None else _received_at(self.until_s)

    def ends_before(self, time_in_name: str) -> bool:
        """Whether a file with that time in its name begins too late."""
        return self.until_s is not None and time_in_name > layout.time_text(self.until_s + _BEFORE_S)

    def begins_after(self, time_in_name: str, changed_s: float) -> bool:
        """Whether it ends too early; ``changed_s`` is when it was changed last."""
        if self.since_s is None:
            return False
        margin_s = max(self.since_s - MARGIN_S, 0.0)
        return time_in_name < layout.time_text(margin_s) and changed_s < margin_s

    def days(self) -> list[str] | None:
        """The days (2026-11-22) whose directories can hold such files; None: all."""
        if self.since_s is None:
            return None
        first = datetime.fromtimestamp(max(self.since_s - _DAY_S, 0.0), UTC).date()  # it may be open for hours
        last = datetime.fromtimestamp(time.time() if self.until_s is None else self.until_s, UTC).date()
        last += timedelta(days=1)  # until's margin, and clocks that are ahead of ours
        return [(first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]


def local_paths(files: Files, span: Span) -> list[str]:
    """The paths in a data directory, relative to it, oldest first."""
    since = None if span.since_s is None else Since(span.since_s)
    found = []
    for path, _ in sealed_segments(files, since):
        if not span.ends_before(layout.time_in_name(path.rpartition("/")[2])):
            found.append(path)
    return found


def bucket_keys(store: S3Store, span: Span) -> dict[str, int]:
    """The keys in a bucket, below its prefix, oldest first, and the objects' sizes. Errors are obstore's."""
    days = span.days()
    prefixes = [None] if days is None else [f"date={day}/" for day in days]
    found = {
        entry["path"]: entry["size"]
        for prefix in prefixes
        for entries in store.list(prefix, chunk_size=1000)
        for entry in entries
        if _is_in(entry["path"], entry["last_modified"].timestamp(), span)
    }
    return dict(sorted(found.items()))


def _is_in(key: str, changed_s: float, span: Span) -> bool:
    day, _, name = key.rpartition("/")
    times = layout.times_in_name(name)
    if times is None or not layout.is_day(day):
        return False
    first, last = times
    return not span.ends_before(first) and not span.begins_after(last, changed_s)


def _received_at(time_s: float) -> str:
    return Since(time_s).received_at.decode()
