"""The bytes of the requests that one worker works on: bounded, shared fairly between clients, a part kept for pages.

A request counts from its Content-Length to its answer. Pages have a reserved part because a refusal loses their
reports, while shippers try again.
"""

from __future__ import annotations

from typing import Final

from netwatch.errors import Overloaded
from netwatch.metrics import table
from netwatch.metrics.board import Meter

_RETRY_AFTER_S: Final = 1
_ROOM: Final = 16
"""This part of the limit comes on top for clients that hold little: one with slow bodies could shut out all others."""
_LITTLE: Final = 256
"""A client that holds no more than this part of the limit holds little."""


class InFlight:
    """Counts bytes. ``limit_bytes`` bounds all, ``reserved_bytes`` of it are for pages; ``meter`` shows them."""

    def __init__(self, limit_bytes: int, reserved_bytes: int, meter: Meter | None = None) -> None:
        self._meter = meter or Meter()
        self._meter.set(table.IN_FLIGHT_LIMIT_BYTES, limit_bytes)
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._open_bytes = limit_bytes - reserved_bytes
        self._clients: dict[str, int] = {}
        self._cell = self._meter.place(table.IN_FLIGHT_BYTES)

    def take(self, client: str, size: int, *, is_page: bool) -> None:
        """Count ``size`` more bytes for ``client``, or raise :class:`Overloaded` at once."""
        if not size:  # or whoever waits with an empty body would halve the share of the others
            return
        clients = self._clients
        held = clients.get(client, 0)
        if (self.bytes + size) * (len(clients) + 1) > self._open_bytes:  # else all of it is less than a share
            self._demand_room(held, size, is_page=is_page)
        self.bytes += size
        clients[client] = held + size
        self._meter.cells[self._cell] = self.bytes

    def _demand_room(self, held: int, size: int, *, is_page: bool) -> None:
        limit = self.limit_bytes if is_page else self._open_bytes
        holds_little = held + size <= self.limit_bytes // _LITTLE
        if self.bytes + size > limit + (self.limit_bytes // _ROOM if holds_little else 0):
            raise Overloaded("overloaded", f"More than {limit} bytes would be in flight.", retry_after_s=_RETRY_AFTER_S)
        if held and len(self._clients) > 1 and held + size > limit // len(self._clients):
            raise Overloaded(
                "over_share", "This client has more than its share in flight.", retry_after_s=_RETRY_AFTER_S
            )

    def give(self, client: str, size: int) -> None:
        """The answer is made: ``size`` bytes less."""
        if not size:  # who holds nothing is not counted
            return
        self.bytes -= size
        self._meter.cells[self._cell] = self.bytes
        if left := self._clients[client] - size:
            self._clients[client] = left
        else:
            del self._clients[client]
