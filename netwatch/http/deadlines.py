"""The deadlines of a worker's connections, looked at ten times a second: timers would cost every request two."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final, Protocol

NEVER: Final = float("inf")
_EVERY_S: Final = 0.1


class Due(Protocol):
    """A connection that does something when its time has come."""

    due_s: float

    def on_due(self) -> None:
        """The clock has passed ``due_s``."""


class Deadlines:
    """Calls ``on_due`` of each connection up to 0.2 s after its ``due_s``, and never before."""

    def __init__(self) -> None:
        self.now_s = 0.0
        """The loop's time, at most a tenth of a second old."""
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, loop: asyncio.AbstractEventLoop, connections: Collection[Due]) -> None:
        """Look at the connections until there are none any more."""
        if not self._timer:
            self._look(loop, connections)

    def _look(self, loop: asyncio.AbstractEventLoop, connections: Collection[Due]) -> None:
        now_s = self.now_s = loop.time()
        for connection in [connection for connection in connections if connection.due_s <= now_s - _EVERY_S]:
            connection.on_due()
        self._timer = loop.call_later(_EVERY_S, self._look, loop, connections) if connections else None
