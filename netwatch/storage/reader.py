"""Reads the stored lines of a data directory while a server may be writing there: what it holds, then what comes.

Each line is read once and a writer's lines in their order, whatever happens to their file meanwhile: a segment is read
through the descriptor with which it was found, so it may be sealed, recovered, pruned. No file is held in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from netwatch.storage import layout
from netwatch.storage.days import Days
from netwatch.storage.files import Files
from netwatch.storage.frame import Ending, FrameReader
from netwatch.storage.layout import SegmentId
from netwatch.storage.segment import RECEIVED_AT

MARGIN_S: Final = 65.0
"""A line's ``receivedAt`` is at most this much later than the time in its file's name, unless it is sealed later."""


class Since:
    """A time (seconds since the epoch): only what was received since is wanted."""

    def __init__(self, time_s: float) -> None:
        self.time_s = time_s
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time_s))
        self.received_at = f"{seconds}.{int(time_s % 1 * 1_000_000):06d}Z".encode()
        self._name = layout.time_text(max(time_s - MARGIN_S, 0.0))

    def may_be_in(self, time_in_name: str, entry: os.DirEntry[str]) -> bool:
        """Whether a file, or a day's directory, can hold such lines: by its name, or because it was changed since."""
        if time_in_name >= self._name[: len(time_in_name)]:
            return True
        try:
            return entry.stat().st_mtime >= self.time_s - MARGIN_S
        except FileNotFoundError:  # pruned since it was listed
            return False


def sealed_segments(
    files: Files, since: Since | None = None, *, is_newest_first: bool = False
) -> Iterator[tuple[str, SegmentId]]:
    """The sealed files by the time in their names; those that hold nothing ``since`` are left out."""
    days = [
        day.name
        for day in files.entries(layout.REPORTS)
        if since is None or since.may_be_in(day.name.removeprefix("date="), day)
    ]
    for day in sorted(days, reverse=is_newest_first):
        directory = f"{layout.REPORTS}/{day}"
        with contextlib.suppress(NotADirectoryError, FileNotFoundError):
            names = [
                entry.name
                for entry in files.entries(directory)
                if since is None or since.may_be_in(layout.time_in_name(entry.name), entry)
            ]
            for name in sorted(names, reverse=is_newest_first):
                if segment_id := layout.sealed_segment(name):
                    yield f"{directory}/{name}", segment_id


@dataclasses.dataclass
class _Segment:
    """A segment that is read as it grows, through ``fd``; without one it was found sealed at ``path``."""

    id: SegmentId
    path: str
    fd: int | None = None
    frame: FrameReader | None = None
    read_bytes: int = 0

    @property
    def size(self) -> int:
        return 0 if self.fd is None else os.fstat(self.fd).st_size


