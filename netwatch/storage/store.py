"""All segments of one writer: the open one, the next one opened ahead, and the leftovers that are not finished yet.

Invariants: what :meth:`Store.commit` took is safe or was refused; no failed sync is ever tried again; a segment that
failed is given up to recovery before the next group is taken; a leftover goes only when nothing in it can be resent.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Container, Mapping, Sequence
from typing import Final

from netwatch import log
from netwatch.metrics import table
from netwatch.metrics.board import Meter
from netwatch.reports import ID
from netwatch.storage import layout, recovery
from netwatch.storage.files import Files
from netwatch.storage.frame import Ending
from netwatch.storage.layout import SegmentId
from netwatch.storage.recovery import Leftover, Recovered
from netwatch.storage.retention import Retention
from netwatch.storage.segment import Segment
from netwatch.storage.window import Window

RESEND_S: Final = 10.0
"""A batch may be resent this long after it was first sent."""
KEEP_LEFTOVER_S: Final = 15.0
"""A leftover is kept this long after its writer died: longer than anything in it can be resent."""
_RETRY_S: Final = 0.1
_MAX_RETRY_S: Final = 5.0
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Unstored(Exception):
    """A group is not stored, or may be, where the ``code`` is ``unknown``; :mod:`netwatch.queue` has words for each."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class _Backoff:
    """When to try again what failed: at ``at_s``, and after each failure later."""

    def __init__(self) -> None:
        self.at_s = 0.0
        self._wait_s = _RETRY_S

    def failed(self, now_s: float) -> None:
        self.at_s = now_s + self._wait_s
        self._wait_s = min(self._wait_s * 2, _MAX_RETRY_S)

    def reset(self) -> None:
        self.at_s = 0.0
        self._wait_s = _RETRY_S


