"""Long pieces of work on a worker's loop, taken in turns so that no request waits for another's."""

from __future__ import annotations

import asyncio
import time
from typing import Final

_TURN_S: Final = 0.005


class Turn:
    """A long piece of work gives way to other requests now and then."""

    def __init__(self) -> None:
        self._ends_s = time.monotonic() + _TURN_S

    @property
    def is_over(self) -> bool:
        """Whether it has lasted long enough: then :meth:`give_way`."""
        return time.monotonic() > self._ends_s

    async def give_way(self) -> None:
        """Let others run, and begin a new turn."""
        await asyncio.sleep(0)
        self._ends_s = time.monotonic() + _TURN_S
