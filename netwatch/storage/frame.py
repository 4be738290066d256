"""Reads the lines of one segment file, open or sealed, block by block of its zstd frame.

What comes out is always an exact prefix of the lines that went in: every line is whole and its checksum right, and the
first thing that is not ends the reading. How it ended is said: a torn tail (the incomplete end that a crash leaves,
never acked) is told from damage (anything broken before that).

The frame's format is RFC 8878: a header, blocks of a 3-byte header (last, type, size) and content, a 4-byte checksum.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Iterator
from typing import BinaryIO, Final

import zstandard

from netwatch.reports import is_whole

_LONGEST_HEADER: Final = 18
_MAX_WINDOW_BYTES: Final = 32 * 1024 * 1024  # the highest level we write with asks for 8 MiB
_MAX_LINE_BYTES: Final = 1100 * 1024 * 1024  # a little more than the largest `max_report_bytes`
_MAX_BLOCK_BYTES: Final = 128 * 1024
_RLE: Final = 1
_RESERVED: Final = 3


class Ending(enum.Enum):
    """How a segment file ends."""

    SEALED = "sealed"
    """The frame is complete and its checksum right."""
    OPEN = "open"
    """Every block is whole, and more may come."""
    TORN = "torn"
    """The last block or line is incomplete: what follows the lines was never acked."""
    DAMAGED = "damaged"
    """Something is broken that was whole once."""


class FrameReader:
    """Reads the segment file ``fd`` from its start; ``ending`` and ``broken_bytes`` are known after its lines."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._file = self._opened()
        self._size = 0
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._position = 0
        self._good = 0
        self._tail = b""
        self._is_last = False
        self.ending = Ending.OPEN
        self.broken_bytes = 0
        """How many bytes at the end of the file, compressed, could not be used."""

    @property
    def position_bytes(self) -> int:
        """How much of the file is read."""
        return self._position

    def lines(self) -> Iterator[bytes]:
        """The lines, each without its line feed."""
        for lines in self.line_lists():
            yield from lines

    def line_lists(self, *, is_checked: bool = True) -> Iterator[list[bytes]]:
        """The same, as many at a time as a block ends; only compared with others, they need not be ``is_checked``.

        Called again, it goes on where the file ended: to one that was OPEN or TORN, a living writer may have appended.
        """
        if self._file.closed:
            self._file = self._opened()
        self._file.seek(self._position)
        self._size = os.fstat(self._fd).st_size
        self.ending, self.broken_bytes = Ending.OPEN, 0
        with self._file, self._unreadable_is_damage():
            for content, end in self._contents():
                *lines, self._tail = (self._tail + content).split(b"\n")
                wrong = next((n for n, line in enumerate(lines) if not is_whole(line)), None) if is_checked else None
                if lines:
                    yield lines[:wrong]
                if wrong is not None:
                    self._end(self._good, self._broken_before(end))
                    return
                if not self._tail:
                    self._good = end
                elif len(self._tail) > _MAX_LINE_BYTES:
                    self._end(self._good, Ending.DAMAGED)
                    return
        if self._tail:
            whole_frame = self.ending in (Ending.SEALED, Ending.DAMAGED)
            self._end(self._good, Ending.DAMAGED if whole_frame else Ending.TORN)

    def _opened(self) -> BinaryIO:
        return os.fdopen(os.dup(self._fd), "rb", buffering=1024 * 1024)

    @contextlib.contextmanager
    def _unreadable_is_damage(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._end(0, Ending.DAMAGED)

    def _end(self, good: int, ending: Ending) -> None:
        self.ending = ending
        self.broken_bytes = max(self._size - good, 0)

    def _contents(self) -> Iterator[tuple[bytes, int]]:
        """What each block holds, decompressed, and where in the file the block ends. Sets how the file ends."""
        frame = self._frame or self._start()
        if not frame:
            return
        while not self._is_last and (head := self._file.read(3)):
            value = int.from_bytes(head, "little")
            kind, size = value >> 1 & 3, value >> 3
            if kind == _RESERVED or size > _MAX_BLOCK_BYTES:  # no tail of ours, wherever it was torn off
                self._end(self._position, Ending.DAMAGED)
                return
            if kind == _RLE:
                size = 1
            content = self._file.read(size)
            end = self._position + 3 + size
            if len(head) < 3 or len(content) < size:
                self._end(self._position, Ending.TORN)
                return
            if not value:  # an empty block that is not the last: we write none, so only zeros are harmless here
                self._end(self._position, Ending.TORN if self._is_zero_from(self._position) else Ending.DAMAGED)
                return
            try:
                decompressed = frame.decompress(head + content)
            except zstandard.ZstdError:
                self._end(self._position, self._broken_before(end))
                return
            self._position = end
            self._is_last = bool(value & 1)
            yield decompressed, end
        if self._is_last:
            self._finish(frame, self._position)

    def _start(self) -> zstandard.ZstdDecompressionObj | None:
        """Read the frame's header; None, and how the file ends, if it has no whole one."""
        header = os.pread(self._fd, _LONGEST_HEADER, 0)
        if not header:
            return None
        frame = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj()
        try:
            size = zstandard.frame_header_size(header)
            frame.decompress(self._file.read(size))
        except zstandard.ZstdError:
            self._end(0, Ending.TORN if len(header) < _LONGEST_HEADER else self._broken_before(_LONGEST_HEADER))
            return None
        if len(header) < size:
            self._end(0, Ending.TORN)
            return None
        self._frame, self._position = frame, size
        return frame

    def _finish(self, frame: zstandard.ZstdDecompressionObj, position: int) -> None:
        """Demand the frame's checksum after its last block, and the end of the file after that."""
        checksum = self._file.read(4)
        if len(checksum) < 4:
            self._end(position, Ending.TORN)
            return
        try:
            frame.decompress(checksum)
        except zstandard.ZstdError:
            self._end(position, self._broken_before(position + 4))
            return
        whole = frame.eof and not self._file.read(1)
        self._end(position + 4, Ending.SEALED if whole else Ending.DAMAGED)

    def _broken_before(self, end: int) -> Ending:
        """What it means that the block ending at ``end`` is wrong: a torn tail if it ends in zeros that end the file.

        Pages that never reached the disk read as zeros; no block of ours ends in eight of them.
        """
        return Ending.TORN if self._is_zero_from(max(min(end - 1, self._size - 8), 0)) else Ending.DAMAGED

    def _is_zero_from(self, position: int) -> bool:
        while chunk := os.pread(self._fd, 1024 * 1024, position):
            if chunk.strip(b"\0"):
                return False
            position += len(chunk)
        return True
