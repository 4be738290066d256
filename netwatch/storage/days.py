"""Which days' directories were changed since the last look: whoever waits for sealed files lists only those."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from netwatch.storage import layout
from netwatch.storage.files import Files

_MTIME_GRAIN_S: Final = 0.05
"""Two changes of a directory closer than this may leave the same time of change."""


class Days:
    """The directories in ``reports/``."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._listed_ns: dict[str, int] = {}

    def changed(self) -> Iterator[str]:
        """The paths of those in which something was made or deleted since they came out last; list each at once."""
        for day in self._files.entries(layout.REPORTS):
            with contextlib.suppress(FileNotFoundError):
                changed_ns = day.stat().st_mtime_ns
                if changed_ns == self._listed_ns.get(day.name):
                    continue
                is_settled = time.time() - changed_ns / 1e9 > _MTIME_GRAIN_S
                yield f"{layout.REPORTS}/{day.name}"
                self._listed_ns[day.name] = changed_ns if is_settled else 0
