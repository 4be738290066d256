"""The text form of the metrics, as Prometheus reads it (exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from netwatch.metrics import table
from netwatch.metrics.board import Reading
from netwatch.metrics.table import HISTOGRAM, Metric, Part

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def render(reading: Reading) -> bytes:
    """Every metric with its help and type."""
    lines: list[str] = []
    for position, metric in enumerate(table.TERMS):
        lines += _head(metric)
        lines += [f'{metric.name}{{worker="{slot}"}} {terms[position]}' for slot, terms in reading.terms.items()]
    for metric in table.WORKER.metrics:
        lines += _head(metric)
        if metric.is_per_worker:
            for slot, cells in reading.workers.items():
                lines += _series(metric, cells, f'worker="{slot}"')
        else:
            lines += _series(metric, _sums(metric, reading.workers), "")
    lines += _part(table.WRITER, reading.writer) + _part(table.SUPERVISOR, reading.supervisor)
    return "\n".join([*lines, ""]).encode()


def render_part(part: Part, cells: Sequence[int]) -> bytes:
    """The metrics of a process that is no server's."""
    return "\n".join([*_part(part, cells), ""]).encode()


def _part(part: Part, cells: Sequence[int]) -> list[str]:
    return [line for metric in part.metrics for line in (*_head(metric), *_series(metric, cells, ""))]


def _head(metric: Metric) -> tuple[str, str]:
    return f"# HELP {metric.name} {metric.help.replace('``', '')}", f"# TYPE {metric.name} {metric.kind}"


def _sums(metric: Metric, workers: Mapping[int, Sequence[int]]) -> list[int]:
    """The cells of the metric, summed over the workers, where they stand."""
    end = metric.first + metric.cells_total
    sums = [sum(column) for column in zip(*(cells[metric.first : end] for cells in workers.values()), strict=True)]
    return [0] * metric.first + (sums or [0] * metric.cells_total)


def _series(metric: Metric, cells: Sequence[int], worker: str) -> Iterator[str]:
    for values, offset in metric.series.items():
        first = metric.first + offset
        if metric.is_sparse and not any(cells[first : first + metric.width]):
            continue
        pairs = [worker] if worker else []
        pairs += [f'{label}="{value}"' for label, value in zip(metric.labels, values, strict=True)]
        if metric.kind == HISTOGRAM:
            yield from _histogram(metric, cells[first : first + metric.width], pairs)
        else:
            yield f"{metric.name}{_braced(pairs)} {_number(cells[first], metric.unit)}"


def _histogram(metric: Metric, cells: Sequence[int], pairs: list[str]) -> Iterator[str]:
    *buckets, total = cells
    count = 0
    bounds = [*(_number(bound, metric.unit) for bound in metric.bounds), "+Inf"]
    for bound, bucket in zip(bounds, buckets, strict=True):
        count += bucket
        within = _braced([*pairs, f'le="{bound}"'])
        yield f"{metric.name}_bucket{within} {count}"
    yield f"{metric.name}_sum{_braced(pairs)} {_number(total, metric.unit)}"
    yield f"{metric.name}_count{_braced(pairs)} {count}"


def _braced(pairs: Sequence[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _number(cell: float, unit: float) -> str:
    return str(cell) if unit == 1 else f"{cell * unit:.9f}".rstrip("0").rstrip(".")
