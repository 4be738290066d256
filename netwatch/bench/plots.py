"""The same figures as a picture: the median of each cell, and the range of its rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from netwatch.bench.rounds import Cell, Round
from netwatch.bench.stay import Minute
from netwatch.bench.table import in_order, medians, short_label, varies

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {
    "reports_per_s": "reports/s",
    "cpu_us": "CPU µs a report",
    "p99_ms": "p99, ms",
    "pss_mb": "RSS, MB",
}


def plot(path: Path, rounds: Sequence[Round], minutes: Sequence[Minute], title: str) -> None:
    """Write a picture of the type that the file's suffix names. ImportError without matplotlib."""
    from matplotlib.figure import Figure  # heavy, and an extra

    figure = Figure(figsize=(12, 9), layout="constrained")
    if minutes:
        _stay(figure.subplots(2, 1, sharex=True), minutes)
    else:
        cells = in_order(rounds)[1]
        axis = next((name for name in ("connections", "workers") if varies(cells, name)), "")
        for axes, (metric, heading) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
            if axis:
                _lines(axes, rounds, metric, axis)
            else:
                _points(axes, rounds, metric)
            axes.set_title(heading)
            _logarithmic(axes)
            axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path)


def _points(axes: Axes, rounds: Sequence[Round], metric: str) -> None:
    """A point for each cell and server, side by side."""
    servers, cells = in_order(rounds)
    for number, server in enumerate(servers):
        places = [place + 0.16 * (number - (len(servers) - 1) / 2) for place in range(len(cells))]
        _draw(axes, rounds, metric, server, places, cells, server, "none")
    axes.set_xticks(range(len(cells)), [short_label(cell, cells) for cell in cells], rotation=15, ha="right")
    axes.set_xlim(-0.5, len(cells) - 0.5)


def _lines(axes: Axes, rounds: Sequence[Round], metric: str, axis: str) -> None:
    """A line along an axis for each server and combination of the others."""
    servers, cells = in_order(rounds)
    combinations: dict[Cell, list[Cell]] = {}
    for cell in cells:
        rest = replace(cell, connections=0) if axis == "connections" else replace(cell, workers=0)
        combinations.setdefault(rest, []).append(cell)
    for combination, along in combinations.items():
        for server in servers:
            label = f"{server}, {short_label(combination, list(combinations))}"
            _draw(axes, rounds, metric, server, [getattr(cell, axis) for cell in along], along, label, "-")
    axes.set_xlabel(axis)
    if axis == "connections":
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")


def _draw(
    axes: Axes,
    rounds: Sequence[Round],
    metric: str,
    server: str,
    places: Sequence[float],
    cells: Sequence[Cell],
    label: str,
    style: str,
) -> None:
    points = []
    for place, cell in zip(places, cells, strict=True):
        measured = [r.figures[metric] for r in rounds if (r.server, r.cell) == (server, cell) and not r.void]
        if measured:
            middle = medians(rounds, server, cell)[metric]
            points.append((place, middle, middle - min(measured), max(measured) - middle))
    if points:
        x, y, below, above = zip(*points, strict=True)
        axes.errorbar(x, y, yerr=[below, above], label=label, marker="o", linestyle=style, capsize=4)


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,.6g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _stay(panels: Sequence[Axes], minutes: Sequence[Minute]) -> None:
    numbers = [minute.number for minute in minutes]
    panels[0].plot(numbers, [minute.requests_per_s for minute in minutes], marker="o")
    panels[0].set_ylabel("requests/s")
    panels[1].plot(numbers, [minute.pss_mb for minute in minutes], marker="o")
    panels[1].set_ylabel("RSS, MB")
    panels[1].set_xlabel("minute")
    for axes in panels:
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
