"""How fast the shipper goes: at most so many bytes a second, and slower and slower while nothing succeeds."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 60.0


class Bandwidth:
    """Lets through ``bytes_per_s`` on average, each object at once; 0 is without a bound."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at_s = 0.0

    def wait_s(self, size_bytes: int, now_s: float) -> float:
        """How long to wait before so many bytes are sent; they count as sent."""
        if not self._bytes_per_s:
            return 0.0
        at_s = max(self._free_at_s, now_s)
        self._free_at_s = at_s + size_bytes / self._bytes_per_s
        return at_s - now_s


class Backoff:
    """When to try again: after each failure in a row later, by a half to the whole of twice the last wait."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self.failures = 0
        """In a row."""
        self.at_s = 0.0

    def failed(self, now_s: float) -> float:
        """Note a failure; how long to wait now, in seconds."""
        longest_s = min(_FIRST_WAIT_S * 2.0 ** min(self.failures, 30), _LONGEST_WAIT_S)
        self.failures += 1
        wait_s = longest_s * (0.5 + self._jitter() / 2)  # many hosts must not come back all at once
        self.at_s = now_s + wait_s
        return wait_s

    def succeeded(self) -> None:
        """All is well again."""
        self.failures = 0
        self.at_s = 0.0
