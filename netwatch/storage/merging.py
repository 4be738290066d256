"""Merges sealed segments into one: the same format, one zstd frame of lines, each id once."""

from __future__ import annotations

import os

import zstandard

from netwatch.reports import ID
from netwatch.storage.frame import Ending, FrameReader

_LEVEL = 3  # it is written once, by nobody who waits


class Damaged(Exception):
    """A segment is not as it was written."""


def held(content: bytes) -> int:
    """A descriptor of a file in memory with this content."""
    fd = os.memfd_create("netwatch-segment")
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    return fd


def ids_of(fd: int) -> set[bytes]:
    """The ids of a sealed segment's lines. Raises :class:`Damaged` unless each line and the frame's end are right."""
    reader = FrameReader(fd)
    ids = {line[ID] for lines in reader.line_lists() for line in lines}
    if reader.ending is not Ending.SEALED:
        raise Damaged(f"it is {reader.ending.value} after {reader.position_bytes} bytes")
    return ids


class Merger:
    """A segment that takes in others; their ids are in ``ids``."""

    def __init__(self) -> None:
        self.ids = set[bytes]()
        self.duplicates = 0
        """Lines that were left out, because their id stood there."""
        self._frame = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
        self._pieces: list[bytes] = []

    def add(self, fd: int) -> None:
        """Take in the lines of a sealed segment, if it is whole. Raises :class:`Damaged`."""
        ids_of(fd)
        for lines in FrameReader(fd).line_lists(is_checked=False):
            new = []
            for line in lines:
                if line[ID] in self.ids:
                    self.duplicates += 1
                else:
                    self.ids.add(line[ID])
                    new.append(line)
            if new:
                self._pieces.append(self._frame.compress(b"\n".join([*new, b""])))

    def finish(self) -> bytes:
        """The segment, whole."""
        return b"".join([*self._pieces, self._frame.flush()])
