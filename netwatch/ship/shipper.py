"""The loop: look for sealed segments, deliver them, mark each that was seen in the bucket.

While tries fail only one is made at a time, later and later; what cannot be shipped holds up no other. All that it
knows stands in the files' marks and in the bucket, so it can be killed at any instant.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from netwatch import log
from netwatch.metrics.board import Meter
from netwatch.ship import delivery, metrics
from netwatch.ship.backlog import Backlog
from netwatch.ship.delivery import Conflict, Failed
from netwatch.ship.pace import Backoff, Bandwidth
from netwatch.storage import layout, shipped
from netwatch.storage.files import Files

if TYPE_CHECKING:
    from obstore.store import S3Store

_LOOK_EVERY_S: Final = 1.0
_CONFLICT_AGAIN_S: Final = 600.0
_DISK_AGAIN_S: Final = 60.0
_ONCE_FAILURES: Final = 5
"""With ``is_once``, so many failures in a row end it."""
_NO_USE: Final = ("denied", "no_bucket")
"""Failures that end it at once: only the operator can do something about them."""


class Shipper:
    """Ships what ``backlog`` has to ``store``, which is the bucket ``name`` in the marks.

    ``parallel`` objects at a time. ``on_end`` hears the size of each that is shipped; ``before_log`` is called before
    each line of the log.
    """

    def __init__(
        self,
        files: Files,
        backlog: Backlog,
        store: S3Store,
        name: str,
        *,
        parallel: int,
        bandwidth: Bandwidth,
        backoff: Backoff,
        meter: Meter,
        is_again: bool = False,
        before_log: Callable[[], None] = lambda: None,
        on_end: Callable[[int], None] = lambda _bytes: None,
    ) -> None:
        self._files = files
        self._backlog = backlog
        self._store = store
        self._name = name
        self._parallel = parallel
        self._bandwidth = bandwidth
        self._backoff = backoff
        self._meter = meter
        self._is_again = is_again
        self._before_log = before_log
        self._on_end = on_end
        self._is_hopeless = False
        self._conflicts = set[str]()
        self._aside: dict[str, float] = {}
        """When (monotonic) to look again at what an operator must mend: conflicts, and files that cannot be read."""

    async def run(self, *, is_once: bool) -> None:
        """Ship, for ever or until nothing waits that could be shipped. Raises OSError without a data directory."""
        tasks = set[asyncio.Task[None]]()
        while True:
            self._backlog.look()
            now_s = time.monotonic()
            self._look_aside(now_s)
            while len(tasks) < (1 if self._backoff.failures else self._parallel) and now_s >= self._backoff.at_s:
                path = self._backlog.next()
                if path is None:
                    break
                tasks.add(asyncio.create_task(self._ship(path)))
            if is_once and not tasks and self._is_over():
                return
            wait_s = min(_LOOK_EVERY_S, max(self._backoff.at_s - now_s, 0.0) or _LOOK_EVERY_S)
            if tasks:
                done, tasks = await asyncio.wait(tasks, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # a fault of ours must not go on unseen
            else:
                await asyncio.sleep(wait_s)

    def take_stock(self) -> None:
        """Bring up to date what the meter says of what waits."""
        self._meter.set(metrics.WAITING, len(self._backlog.waiting))
        self._meter.set(metrics.WAITING_BYTES, sum(self._backlog.waiting.values()))
        self._meter.set(metrics.OLDEST_WAITING, int(self._backlog.oldest_s()))
        self._meter.set(metrics.CONFLICTS, len(self._conflicts))

    def _is_over(self) -> bool:
        """Whether another try now would be of no use."""
        is_stuck = self._is_hopeless or self._backoff.failures >= _ONCE_FAILURES
        return is_stuck or len(self._backlog.waiting) == len(self._aside)

    def _look_aside(self, now_s: float) -> None:
        """Give those their turn again whose time has come, and forget those that are gone."""
        for path, at_s in list(self._aside.items()):
            if path not in self._backlog.waiting:
                self._forget(path)
            elif now_s >= at_s:
                del self._aside[path]
                self._backlog.postpone(path)

    async def _ship(self, path: str) -> None:
        try:
            fd = self._files.open_for_reading(path)
        except FileNotFoundError:  # pruned, or deleted by somebody
            self._forget(path)
            return
        except OSError as error:
            self._disk_failed(path, error)
            return
        try:
            size_bytes, digest = await self._delivered(path, fd)
            shipped.mark(self._files, fd, self._name, digest)
        except Failed as failed:
            self._failed(path, failed.kind, str(failed))
        except OSError as error:
            self._disk_failed(path, error)
        except Conflict as conflict:
            self._conflicts.add(path)
            self._aside[path] = time.monotonic() + _CONFLICT_AGAIN_S
            self._before_log()
            log.error("ship_conflict", path=path, bucket=self._name, detail=str(conflict))
        else:
            self._forget(path)
            self._backoff.succeeded()
            self._is_hopeless = False
            self._meter.add(metrics.SHIPPED)
            self._meter.add(metrics.SHIPPED_BYTES, size_bytes)
            self._meter.set(metrics.SUCCEEDED_AT, time.time_ns())
            self._before_log()
            log.info("segment_shipped", path=path, bucket=self._name, bytes=size_bytes, sha256=digest)
            self._on_end(size_bytes)
        finally:
            self._files.close(fd)

    async def _delivered(self, path: str, fd: int) -> tuple[int, str]:
        """Bring the open file into the bucket; its size and digest."""
        data = await asyncio.to_thread(_content, fd)
        key = path.removeprefix(f"{layout.REPORTS}/")
        if self._is_again:
            try:
                return len(data), await delivery.verified(self._store, key, data)
            except Failed as failed:
                if failed.kind != "missing":
                    raise
        await asyncio.sleep(self._bandwidth.wait_s(len(data), time.monotonic()))
        return len(data), await delivery.deliver(self._store, key, data)

    def _failed(self, path: str, kind: str, reason: str) -> None:
        self._backlog.postpone(path)
        wait_s = self._backoff.failed(time.monotonic())
        self._meter.add(metrics.FAILURES, labels=(kind,))
        self._before_log()
        self._is_hopeless = kind in _NO_USE
        members = {"path": path, "bucket": self._name, "kind": kind, "error": reason, "retry_s": round(wait_s, 1)}
        if self._is_hopeless:
            log.error("ship_refused", **members)
        else:
            log.warning("ship_failed", **members)

    def _disk_failed(self, path: str, error: OSError) -> None:
        """The store is not at fault: the others go on as they were."""
        self._aside[path] = time.monotonic() + _DISK_AGAIN_S
        self._meter.add(metrics.FAILURES, labels=("disk",))
        self._before_log()
        log.warning("ship_failed", path=path, kind="disk", error=str(error), retry_s=_DISK_AGAIN_S)

    def _forget(self, path: str) -> None:
        self._backlog.done(path)
        self._aside.pop(path, None)
        self._conflicts.discard(path)


def _content(fd: int) -> bytes:
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        return file.read()
