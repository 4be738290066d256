"""The writer: the only process that writes in the data directory. Take what the links hold, commit, ack, then the rest.

Nothing in its loop waits for one client, and nothing is answered before it is safe.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

from netwatch import log, process
from netwatch.errors import StartError
from netwatch.metrics import table
from netwatch.metrics.board import Meter
from netwatch.queue import STORED, Batch, Inbox, Stored
from netwatch.reports import ID, line_count
from netwatch.settings import Settings
from netwatch.storage.files import Files
from netwatch.storage.retention import Retention
from netwatch.storage.store import RESEND_S, Store, Unstored
from netwatch.storage.window import Window

HEARTBEAT_S: Final = 1.0
REFUSAL_LASTS_S: Final = 5.0
"""The server is not ready so long after a commit that failed, unless another succeeds."""


class Writer:
    """Commits what ``inbox`` holds to ``store`` until it is drained.

    ``on_link`` is called at the first link, ``on_beat`` now and then while the loop runs.
    """

    def __init__(
        self,
        inbox: Inbox,
        store: Store,
        *,
        drain_s: float,
        on_link: Callable[[], None],
        on_beat: Callable[[], None] = lambda: None,
        meter: Meter | None = None,
    ) -> None:
        self._inbox = inbox
        self._store = store
        self._meter = meter or Meter()
        self._drain_s = drain_s
        self._on_link: Callable[[], None] | None = on_link
        self._on_beat = on_beat
        self._stop_at_s: float | None = None
        self._is_seal_due = False
        self._heartbeat_at_s = 0.0
        self._refusal = STORED
        self._refused_at_s = float("-inf")

    def drain(self) -> None:
        """Take what the links still send until the last one is closed or the time is over; then end :meth:`run`."""
        self._stop_at_s = self._stop_at_s or time.monotonic() + self._drain_s

    def seal(self) -> None:
        """Seal the open segment after the next commit or at once."""
        self._is_seal_due = True

    def run(self) -> bool:
        """The loop; False if something had to be left: a link, or a segment for the next start to recover."""
        while True:
            stop_at_s = self._stop_at_s  # a wait that the signal has cut short may not have looked at the links
            group = self._inbox.receive(self._timeout_s(time.monotonic()))
            if group:
                self._commit(group)
            now_s = time.monotonic()
            if self._is_seal_due:
                self._is_seal_due = False
                self._store.seal("asked")
            self._store.tend(now_s)
            self._beat(now_s)
            if stop_at_s and (not self._inbox or now_s >= stop_at_s):
                is_drained = not self._inbox
                self._inbox.close()
                return self._store.close(time.monotonic()) and is_drained

    def _timeout_s(self, now_s: float) -> float:
        if self._is_seal_due:
            return 0.0
        if self._stop_at_s:
            return 0.01 if self._inbox else 0.0
        return min(self._store.due_in_s(now_s), max(self._heartbeat_at_s - now_s, 0.0))

    def _commit(self, group: list[Batch]) -> None:
        now_s = time.monotonic()
        lines: list[bytes | bytearray] = []
        answers: list[tuple[Batch, list[Stored]]] = []
        claims: dict[bytes, str] = {}
        for batch in group:
            if batch.is_resend and now_s - batch.first_sent_s > RESEND_S:
                self._inbox.answer(batch, "unknown")
                continue
            try:
                new, results = self._new(batch, claims, now_s)
            except Unstored as error:
                self._inbox.answer(batch, error.code)
                continue
            lines += new
            answers.append((batch, results))
        outcome = STORED
        if any(lines):
            try:
                self._store.commit(lines, now_s)
                self._count_commit(len(answers), lines)
                self._refusal = STORED
            except Unstored as error:
                outcome = error.code
                self._meter.add(table.COMMIT_ERRORS, labels=(outcome,))
                if error.__cause__:  # the disk failed: only another try can tell how it is now
                    self._refusal = "disk_error" if outcome == "unknown" else outcome
                    self._refused_at_s = now_s
        if outcome == STORED:
            self._store.window.claim(claims, now_s)
        for batch, results in answers:
            self._inbox.answer(batch, outcome, results)

    def _count_commit(self, batches: int, lines: list[bytes | bytearray]) -> None:
        meter = self._meter
        meter.add(table.COMMITS)
        meter.observe(table.COMMIT_BATCHES, batches)
        meter.observe(table.COMMIT_LINES, sum(map(line_count, lines)))
        meter.observe(table.COMMIT_BYTES, sum(map(len, lines)))
        meter.set(table.LAST_COMMIT_AT, time.time_ns())

    def _new(
        self, batch: Batch, claims: dict[bytes, str], now_s: float
    ) -> tuple[list[bytes | bytearray], list[Stored]]:
        """Those of the batch's lines that are not stored yet, and what its requests with a key get.

        Adds the keys to ``claims``. Raises :class:`Unstored` while it cannot be told what is stored.
        """
        if not batch.is_resend and not batch.keyed:
            return [batch.lines], []
        new: list[bytes | bytearray] = []
        results = []
        position = 0
        own_claims: dict[bytes, str] = {}
        for key, start, end in [*batch.keyed, (b"", len(batch.lines), len(batch.lines))]:
            between = batch.lines[position:start]
            new.append(self._store.missing(between, batch.first_sent_s) if batch.is_resend else between)
            position = end
            if not key:
                break
            own = batch.lines[start:end]
            if first_id := self._store.window.first_id(key, now_s) or claims.get(key) or own_claims.get(key):
                results.append(Stored(0, first_id))
                continue
            missing = self._store.missing(own, 0.0)
            new.append(missing)
            own_claims[key] = own[ID].decode()
            # what a resend finds stored, the writer before this one stored for the very same request
            results.append(Stored(line_count(own if batch.is_resend else missing), own_claims[key]))
        claims |= own_claims
        return new, results

    def _beat(self, now_s: float) -> None:
        if self._on_link and self._inbox:
            self._on_link()
            self._on_link = None
        elif now_s < self._heartbeat_at_s:
            return
        self._heartbeat_at_s = now_s + HEARTBEAT_S
        self._on_beat()
        outlook = self._refusal if now_s - self._refused_at_s < REFUSAL_LASTS_S else STORED
        try:
            self._store.require_room()
        except Unstored as error:
            outlook = error.code
        self._inbox.heartbeat(outlook)
        self._store.take_stock()
        self._meter.set(table.SIGN_OF_LIFE_AT, time.time_ns())


def run(
    settings: Settings,
    root: int,
    listener: socket.socket,
    notify: Callable[[str], None],
    instance: str,
    deaths: Mapping[str, float],
    *,
    meter: Meter,
    on_beat: Callable[[], None],
) -> bool:
    """Be the writer of the data directory open as ``root``, for the links that come in on ``listener``.

    ``instance`` names this process in its files; ``deaths`` says when (monotonic) the writers before it died;
    ``meter`` is what it counts in; ``on_beat`` is called every now and then as long as it works.

    Calls ``notify("recovered")`` when it takes batches and ``notify("linked")`` at the first link. SIGTERM drains,
    SIGUSR1 seals. Returns whether everything was sealed. Raises :class:`StartError` when it cannot start.
    """
    process.set_title("writer")
    os.umask(0o027)
    store = Store(
        Files(root, meter),
        Window(settings.idempotency_window_s, settings.idempotency_keys),
        instance=instance,
        deaths=deaths,
        retention=Retention(
            Files(root),
            max_days=settings.retention_days,
            max_bytes=settings.retention_bytes,
            only_shipped=settings.retention_only_shipped,
            meter=meter,
        ),
        compression_level=settings.compression_level,
        seal_bytes=settings.seal_bytes,
        seal_after_s=settings.seal_after_s,
        min_free_bytes=settings.min_free_bytes,
        is_synced=settings.durability == "synced",
        meter=meter,
    )
    wakeup, signalled = os.pipe()
    os.set_blocking(signalled, False)
    os.set_blocking(wakeup, False)
    listener.setblocking(False)
    inbox = Inbox(listener, wakeup, max_batch_bytes=settings.max_batch_bytes, group_bytes=settings.commit_bytes)
    writer = Writer(
        inbox,
        store,
        drain_s=settings.drain_timeout_s + 4,
        on_link=lambda: notify("linked"),
        on_beat=on_beat,
        meter=meter,
    )
    signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: writer.drain())
    signal.signal(signal.SIGUSR1, lambda *_: writer.seal())
    on_beat()
    try:
        store.start(time.monotonic())
    except OSError as error:
        raise StartError(
            f"Cannot write in the data directory {settings.data_dir}: {error.strerror} ({error.filename or 'open/'}). "
            "Give the server a directory that it may write to (--data-dir)."
        ) from None
    log.info("writer_started", data_dir=str(settings.data_dir.absolute()))
    notify("recovered")
    is_clean = writer.run()
    (log.info if is_clean else log.error)("writer_stopped", everything_sealed=is_clean)
    return is_clean
