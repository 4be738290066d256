"""The same medians as a picture: throughput, CPU and p99 of each cell, with the range of the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from netwatch.bench.rounds import Cell, Round
from netwatch.bench.stay import Minute
from netwatch.bench.table import in_order, medians, short_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {
    "reports_per_s": "reports/s",
    "cpu_us": "CPU of a report, µs",
    "p99_ms": "p99, ms",
    "pss_mb": "RSS, MB",
}
COLOURS = ("tab:blue", "tab:orange")


def plot(path: Path, rounds: Sequence[Round], minutes: Sequence[Minute], title: str) -> None:
    """Write a picture of the type that the file's suffix names. ImportError without matplotlib."""
    from matplotlib.figure import Figure  # heavy, and an extra

    figure = Figure(figsize=(12, 8), layout="constrained")
    if minutes:
        _stay(figure.subplots(2, 1, sharex=True), minutes)
    else:
        servers, cells = in_order(rounds)
        for axes, (metric, heading) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
            for place, server in enumerate(servers):
                _bars(axes, rounds, server, cells, metric, place, len(servers))
            axes.set_title(heading)
            axes.set_yscale("log")
            axes.set_xticks(range(len(cells)), [short_label(cell, cells) for cell in cells], rotation=20, ha="right")
            axes.grid(axis="y", alpha=0.3)
            axes.legend()
    figure.suptitle(title)
    figure.savefig(path)


def _bars(
    axes: Axes, rounds: Sequence[Round], server: str, cells: Sequence[Cell], metric: str, place: int, servers: int
) -> None:
    width = 0.8 / servers
    for number, cell in enumerate(cells):
        figures = [r.figures[metric] for r in rounds if (r.server, r.cell) == (server, cell) and not r.void]
        if not figures:
            continue
        middle = medians(rounds, server, cell)[metric]
        axes.bar(
            number + (place - (servers - 1) / 2) * width,
            middle,
            width,
            yerr=[[middle - min(figures)], [max(figures) - middle]],
            color=COLOURS[place],
            capsize=3,
            label=server if number == 0 else None,
        )


def _stay(panels: Sequence[Axes], minutes: Sequence[Minute]) -> None:
    numbers = [minute.number for minute in minutes]
    panels[0].plot(numbers, [minute.requests_per_s for minute in minutes], marker="o")
    panels[0].set_ylabel("requests/s")
    panels[1].plot(numbers, [minute.pss_mb for minute in minutes], marker="o", color=COLOURS[1])
    panels[1].set_ylabel("RSS, MB")
    panels[1].set_xlabel("minute")
    for axes in panels:
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
