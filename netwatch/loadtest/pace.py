"""When requests are due: evenly, so many a second, however long the server takes to answer (an open loop).

A request waits for its time, never the time for the request: what a stall delays is overdue, and its latency says so.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import time
from collections import deque

_SHORTEST_S = 50e-6  # more often the timer need not wake us: each time all that is due is let go
_LONGEST_S = 0.1


class Pace:
    """Hands out times, `rate` of them a second from `start_s` on, each when it has come, until `until_s`."""

    def __init__(self, rate: float, start_s: float, until_s: float) -> None:
        self.until_s = until_s  # may be set to less at any time
        self._rate, self._start_s = rate, start_s
        self._taken_total = 0
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        # uvloop's own timers count whole milliseconds, and end up to half of one too early.
        self._timer = _timer(min(max(1 / rate, _SHORTEST_S), _LONGEST_S))
        asyncio.get_running_loop().add_reader(self._timer, self._tick)

    async def turn(self) -> float:
        """The next request's time, not before it has come; one after the end is returned at once."""
        due_s = self._start_s + self._taken_total / self._rate
        self._taken_total += 1
        if time.monotonic() < due_s < self.until_s:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append((due_s, waiter))
            await waiter
        return due_s

    def close(self) -> int:
        """How many requests were due before the end."""
        asyncio.get_running_loop().remove_reader(self._timer)
        os.close(self._timer)
        return math.ceil((min(self.until_s, time.monotonic()) - self._start_s) * self._rate - 1e-6)

    def _tick(self) -> None:
        os.read(self._timer, 8)
        now_s = time.monotonic()
        while self._waiting and (self._waiting[0][0] <= now_s or self.until_s <= now_s):
            waiter = self._waiting.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)


def _timer(interval_s: float) -> int:
    """A descriptor that can be read at each interval: a timerfd, which os has from Python 3.13 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_CLOEXEC | os.O_NONBLOCK)
    interval = divmod(round(interval_s * 1e9), 10**9)
    if descriptor < 0 or libc.timerfd_settime(descriptor, 0, (ctypes.c_long * 4)(*interval, *interval), None):
        raise OSError(ctypes.get_errno(), "no timer")
    return descriptor
