"""Takes a worker's connections from a listening socket, and leaves the others their share.

Whichever worker is awake when clients connect would take all of them: of 32 connections, up to 31 were seen in one of
two workers, which is half of the server. So a worker takes as many as it lacks of its share; one that has it waits a
moment, and takes one that nobody else has.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from socket import IPPROTO_TCP, TCP_NODELAY, socket
from typing import Any, Final

_WAIT_S: Final = 0.005
"""Another worker that is not busy takes a connection sooner."""
_AT_ONCE: Final = 64
_NO_DESCRIPTORS_S: Final = 0.1


class Acceptor:
    """Makes a protocol for each connection. ``wanted`` says how many it should take now, 0 if others should have them.

    With ``tls`` a connection has its protocol only after the handshake, so that is bounded here: it may take
    ``handshake_timeout_s``, and what comes while ``max_handshakes`` are under way is closed.
    """

    def __init__(
        self,
        listener: socket,
        make_protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        wanted: Callable[[], int],
        *,
        handshake_timeout_s: float,
        max_handshakes: int,
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._how: dict[str, Any] = {"ssl": tls, "ssl_handshake_timeout": handshake_timeout_s} if tls else {}
        self._max_handshakes = max_handshakes
        self._wanted = wanted
        self._has_waited = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        self._loop = asyncio.get_running_loop()
        listener.setblocking(False)
        self._listen()

    def _listen(self) -> None:
        self._timer = None
        self._loop.add_reader(self._listener, self._on_connection)

    def _pause(self, for_s: float) -> None:
        self._loop.remove_reader(self._listener)
        self._timer = self._loop.call_later(for_s, self._listen)

    def _on_connection(self) -> None:
        wanted = min(self._wanted(), _AT_ONCE)
        if not wanted and not self._has_waited:
            self._has_waited = True
            self._pause(_WAIT_S)
            return
        self._has_waited = False
        try:
            for _ in range(max(wanted, 1)):
                self._take(self._listener.accept()[0])
        except (BlockingIOError, ConnectionAbortedError):  # another worker took it, or the client has gone
            return
        except OSError:  # no descriptors left
            self._pause(_NO_DESCRIPTORS_S)

    def _take(self, connection: socket) -> None:
        if self._how and len(self._tasks) >= self._max_handshakes:
            connection.close()
            return
        connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        task = self._loop.create_task(self._open(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, connection: socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection, **self._how)
        except OSError:  # it is gone, or its TLS handshake failed or took too long
            connection.close()

    def close(self) -> None:
        """Take no more."""
        self._loop.remove_reader(self._listener)
        if self._timer:
            self._timer.cancel()

    async def wait_closed(self) -> None:
        """Return once every connection that was taken has its protocol."""
        await asyncio.gather(*self._tasks)
