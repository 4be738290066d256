"""What systemd is told of the server, over the socket that it names (sd_notify(3)); nothing where there is none.

Only the supervisor speaks: the socket's name and the watchdog's are taken out of the environment of its children.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

_SEND_S: Final = 1.0
"""A service manager that does not take a message for so long goes without it."""
_STATUS_S: Final = 10.0
"""The figures of the status are renewed so often."""


class Systemd:
    """The service manager, if ``environ`` names one; its variables are taken out of ``environ``."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = environ.pop("WATCHDOG_USEC", "")
        is_for_us = environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog_s = int(watchdog_us) / 1e6 if watchdog_us.isdecimal() and is_for_us else 0.0
        self._state = ""
        self._status = ""
        self._status_at_s = float("-inf")
        self._alive_at_s = float("-inf")
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(_SEND_S)
            self._address = "\0" + address[1:] if address.startswith("@") else address

    def close(self) -> None:
        """Say no more."""
        if self._socket:
            self._socket.close()
            self._socket = None

    @property
    def renew_s(self) -> float | None:
        """How often :meth:`tell` must be called; None when it need not."""
        if not self._socket:
            return None
        return min(_STATUS_S, self._watchdog_s / 3) if self._watchdog_s else _STATUS_S

    def tell(self, state: str, status: Callable[[], str], *, is_alive: bool) -> None:
        """Say what is new. ``state`` is starting, READY, RELOADING or STOPPING; ``status`` makes a line for people.

        While the server is not ``is_alive``, the watchdog hears nothing.
        """
        now_s = time.monotonic()
        words = []
        if state != self._state:
            self._state = state
            if state != "starting":
                words.append(f"{state}=1")
            if state == "RELOADING":
                words.append(f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        if self._socket and (words or now_s >= self._status_at_s + _STATUS_S):
            self._status_at_s = now_s
            if (text := status()) != self._status:
                self._status = text
                words.append(f"STATUS={text}")
        if self._watchdog_s and is_alive and now_s >= self._alive_at_s + self._watchdog_s / 6:
            self._alive_at_s = now_s
            words.append("WATCHDOG=1")
        if self._socket and words:
            with contextlib.suppress(OSError):  # it is being restarted, or is gone
                self._socket.sendto("\n".join(words).encode(), self._address)
