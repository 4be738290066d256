"""A bar on a terminal's stderr that says how far a long command is; elsewhere it says nothing."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Final

MIB: Final = 1024 * 1024
_SHOW_EVERY_S: Final = 0.1
_BAR: Final = 24


class Progress:
    """How much of ``total_bytes`` is done, drawn at most some times a second."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = max(total_bytes, 1)
        self._done_bytes = 0
        self._what = ""
        self._is_shown = sys.stderr.isatty()
        self._started_at_s = time.monotonic()
        self._show_at_s = self._started_at_s + _SHOW_EVERY_S

    def begin(self, what: str) -> None:
        """From now on it is about ``what``."""
        self._what = what

    def end(self, size_bytes: int) -> None:
        """That is done, and had so many bytes."""
        self._done_bytes += size_bytes

    def at(self, position_bytes: int) -> None:
        """So much of it is done."""
        now_s = time.monotonic()
        if not self._is_shown or now_s < self._show_at_s:
            return
        done_bytes = self._done_bytes + position_bytes
        self._show_at_s = now_s + _SHOW_EVERY_S
        share = min(done_bytes / self._total_bytes, 1.0)
        took_s = now_s - self._started_at_s
        left_s = took_s / share - took_s if share else 0.0
        bar = "█" * round(share * _BAR) + "░" * (_BAR - round(share * _BAR))
        text = (
            f"{bar} {share:4.0%}  {done_bytes / MIB:.0f} of {self._total_bytes / MIB:.0f} MiB, "
            f"{done_bytes / took_s / MIB:.0f} MiB/s, {left_s // 60:.0f}:{left_s % 60:02.0f} left  {self._what}"
        )
        sys.stderr.write(f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the bar away, to print something else or because all is done."""
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._show_at_s = 0.0
