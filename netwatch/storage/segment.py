"""The segment that grows: one zstd frame, flushed and synced at each commit, sealed under its final name.

Invariant: when :meth:`Segment.append` returns, its lines survive every crash and a power cut (unless the operator chose
to have them only written: then every crash); when it raises, the file ends where it ended before, as far as the disk
still lets itself be cut, and the segment must be given up to recovery.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Final

import zstandard

from netwatch.storage.files import Files
from netwatch.storage.layout import SegmentId

RECEIVED_AT: Final = slice(59, 86)
"""Where a line's ``receivedAt`` stands."""


class Segment:
    """An open segment; ``first_at_s`` is the monotonic time of its first commit, infinite while it is empty."""

    def __init__(self, files: Files, segment_id: SegmentId, compression_level: int, *, is_synced: bool = True) -> None:
        self.id = segment_id
        self.fd = files.create(segment_id.open_path)
        self.lines_bytes = 0
        self.stored_bytes = 0
        self.first_at_s = float("inf")
        self.is_cut = True
        """Whether a failed append left nothing behind; if not, recovery stores what was refused."""
        self._received_at = ""
        self._is_synced = is_synced
        self._files = files
        self._frame = zstandard.ZstdCompressor(level=compression_level, write_checksum=True).compressobj()

    def append(self, group: Iterable[bytes | bytearray], now_s: float) -> None:
        """Store the lines of ``group`` (each item has one or more); they are safe when this returns, or OSError."""
        frame = self._frame
        pieces = []
        lines_bytes = 0
        for lines in group:
            if not lines:
                continue
            if not self._received_at:
                self._received_at = lines[RECEIVED_AT].decode()
            lines_bytes += len(lines)
            pieces.append(frame.compress(lines))
        pieces.append(frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        compressed = b"".join(pieces)
        try:
            self._files.append(self.fd, compressed)
            if self._is_synced:
                self._files.sync(self.fd)
        except OSError:
            self.is_cut = False
            with contextlib.suppress(OSError):
                self._files.cut(self.fd, self.stored_bytes)
                self.is_cut = True
            raise
        self.stored_bytes += len(compressed)
        self.lines_bytes += lines_bytes
        self.first_at_s = min(self.first_at_s, now_s)

    def seal(self) -> str:
        """End the frame and give the file its final name, which is returned. Raises OSError."""
        ending = self._frame.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH)
        self._files.append(self.fd, ending)
        self._files.sync(self.fd)
        self.stored_bytes += len(ending)
        path = self.id.sealed_path(self._received_at)
        self._files.publish(self.id.open_path, path)
        self._files.close(self.fd)
        return path

    def discard(self) -> None:
        """Remove the file of a segment that never got a line."""
        self._files.delete(self.id.open_path)
        self._files.close(self.fd)
