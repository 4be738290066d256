"""Removes the oldest sealed files by age and by total size, in steps so small that nobody waits for one.

Never the newest file, never one whose segment still stands in ``open/`` (recovery would write it again), nothing that
is not ours, and on demand nothing that is not shipped. A directory that is empty then goes too. The same code says what
would go.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from typing import Final

from netwatch import log
from netwatch.metrics import table
from netwatch.metrics.board import Meter
from netwatch.storage import layout, shipped
from netwatch.storage.files import Files

_DAY_S: Final = 86400.0
_SWEEP_EVERY_S: Final = 60.0
_STEP_S: Final = 0.002
"""One step ends after this long, or after one deletion that takes longer."""
_STEP_EVERY_S: Final = 0.02
_STEPPED_S: Final = 60.0
_AFTER_STEPPED_S: Final = 3600.0
"""When the clock was stepped nothing goes by its age for so long: it may be stepped back."""


@dataclasses.dataclass(slots=True)
class Expired:
    """A sealed file that is to go, and because of what: ``age`` or ``size``."""

    path: str
    bytes: int
    reason: str


class Sweep:
    """One look at all sealed files, oldest first; ``sizes`` remembers those of unchanged directories for the next.

    With ``only_shipped`` only what has a bucket's mark goes; ``unshipped`` counts what would have gone but for that.
    """

    def __init__(
        self, files: Files, max_days: float | None, max_bytes: int | None, *, only_shipped: bool = False
    ) -> None:
        self._files = files
        self._max_days = max_days
        self._max_bytes = max_bytes
        self._only_shipped = only_shipped
        self.unshipped = 0
        self._sizes: dict[str, tuple[int, int]] = {}

    def expired(self, now_s: float) -> Iterator[Expired | None]:
        """What is to go at the wall time ``now_s``, oldest first; None after each little piece of work without any."""
        self.unshipped = 0
        days: list[tuple[str, int]] = []
        for entry in self._files.entries(layout.REPORTS):
            if layout.is_day(entry.name):
                days.append((entry.name, entry.stat().st_mtime_ns))
            yield None
        days.sort()
        excess_bytes = float("-inf")
        if self._max_bytes is not None:
            excess_bytes = -self._max_bytes
            for day, changed_ns in days:
                if self._sizes.get(day, (-1, 0))[0] != changed_ns:
                    yield from self._measure(day, changed_ns)
                excess_bytes += self._sizes[day][1]
            self._sizes = {day: self._sizes[day] for day, _ in days}
        unheld_bytes = excess_bytes  # what would be too much if what is not shipped could go as well
        oldest_kept = "" if self._max_days is None else layout.time_text(max(now_s - self._max_days * _DAY_S, 0.0))
        held: Expired | None = None  # the newest file is the last that is found, and so is never given
        for day, _ in days:
            is_kept = excess_bytes <= 0 and day.removeprefix("date=") > oldest_kept[:10]
            for found in self._listed(day) if is_kept else self._by_age(day):
                if found is None or held is None:
                    held = found or held
                    yield None
                    continue
                candidate, held = held, found
                if layout.time_in_name(os.path.basename(candidate.path)) < oldest_kept:
                    candidate.reason = "age"
                elif excess_bytes > 0:
                    candidate.reason = "size"
                else:
                    return
                would_go = candidate.reason == "age" or unheld_bytes > 0
                unheld_bytes -= candidate.bytes
                if self._only_shipped and not self._is_shipped(candidate.path):
                    self.unshipped += would_go
                    yield None
                    continue
                excess_bytes -= candidate.bytes
                yield candidate

    def _is_shipped(self, path: str) -> bool:
        try:
            return shipped.bucket_of(self._files, path) is not None
        except OSError:  # somebody else deleted it, or it cannot be read: what is not known to be shipped stays
            return False

    def _measure(self, day: str, changed_ns: int) -> Iterator[None]:
        total_bytes = 0
        for found in self._listed(day):
            if found:
                total_bytes += found.bytes
            yield None
        self._sizes[day] = (changed_ns, total_bytes)

    def _by_age(self, day: str) -> Iterator[Expired | None]:
        """The files of a day, oldest first: gathered by the minute, so that nothing large is sorted at once."""
        minutes: dict[str, list[Expired]] = {}
        for found in self._listed(day):
            if found:
                minutes.setdefault(layout.time_in_name(os.path.basename(found.path))[:16], []).append(found)
            yield None
        for minute in sorted(minutes):
            yield from sorted(minutes[minute], key=lambda found: found.path)

    def _listed(self, day: str) -> Iterator[Expired | None]:
        directory = f"{layout.REPORTS}/{day}"
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for entry in self._files.entries(directory):
                found = None
                if layout.sealed_segment(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        found = Expired(f"{directory}/{entry.name}", entry.stat().st_size, "")
                yield found


def delete(files: Files, expired: Expired) -> bool:
    """Delete the file, and its directory if that is empty then; False if its segment still stands in ``open/``."""
    segment_id = layout.sealed_segment(os.path.basename(expired.path))
    assert segment_id
    if files.exists(segment_id.open_path):
        return False
    files.delete(expired.path)
    files.delete_empty_directory(os.path.dirname(expired.path))
    return True


class Retention:
    """Keeps the sealed files within an age and a size while a server runs: :meth:`tend` it, whenever it is due."""

    def __init__(
        self,
        files: Files,
        *,
        max_days: float | None,
        max_bytes: int | None,
        only_shipped: bool = False,
        meter: Meter | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._meter = meter or Meter()
        self.due_at_s = 0.0 if max_days is not None or max_bytes is not None else float("inf")
        """When (monotonic) there is something to do."""
        self._files = files
        self._with_age = Sweep(files, max_days, max_bytes, only_shipped=only_shipped)
        self._without_age = Sweep(files, None, max_bytes, only_shipped=only_shipped)
        self._sweep = self._with_age
        self._wall = wall
        self._offset_s: float | None = None
        self._age_from_s = 0.0
        self._expired: Iterator[Expired | None] | None = None
        self._pruned: list[Expired] = []

    def tend(self, now_s: float) -> None:
        """Do a little of the work, if it is due."""
        if now_s < self.due_at_s:
            return
        until_s = time.monotonic() + _STEP_S
        try:
            self._expired = self._expired or self._started(now_s)
            for expired in self._expired:
                if expired and delete(self._files, expired):
                    self._meter.add(table.PRUNED, labels=(expired.reason,))
                    self._meter.add(table.PRUNED_BYTES, expired.bytes)
                    self._pruned.append(expired)
                if time.monotonic() >= until_s:
                    self.due_at_s = now_s + _STEP_EVERY_S
                    return
        except OSError as error:
            log.warning("prune_failed", error=str(error), retry_s=_SWEEP_EVERY_S)
        if self._pruned:
            log.info(
                "files_pruned",
                files=len(self._pruned),
                bytes=sum(expired.bytes for expired in self._pruned),
                by_age=sum(expired.reason == "age" for expired in self._pruned),
                first=self._pruned[0].path,
                last=self._pruned[-1].path,
            )
        self._meter.set(table.UNSHIPPED, self._sweep.unshipped)
        self._expired, self._pruned = None, []
        self.due_at_s = now_s + _SWEEP_EVERY_S

    def _started(self, now_s: float) -> Iterator[Expired | None]:
        wall_s = self._wall()
        offset_s = wall_s - now_s
        if self._offset_s is not None and abs(offset_s - self._offset_s) > _STEPPED_S:
            self._age_from_s = now_s + _AFTER_STEPPED_S
            log.warning("prune_waits", why="the clock was stepped", stepped_s=round(offset_s - self._offset_s))
        self._offset_s = offset_s
        self._sweep = self._with_age if now_s >= self._age_from_s else self._without_age
        return self._sweep.expired(wall_s)
