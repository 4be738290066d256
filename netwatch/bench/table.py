"""Medians and their ratios, as a reStructuredText table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from netwatch.bench.rounds import Cell, Round, count


class Metric(NamedTuple):
    heading: str
    form: str
    compared: bool = True


METRICS = {
    "requests_per_s": Metric("requests/s", ",.0f"),
    "reports_per_s": Metric("reports/s", ",.0f"),
    "mb_per_s": Metric("MB/s", ".1f"),
    "p50_ms": Metric("p50 ms", ".2f"),
    "p99_ms": Metric("p99 ms", ".2f"),
    "p999_ms": Metric("p99.9 ms", ".2f"),
    "cpu_us": Metric("CPU µs", ".1f"),
    "pss_mb": Metric("RSS MB", ".0f"),
    "disk_bytes": Metric("disk B", ",.0f"),
    "compression": Metric("zstd", ".1f"),
}
NOTE = """\
Medians of the rounds, and netwatch's as a multiple of the peer's. Durability and workers are netwatch's. CPU µs: user
and system time of all server processes for each report, until the last of them has ended. RSS: memory of all of them,
shared pages counted once, in the middle of a round. disk B: bytes written to the disk for each report, in whole pages,
without the file system's journal. zstd: the files' compression ratio. by process: connections of each that takes any.
Latency at full load tells how many connections there were more than how fast a server is; the open loop's is the one to
compare.
"""


def medians(rounds: Iterable[Round], server: str, cell: Cell) -> dict[str, float]:
    """The median of each figure over the rounds that are not void; empty when there is none."""
    valid = [
        measured.figures
        for measured in rounds
        if (measured.server, measured.cell) == (server, cell) and not measured.void
    ]
    return {
        name: statistics.median(figures[name] for figures in valid if name in figures)
        for name in dict.fromkeys(name for figures in valid for name in figures)
    }


def others_cpu_share(rounds: Iterable[Round]) -> float:
    """Processors that other programs used meanwhile, as the median of the rounds; 0 when there is none."""
    shares = [measured.figures["others_cpu_share"] for measured in rounds if not measured.void]
    return statistics.median(shares) if shares else 0.0


def ratios(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    return {name: ours[name] / theirs[name] for name in ours if theirs.get(name)}


def in_order(rounds: Iterable[Round]) -> tuple[list[str], list[Cell]]:
    """The servers and the cells, each as it first came."""
    rounds = list(rounds)
    servers = sorted({measured.server for measured in rounds}, key=lambda name: name != "netwatch")
    return servers, list(dict.fromkeys(measured.cell for measured in rounds))


def table(rounds: Sequence[Round]) -> str:
    """For each cell a row of each server, and one of the ratios."""
    servers, cells = in_order(rounds)
    lines = []
    for cell in cells:
        name = short_label(cell, cells)
        found = {server: medians(rounds, server, cell) for server in servers}
        for server in servers:
            lines.append([name, server, *_cells(found[server], rounds, server, cell)])
            name = r"\ "  # an empty first cell would continue the row above
        if len(servers) == 2:
            compared = ratios(found[servers[0]], found[servers[1]])
            lines.append(
                [name, "ratio", *(f"{compared[metric]:.2f} ×" if metric in compared else "" for metric in METRICS), ""]
            )
    headings = ["", "", *(metric.heading for metric in METRICS.values()), "by process"]
    return f"{_shared(cells)}\n\n{grid(headings, lines, names=2)}\n\n{NOTE}"


def grid(headings: Sequence[str], rows: Sequence[Sequence[str]], names: int) -> str:
    """A simple table of reStructuredText; so many columns of names to the left, then the figures, to the right."""
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    rule = "  ".join("=" * max(width, 2) for width in widths)

    def line(row: Sequence[str]) -> str:
        placed = [
            cell.ljust(width) if column < names else cell.rjust(max(width, 2))
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(placed).rstrip()

    head = [cell or "\\ " for cell in headings]
    return "\n".join([rule, line(head), rule, *map(line, rows), rule])


def _cells(found: dict[str, float], rounds: Iterable[Round], server: str, cell: Cell) -> list[str]:
    if not found:
        return ["void", *[""] * len(METRICS)]
    spreads = [r.connections for r in rounds if (r.server, r.cell) == (server, cell) and not r.void]
    spread = sorted(spreads)[len(spreads) // 2]
    return [
        *(format(found[name], metric.form) if name in found else "–" for name, metric in METRICS.items()),
        " + ".join(map(str, spread)),
    ]


def varies(cells: Iterable[Cell], name: str) -> bool:
    return len({getattr(cell, name) for cell in cells}) > 1


def short_label(cell: Cell, cells: Sequence[Cell]) -> str:
    """What tells this cell from the others."""
    parts = [cell.size]
    parts += [cell.durability] if varies(cells, "durability") else []
    parts += [f"{cell.workers} w"] if varies(cells, "workers") else []
    parts += [f"{cell.connections} c"] if varies(cells, "connections") else []
    parts += [f"open loop, {cell.rate_per_s:.0f}/s"] if cell.rate_per_s else []
    return ", ".join(parts)


def _shared(cells: Sequence[Cell]) -> str:
    """A sentence with what all cells have in common, and the meaning of the letters in `short_label`."""
    first = cells[0]
    parts = [
        "durability" if varies(cells, "durability") else f"durability ``{first.durability}``",
        "workers (w)" if varies(cells, "workers") else count(first.workers, "worker"),
        "connections (c)" if varies(cells, "connections") else count(first.connections, "connection"),
    ]
    return f"{parts[0].capitalize()}, {parts[1]}, {parts[2]}."