class Store:
    """The segments of one writer process, below the data directory of ``files``. Times are monotonic, in seconds.

    ``instance`` names the process in its files, and ``deaths`` says when the writers died whose workers it has now:
    what was first sent after that stands in nothing they left.
    """

    def __init__(
        self,
        files: Files,
        window: Window,
        *,
        instance: str,
        deaths: Mapping[str, float],
        retention: Retention | None = None,
        compression_level: int,
        seal_bytes: int,
        seal_after_s: float,
        min_free_bytes: int,
        is_synced: bool = True,
        meter: Meter | None = None,
    ) -> None:
        self._files = files
        self._meter = meter or Meter()
        self._meter.set(table.DISK_RESERVE_BYTES, min_free_bytes)
        self.window = window
        self._compression_level = compression_level
        self._seal_bytes = seal_bytes
        self._seal_after_s = seal_after_s
        self._min_free_bytes = min_free_bytes
        self._is_synced = is_synced
        self._instance = instance
        self._deaths = deaths
        self._retention = retention
        self._number = 0
        self._segment: Segment | None = None
        self._ahead: Segment | None = None
        self._leftovers: list[Leftover] = []
        self._others_ids = set[bytes]()
        self._forget_others_at_s = 0.0
        self._recovery = _Backoff()
        self._opening = _Backoff()

    def start(self, now_s: float) -> None:
        """Make the folders, prove that files can be created, synced, renamed, deleted; recover. Raises OSError."""
        for directory in (layout.OPEN, layout.REPORTS, layout.QUARANTINE):
            self._files.make_directory(directory)
        try:
            self._prove()
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            log.error("disk_full_at_start", error=str(error))  # it will refuse reports until there is room
        self._leftovers = recovery.find_leftovers(self._files)
        self._others_ids = recovery.ids_held_by_others(self._files, self._leftovers)
        self._forget_others_at_s = now_s + KEEP_LEFTOVER_S
        self._tend_leftovers(now_s)
        self._open_ahead(now_s)

    def _prove(self) -> None:
        """Do once all that a promise needs, under names that the next start cleans up if this one is interrupted."""
        proof = SegmentId(self._instance, 0)
        fd = self._files.create(proof.open_path)
        try:
            self._files.append(fd, b"netwatch")
            self._files.sync(fd)
            self._files.publish(proof.open_path, proof.recovering_path)
        finally:
            self._files.close(fd)
            self._files.delete(proof.recovering_path)
            self._files.delete(proof.open_path)

    @property
    def is_recovered(self) -> bool:
        """Whether every leftover's ids are known: only then can a resent line be told from a new one."""
        return all(leftover.recovered for leftover in self._leftovers)

    def missing(self, lines: bytes | bytearray, first_sent_s: float) -> bytes:
        """Those of the ``lines``, which may be stored since ``first_sent_s``, that no leftover holds.

        Nor another server that may be recovering ours, nor the window of those posted under a key. Raises
        :class:`Unstored` while that cannot be told.
        """
        if not self.is_recovered:
            raise Unstored("recovering")
        known: list[Container[bytes]] = [
            self._ids(leftover) for leftover in self._leftovers if first_sent_s <= leftover.died_at_s
        ]
        known += [self._others_ids, self.window.ids]
        return b"".join(
            line for line in bytes(lines).splitlines(keepends=True) if not any(line[ID] in ids for ids in known)
        )

    @staticmethod
    def _ids(leftover: Leftover) -> set[bytes]:
        """The ids of what was recovered from the leftover, read when they are first needed."""
        assert leftover.recovered
        if leftover.recovered.ids is None:
            leftover.recovered.ids = recovery.leftover_ids(leftover)
        return leftover.recovered.ids

    def require_room(self) -> None:
        """Raise :class:`Unstored` while the disk is below its reserve or refuses to give us a file."""
        try:
            free_bytes = self._files.free_bytes()
        except OSError as error:
            raise Unstored("disk_error") from error
        self._meter.set(table.DISK_FREE_BYTES, free_bytes)
        if free_bytes < self._min_free_bytes:
            raise Unstored("disk_full")
        segment = self._segment or self._ahead
        if not segment:
            raise Unstored("disk_error")
        if not self._files.is_linked(segment.fd):
            raise Unstored("disk_error")

    def commit(self, group: Sequence[bytes | bytearray], now_s: float) -> None:
        """Store the lines of ``group`` so that they survive a power cut, all of them, or raise :class:`Unstored`."""
        self.require_room()
        if not self._segment:
            self._segment, self._ahead = self._ahead, None
        segment = self._segment
        assert segment  # require_room saw one of the two
        try:
            segment.append(group, now_s)
        except OSError as error:
            self._give_up(segment, "commit_failed", error)
            code = "disk_full" if error.errno in _NO_ROOM else "disk_error"
            if not segment.is_cut:  # recovery will store it, unless the disk has lost it
                code = "unknown"
            raise Unstored(code) from error

    def take_stock(self) -> None:
        """Bring up to date what the meter says of the segments, the quarantine and the keys."""
        self._meter.set(table.SEGMENTS_OPEN, int(self._segment is not None))
        self._meter.set(table.LEFTOVERS, len(self._leftovers))
        self._meter.set(table.KEYS, len(self.window))
        with contextlib.suppress(OSError):
            self._meter.set(table.QUARANTINE_FILES, len(self._files.names(layout.QUARANTINE)))

    def tend(self, now_s: float) -> None:
        """Everything that is due and need not be done before an answer: seal, recover, dispose, open ahead, prune."""
        if self._segment and not self._files.is_linked(self._segment.fd):
            self._give_up(
                self._segment, "segment_deleted", FileNotFoundError(errno.ENOENT, "somebody deleted its file")
            )
        if self._ahead and not self._files.is_linked(self._ahead.fd):
            self._discard_ahead()
        if self._segment and self._segment.lines_bytes >= self._seal_bytes:
            self.seal("size")
        elif self._segment and now_s - self._segment.first_at_s >= self._seal_after_s:
            self.seal("age")
        self._tend_leftovers(now_s)
        if now_s >= self._forget_others_at_s:
            self._others_ids = set()
        if self._ahead is None and now_s >= self._opening.at_s:
            self._open_ahead(now_s)
        if self._retention:
            self._retention.tend(now_s)

    def due_in_s(self, now_s: float) -> float:
        """How long until :meth:`tend` has something to do."""
        due_s = [leftover.delete_at_s for leftover in self._leftovers]
        if self._segment:
            due_s.append(self._segment.first_at_s + self._seal_after_s)
        if not self._ahead:
            due_s.append(self._opening.at_s)
        if not self.is_recovered:
            due_s.append(self._recovery.at_s)
        if self._retention:
            due_s.append(self._retention.due_at_s)
        return max(min(due_s, default=float("inf")) - now_s, 0.0)

    def seal(self, reason: str) -> None:
        """Seal the open segment, if there is one."""
        segment, self._segment = self._segment, None
        if not segment:
            return
        try:
            path = segment.seal()
        except OSError as error:
            self._give_up(segment, "seal_failed", error)
            return
        self._meter.add(table.SEALED, labels=(reason,))
        self._meter.add(table.SEALED_LINES_BYTES, segment.lines_bytes)
        self._meter.add(table.SEALED_FILE_BYTES, segment.stored_bytes)
        self._meter.set(table.LAST_SEAL_AT, time.time_ns())
        log.info(
            "segment_sealed",
            path=path,
            reason=reason,
            lines_bytes=segment.lines_bytes,
            stored_bytes=segment.stored_bytes,
        )

    def close(self, now_s: float) -> bool:
        """Seal everything at the end of a drain; False if something had to be left for the next start."""
        self.seal("drain")
        self._recovery.reset()
        self._tend_leftovers(now_s)
        for leftover in [leftover for leftover in self._leftovers if leftover.recovered]:
            self._dispose(leftover, now_s)
        is_ahead_left = bool(self._ahead) and not self._discard_ahead()
        return not self._leftovers and not is_ahead_left

    def _discard_ahead(self) -> bool:
        ahead, self._ahead = self._ahead, None
        assert ahead
        try:
            ahead.discard()
        except OSError as error:
            log.warning("segment_kept", segment=str(ahead.id), error=str(error))
            return False
        return True

    def _give_up(self, segment: Segment, event: str, error: OSError) -> None:
        log.error(event, segment=str(segment.id), error=str(error))
        self._segment = None
        self._leftovers.append(Leftover(segment.id, segment.fd))
        self._recovery.reset()

    def _tend_leftovers(self, now_s: float) -> None:
        unrecovered = [leftover for leftover in self._leftovers if not leftover.recovered]
        if unrecovered and now_s >= self._recovery.at_s:
            self._recovery.failed(now_s)  # until the last of them says otherwise
            for leftover in unrecovered:
                self._recover(leftover, now_s)
            if all(leftover.recovered for leftover in unrecovered):
                self._recovery.reset()
        for leftover in list(self._leftovers):
            if leftover.recovered and now_s >= leftover.delete_at_s:
                self._dispose(leftover, now_s)

    def _recover(self, leftover: Leftover, now_s: float) -> None:
        try:
            recovered = recovery.recover(
                self._files, leftover, self._compression_level, is_ours=leftover.id.instance in self._deaths
            )
        except OSError as error:
            log.error(
                "recovery_failed", segment=str(leftover.id), error=str(error), retry_s=self._recovery.at_s - now_s
            )
            return
        leftover.recovered = recovered
        leftover.died_at_s = self._deaths.get(leftover.id.instance, now_s)
        leftover.delete_at_s = now_s if recovered.ids == set() else leftover.died_at_s + KEEP_LEFTOVER_S
        if recovered.ids is None:  # the writer before this one has said so
            return
        self._count_recovered(leftover, recovered)
        if recovered.path or recovered.ending is not Ending.OPEN:
            log.info(
                "segment_recovered",
                segment=str(leftover.id),
                path=recovered.path,
                lines=len(recovered.ids),
                ending=recovered.ending.value,
                broken_bytes=recovered.broken_bytes,
            )
        if recovered.quarantined:
            log.error("segment_quarantined", segment=str(leftover.id), path=recovered.quarantined)

    def _count_recovered(self, leftover: Leftover, recovered: Recovered) -> None:
        if recovered.path:
            self._meter.add(table.RECOVERED)
        if recovered.ending is Ending.TORN:
            self._meter.add(table.TORN_TAILS)
            self._meter.add(table.TORN_BYTES, recovered.broken_bytes)
        if recovered.quarantined:
            self._meter.add(table.QUARANTINED)
            self._meter.add(table.QUARANTINED_BYTES, self._files.size_bytes(leftover.fd))

    def _dispose(self, leftover: Leftover, now_s: float) -> None:
        self.window.learn(self._ids(leftover), now_s)
        try:
            recovery.dispose(self._files, leftover)
        except OSError as error:
            leftover.delete_at_s = now_s + _MAX_RETRY_S
            log.warning("leftover_kept", segment=str(leftover.id), error=str(error))
        else:
            self._leftovers.remove(leftover)

    def _open_ahead(self, now_s: float) -> None:
        self._number += 1
        try:
            self._ahead = Segment(
                self._files,
                SegmentId(self._instance, self._number),
                self._compression_level,
                is_synced=self._is_synced,
            )
        except OSError as error:
            self._opening.failed(now_s)
            log.error("open_failed", error=str(error), retry_s=self._opening.at_s - now_s)
        else:
            self._opening.reset()
