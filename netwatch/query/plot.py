"""Draws an answer as a time series: over its first time, a panel for each number, a line for each text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from netwatch.errors import StartError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PANELS: Final = 6
_MOST_LINES: Final = 10
_Point = tuple[date, float]


def plot(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str, path: Path) -> None:
    """Write the picture, of the type that the file's name says. The first ten lines are drawn, and six panels.

    Raises :class:`StartError` where there is nothing to draw.
    """
    held = list(rows)
    if not held:
        raise StartError("There is nothing to draw: the answer has no rows.")
    kinds = [next((row[n] for row in held if row[n] is not None), None) for n in range(len(columns))]
    times = [n for n, kind in enumerate(kinds) if isinstance(kind, date)]
    numbers = [n for n, kind in enumerate(kinds) if isinstance(kind, int | float | Decimal) and kind is not True]
    texts = [n for n, kind in enumerate(kinds) if isinstance(kind, str)]
    if not times or not numbers:
        raise StartError("--plot needs rows with a time and a number in them: such as those of percentiles.", 2)
    from matplotlib import use
    from matplotlib.figure import Figure

    use("agg")  # no display is needed
    panels = numbers[:_MOST_PANELS]
    figure = Figure(figsize=(10, 1 + 2.5 * len(panels)), layout="constrained")
    for axes, number in zip(figure.subplots(len(panels), squeeze=False).flat, panels, strict=True):
        lines: dict[str, list[_Point]] = {}
        for row in held:
            if row[times[0]] is not None and row[number] is not None:
                label = " ".join(str(row[n]) for n in texts)
                lines.setdefault(label, []).append((row[times[0]], float(row[number])))
        _draw(axes, lines)
        axes.set_ylabel(columns[number])
    figure.suptitle(title)
    figure.autofmt_xdate()
    try:
        figure.savefig(path)
    except OSError as error:
        raise StartError(
            f"Cannot write {path}: {error.strerror}. "
            "Give --plot a file in a directory that is there and that you may write to."
        ) from None


def _draw(axes: Axes, lines: dict[str, list[_Point]]) -> None:
    for label, points in list(lines.items())[:_MOST_LINES]:
        axes.plot(*zip(*sorted(points), strict=True), label=label, marker=".", linewidth=1)
    if len(lines) > _MOST_LINES:
        axes.set_title(f"{_MOST_LINES} of {len(lines)}", fontsize="small")
    if any(lines):
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
