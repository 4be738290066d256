"""Prints the README's table of the metrics: ``python -m netwatch.metrics``."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

from netwatch.metrics.table import METRICS, Metric

_TEXT_WIDTH: Final = 60


def readme_table(metrics: Sequence[Metric] = METRICS) -> str:
    """The table as reStructuredText."""
    rows = [(f"``{metric.name.removeprefix('netwatch_')}``", metric.kind, _text(metric)) for metric in metrics]
    widths = [max(len(row[0]) for row in rows), max(len(row[1]) for row in rows), _TEXT_WIDTH]
    rule = "  ".join("=" * width for width in widths)
    lines = [rule, _line(("Metric", "Type", "What it says, and what to do"), widths), rule]
    for name, kind, text in rows:
        first, *more = textwrap.wrap(text, _TEXT_WIDTH, break_long_words=False, break_on_hyphens=False)
        lines.append(_line((name, kind, first), widths))
        lines += [_line(("", "", part), widths) for part in more]
    return "\n".join([*lines, rule, ""])


def _text(metric: Metric) -> str:
    labels = (*(("worker",) if metric.is_per_worker else ()), *metric.labels)
    by = f" By {', '.join(f'``{label}``' for label in labels)}." if labels else ""
    return f"{metric.help}{by} *{metric.advice}*" if "``" not in metric.advice else f"{metric.help}{by} {metric.advice}"


def _line(cells: tuple[str, str, str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


if __name__ == "__main__":
    print(readme_table(), end="")
