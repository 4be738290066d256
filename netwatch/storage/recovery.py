"""Finishes the segments that a crash or a failing disk left: whole lines go into a sealed file, the rest is told.

Recovery can be interrupted anywhere and run again: it writes under a temporary name, publishes under a name that
follows from the segment alone, and a sealed file that already stands is never written again. A leftover is not deleted
at once: the ids read from it tell a resent line from a new one, and the next writer may need them too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator

import zstandard

from netwatch.reports import ID
from netwatch.storage import layout
from netwatch.storage.files import Files
from netwatch.storage.frame import Ending, FrameReader
from netwatch.storage.layout import SegmentId
from netwatch.storage.segment import RECEIVED_AT


@dataclasses.dataclass
class Leftover:
    """An open segment without a writer; ``fd`` holds its lock. ``recovered`` once its lines stand in a sealed file.

    Its writer was dead at ``died_at_s`` (monotonic).
    """

    id: SegmentId
    fd: int
    recovered: Recovered | None = None
    died_at_s: float = float("inf")
    delete_at_s: float = float("inf")


@dataclasses.dataclass
class Recovered:
    """What recovery found: the ids of the stored lines, the sealed file (None without a line), what was not usable.

    ``ids`` is None while they were not read.
    """

    path: str | None
    ids: set[bytes] | None
    ending: Ending
    broken_bytes: int
    quarantined: str | None


def find_leftovers(files: Files) -> list[Leftover]:
    """The open segments that no live writer holds, locked; what interrupted recoveries wrote is removed.

    Raises OSError when one cannot be opened: without its ids a resend could be stored twice.
    """
    names = files.names(layout.OPEN)
    leftovers = []
    for name in names:
        segment_id = layout.open_segment(name)
        if segment_id and (fd := files.open_locked(segment_id.open_path)) is not None:
            leftovers.append(Leftover(segment_id, fd))
    ours = {leftover.id for leftover in leftovers}
    others = {layout.open_segment(name) for name in files.names(layout.OPEN)} - ours
    for name in names:
        interrupted = layout.recovering_segment(name)
        if interrupted and interrupted not in others:
            with contextlib.suppress(OSError):  # it is in nobody's way; recovery itself says so if it is
                files.delete(interrupted.recovering_path)
    return leftovers


def ids_held_by_others(files: Files, ours: Iterable[Leftover]) -> set[bytes]:
    """The ids in the open segments of other writers: one may be recovering what a writer of our workers left."""
    held = {layout.open_segment(name) for name in files.names(layout.OPEN)} - {leftover.id for leftover in ours}
    ids = set[bytes]()
    for segment_id in held - {None}:
        assert segment_id
        try:
            fd = files.open_for_reading(segment_id.open_path)
        except OSError:  # sealed meanwhile, so its writer lives and answers for itself
            continue
        try:
            ids.update(line[ID] for line in FrameReader(fd).lines())
        finally:
            files.close(fd)
    return ids


def recover(files: Files, leftover: Leftover, compression_level: int, *, is_ours: bool = False) -> Recovered:
    """Bring the leftover's whole lines into a sealed file, durably. Raises OSError; it can be called again then.

    If the leftover ``is_ours``, of a writer that died while this server ran, a sealed file that stands is whole:
    nothing has happened since that could have cut one of the two. So it is not compared, and many crashes in a row stay
    short.
    """
    reader = FrameReader(leftover.fd)
    line_lists = reader.line_lists()
    first = next((lines for lines in line_lists if lines), None)
    path, ids, is_prefix, is_written = None, set[bytes](), True, False
    if first is not None:
        path = leftover.id.sealed_path(first[0][RECEIVED_AT].decode())
        line_lists = itertools.chain([first], line_lists)
        if files.exists(path):
            files.sync_directory(os.path.dirname(path))  # who published it may have died before the name was durable
            if is_ours:
                return Recovered(path, None, Ending.OPEN, 0, None)
            ids, is_prefix = _compare(files, line_lists, path)
        else:
            with _deleted_on_failure(files, leftover.id.recovering_path):
                ids = _write(files, leftover.id.recovering_path, line_lists, compression_level)
            is_written = True
    quarantined = None
    if reader.ending is Ending.DAMAGED or not is_prefix:
        quarantined = leftover.id.quarantine_path
        files.set_aside(leftover.id.open_path, quarantined)
    if path and is_written:  # last: a sealed file that stands says that all the rest is done
        with _deleted_on_failure(files, leftover.id.recovering_path):
            files.publish(leftover.id.recovering_path, path)
    return Recovered(path, ids, reader.ending, reader.broken_bytes, quarantined)


def leftover_ids(leftover: Leftover) -> set[bytes]:
    """The ids of the leftover's lines."""
    return {line[ID] for lines in FrameReader(leftover.fd).line_lists() for line in lines}


def dispose(files: Files, leftover: Leftover) -> None:
    """Remove a recovered leftover: nothing can be resent any more that stands in it."""
    files.delete(leftover.id.open_path)
    files.close(leftover.fd)


def _write(files: Files, path: str, line_lists: Iterable[list[bytes]], compression_level: int) -> set[bytes]:
    """Write the lines to a new file, a whole segment, durably; their ids."""
    ids = set[bytes]()

    def noted() -> Iterator[list[bytes]]:
        for lines in line_lists:
            ids.update([line[ID] for line in lines])
            yield lines

    write_segment(files, path, noted(), compression_level)
    return ids


def write_segment(files: Files, path: str, line_lists: Iterable[list[bytes]], compression_level: int) -> None:
    """Write the lines to a new file, a whole segment, durably; what stands there is replaced."""
    files.delete(path)
    fd = files.create(path)
    try:
        frame = zstandard.ZstdCompressor(level=compression_level, write_checksum=True).compressobj()
        for lines in line_lists:
            if compressed := frame.compress(_joined(lines)):
                files.append(fd, compressed)
        files.append(fd, frame.flush())
        files.sync(fd)
    finally:
        files.close(fd)


@contextlib.contextmanager
def _deleted_on_failure(files: Files, path: str) -> Iterator[None]:
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            files.delete(path)
        raise


def _compare(files: Files, line_lists: Iterable[list[bytes]], path: str) -> tuple[set[bytes], bool]:
    """The ids in the sealed file ``path``, and whether the lines are a prefix of its lines."""
    fd = files.open_for_reading(path)
    try:
        ids = set[bytes]()
        sealed_lists = FrameReader(fd).line_lists(is_checked=False)
        sealed, position, is_prefix = b"", 0, True
        for lines in line_lists:
            text = _joined(lines)
            while len(sealed) - position < len(text) and (more := next(sealed_lists, None)) is not None:
                ids.update([line[ID] for line in more])
                sealed, position = sealed[position:] + _joined(more), 0
            if not sealed.startswith(text, position):
                is_prefix = False
                break
            position += len(text)
        for more in sealed_lists:
            ids.update([line[ID] for line in more])
        return ids, is_prefix
    finally:
        files.close(fd)


def _joined(lines: list[bytes]) -> bytes:
    return b"\n".join([*lines, b""])
