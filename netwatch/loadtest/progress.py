"""One line on a terminal that says how far a run is; nothing anywhere else."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TextIO

from netwatch.loadtest.client import Load
from netwatch.loadtest.summary import percentiles_ms

_EVERY_S = 0.5
_WIDTH = 24


async def show(load: Load, duration_s: float, terminal: TextIO) -> None:
    """Write until cancelled, then take the line away."""
    tally = load.tally
    seen_total = reports_total = 0
    seen_s = time.monotonic()
    try:
        while True:
            await asyncio.sleep(_EVERY_S)
            now_s, now_total = time.monotonic(), tally.reports[200]
            recent = tally.latencies_s[seen_total:]
            seen_total += len(recent)
            slow_ms = percentiles_ms(recent).get("p99", 0.0)
            others = tally.requests.total() - tally.requests[200] - tally.bad_requests_total
            spent_s = now_s - load.start_s
            shown = (
                f"{bar(spent_s / duration_s)} {spent_s:.0f}/{duration_s:.0f} s  "
                f"{(now_total - reports_total) / (now_s - seen_s):,.0f} reports/s  p99 {slow_ms:.1f} ms"
                + (f"  other than 200: {others:,}" if others else "")
                + (f"  sent again: {tally.retried.total():,}" if tally.retried else "")
            )
            seen_s, reports_total = now_s, now_total
            terminal.write(f"\r\x1b[K{shown[: shutil.get_terminal_size().columns - 1]}")
            terminal.flush()
    finally:
        terminal.write("\r\x1b[K")
        terminal.flush()


def bar(share: float) -> str:
    done = min(round(share * _WIDTH), _WIDTH)
    return "█" * done + "░" * (_WIDTH - done)