class Reader:
    """The stored lines below ``files``, without their line feeds; :meth:`close` it.

    With ``is_following``, :meth:`new` gives what comes after all that :meth:`stored` or :meth:`newest` gave. Files
    that cannot be read to their end are named to ``warn``. Raises OSError where there is no data directory.
    """

    def __init__(self, files: Files, warn: Callable[[str], None], *, is_following: bool = False) -> None:
        self._files = files
        self._warn = warn
        self._is_following = is_following
        self._growing: dict[SegmentId, _Segment] = {}
        self._newest: dict[str, int] = {}
        """The highest number of each instance that was sealed when we came, or that we have read."""
        self._instances: list[str] = []
        """In the order in which they wrote."""
        self._days = Days(files)
        self._add(self._found_growing())  # opened before anything sealed is listed, so that none slips through
        for segment in list(self._growing.values()):
            if (path := self._sealed_path(segment)) and files.exists(path):  # a leftover, beside what became of it
                self._drop(segment)
        if is_following:
            for _, segment_id in self._changed_sealed():
                self._note_read(segment_id)

    def close(self) -> None:
        """Let go of all files."""
        for segment in list(self._growing.values()):
            self._drop(segment)

    def stored(self, since: Since | None = None) -> Iterator[bytes]:
        """All lines, oldest file first, but for the files that hold nothing ``since``."""
        for path, segment_id in sealed_segments(self._files, since):
            if self._is_backlog(segment_id):
                yield from self._sealed(path)
        for segment in self._in_order():
            yield from self._grown(segment)

    def newest(self, count: int, is_wanted: Callable[[bytes], bool], since: Since | None = None) -> list[bytes]:
        """The last ``count`` of the lines that are wanted; files are read from the newest on until there are enough."""
        found = deque[bytes]()
        growing = set(self._growing)

        def gather(lines: Iterator[bytes]) -> None:
            last = deque((line for line in lines if is_wanted(line)), maxlen=count - len(found))
            found.extendleft(reversed(last))

        for segment in reversed(self._in_order()):  # each to its end: what follows has to start there
            gather(self._grown(segment))
        for path, segment_id in sealed_segments(self._files, since, is_newest_first=True):
            if len(found) == count:
                break
            if segment_id not in growing and self._is_backlog(segment_id):
                gather(self._sealed(path))
        return list(found)

    def new(self) -> Iterator[bytes]:
        """The lines that came since the last call. Call it again and again, some times a second."""
        known = set(self._growing)
        found = {segment.id: segment for segment in self._found_growing()}
        for path, segment_id in self._changed_sealed():
            if self._is_new(segment_id):
                found.setdefault(segment_id, _Segment(segment_id, path))
        self._add(found.values())
        # What is only found now waits for the next call, unless what was known comes after it: a listing may have
        # missed one that comes before it. And all are looked at before one is read, so whatever was stored before
        # what is seen here is read before it.
        ordered = self._in_order()
        end = max((place for place, segment in enumerate(ordered, 1) if segment.id in known), default=0)
        seen = [(segment, segment.size) for segment in ordered[:end]]
        for segment, size in seen:
            if segment.fd is None:
                yield from self._sealed(segment.path)
                self._done(segment)
            elif size:
                yield from self._grown(segment)
            elif not self._files.is_linked(segment.fd) and not segment.size:
                self._drop(segment)  # opened ahead, and never used

    def _grown(self, segment: _Segment) -> Iterator[bytes]:
        """What was not read yet of a segment; it is dropped when nothing can come any more."""
        assert segment.fd is not None
        is_linked = self._files.is_linked(segment.fd)  # asked first: nothing is appended to a leftover without a name
        size = segment.size
        if size != segment.read_bytes:
            segment.frame = segment.frame or FrameReader(segment.fd)
            yield from segment.frame.lines()
            segment.read_bytes = size
        ending = segment.frame.ending if segment.frame else Ending.OPEN
        if ending is Ending.DAMAGED:
            self._warn(f"{segment.path} is damaged: what follows its good lines is left out")
        if ending in (Ending.SEALED, Ending.DAMAGED) or not is_linked:
            self._done(segment)

    def _sealed(self, path: str) -> Iterator[bytes]:
        try:
            fd = self._files.open_for_reading(path)
        except FileNotFoundError:  # pruned since it was listed
            return
        except OSError as error:
            self._warn(f"{path} cannot be read: {error.strerror}")
            return
        try:
            frame = FrameReader(fd)
            yield from frame.lines()
            if frame.ending is not Ending.SEALED:
                self._warn(f"{path} is broken: what follows its good lines is left out (netwatch verify says more)")
        finally:
            self._files.close(fd)

    def _found_growing(self) -> Iterator[_Segment]:
        for name in self._files.names(layout.OPEN):
            segment_id = layout.open_segment(name)
            if segment_id and self._is_new(segment_id):
                with contextlib.suppress(FileNotFoundError):  # sealed since it was listed
                    fd = self._files.open_for_reading(segment_id.open_path)
                    yield _Segment(segment_id, segment_id.open_path, fd)

    def _changed_sealed(self) -> Iterator[tuple[str, SegmentId]]:
        """The sealed files in the directories that were changed since the last call."""
        for directory in self._days.changed():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for entry in self._files.entries(directory):
                    if segment_id := layout.sealed_segment(entry.name):
                        yield f"{directory}/{entry.name}", segment_id

    def _sealed_path(self, segment: _Segment) -> str:
        """Where the segment stands once it is sealed; "" while it has no line."""
        if segment.fd is None:
            return segment.path
        first = next(FrameReader(segment.fd).lines(), None)
        return "" if first is None else segment.id.sealed_path(first[RECEIVED_AT].decode())

    def _is_backlog(self, segment_id: SegmentId) -> bool:
        """Whether the sealed segment is to be read now: it is not held as a growing one, nor left to what follows."""
        return segment_id not in self._growing and not (self._is_following and self._is_new(segment_id))

    def _is_new(self, segment_id: SegmentId) -> bool:
        return segment_id not in self._growing and segment_id.number > self._newest.get(segment_id.instance, -1)

    def _in_order(self) -> list[_Segment]:
        ranks = {instance: rank for rank, instance in enumerate(self._instances)}
        return sorted(
            self._growing.values(),
            key=lambda segment: (ranks.get(segment.id.instance, len(ranks)), segment.id.number),
        )

    def _add(self, found: Iterable[_Segment]) -> None:
        for segment in sorted(found, key=lambda segment: self._sealed_path(segment) or "~"):
            self._growing[segment.id] = segment
            if segment.id.instance not in self._instances:
                self._instances.append(segment.id.instance)

    def _note_read(self, segment_id: SegmentId) -> None:
        self._newest[segment_id.instance] = max(segment_id.number, self._newest.get(segment_id.instance, -1))

    def _done(self, segment: _Segment) -> None:
        self._note_read(segment.id)
        self._drop(segment)

    def _drop(self, segment: _Segment) -> None:
        del self._growing[segment.id]
        if segment.fd is not None:
            self._files.close(segment.fd)
