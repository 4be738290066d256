"""Reads the stored lines of a data directory, oldest file first, while a server may be writing there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from netwatch.storage import layout
from netwatch.storage.files import Files
from netwatch.storage.frame import FrameReader
from netwatch.storage.layout import SegmentId


def sealed_paths(files: Files) -> list[str]:
    """The sealed files, by the time in their names."""
    paths = []
    for day in files.names(layout.REPORTS):
        with contextlib.suppress(NotADirectoryError, FileNotFoundError):
            directory = f"{layout.REPORTS}/{day}"
            paths += [f"{directory}/{name}" for name in files.names(directory) if layout.sealed_segment(name)]
    return sorted(paths)


def stored_lines(files: Files) -> Iterator[bytes]:
    """Every stored line once, without its line feed: the sealed files', then the open segments'."""
    growing = list(_open_segments(files))  # opened before the sealed files are listed, so that none slips through
    try:
        sealed = set[SegmentId | None]()
        for path in sealed_paths(files):
            sealed.add(layout.sealed_segment(path.rpartition("/")[2]))
            try:
                fd = files.open_for_reading(path)
            except FileNotFoundError:  # removed by retention
                continue
            try:
                yield from FrameReader(fd).lines()
            finally:
                files.close(fd)
        for segment_id, fd in sorted(growing, key=lambda item: os.fstat(item[1]).st_mtime_ns):
            if segment_id not in sealed:  # a leftover stays a while beside what was recovered from it
                yield from FrameReader(fd).lines()
    finally:
        for _, fd in growing:
            files.close(fd)


def _open_segments(files: Files) -> Iterator[tuple[SegmentId, int]]:
    for name in files.names(layout.OPEN):
        if segment_id := layout.open_segment(name):
            with contextlib.suppress(FileNotFoundError):  # sealed since it was listed
                yield segment_id, files.open_for_reading(segment_id.open_path)
