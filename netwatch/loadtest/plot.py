"""The plots of a summary: how long answers took, and how many reports were stored in each second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import use
from matplotlib.figure import Figure

from netwatch.loadtest.summary import STEPS

use("agg")  # no display is needed


def draw(summary: dict[str, Any], path: Path) -> None:
    """Write the plots, in the format that the file's name says."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    figure.suptitle(
        "  ".join(f"{name} {value}" for name, value in summary["load"].items() if value), fontsize=9, wrap=True
    )
    latency, throughput = figure.subplots(2)

    bins = summary["histogram"]
    above = [below_ms / 10 ** (1 / STEPS) for below_ms, _ in bins]
    widths = [below_ms - above_ms for (below_ms, _), above_ms in zip(bins, above, strict=True)]
    latency.bar(above, [count for _, count in bins], widths, align="edge")
    latency.set(xscale="log", yscale="symlog", xlabel="ms", ylabel="requests", ylim=(0, None))
    for value_ms in summary["latency_ms"].values():
        latency.axvline(value_ms, color="black", linewidth=0.8)
    latency.set_title(
        "Latency: " + ", ".join(f"{name} {value_ms:g}" for name, value_ms in summary["latency_ms"].items())
    )

    seconds = range(max(1, int(summary["duration_s"])))  # the rest of the last one would look like a fall
    for name, each_s in summary["each_second"].items():
        counts = [each_s[second] if second < len(each_s) else 0 for second in seconds]
        if any(counts):
            throughput.step([*seconds, len(seconds)], [*counts, counts[-1]], where="post", label=name)
    throughput.set(xlabel="s", ylabel="reports/s", ylim=(0, None))
    throughput.set_title(f"Throughput: {summary['reports_per_s']:,} reports/s")
    throughput.legend()
    figure.savefig(path)
