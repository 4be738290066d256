"""A capacity plan from measured figures: what a number of hosts store, ship and cost to ask in a day.

``python -m netwatch.bench.capacity``, or scripts/capacity. What is not given is what the README measured.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024
_DAY_S = 86_400
_LISTED = 1000
"""Keys in one answer of a store, at most (Amazon S3, ListObjectsV2)."""


@dataclass(frozen=True)
class Measured:
    """What the plan follows from."""

    rate: float
    """Reports a second that each host takes, evenly."""
    report_us: float
    """CPU time of all the server's processes for a report, in µs."""
    line_bytes: float
    ratio: float
    """Bytes of lines to bytes of files."""
    query_cpu_s: float
    """CPU time to answer a question about 1 GB of lines."""
    seal_bytes: float = 10 * MIB


def objects_an_hour(measured: Measured, seal_after_s: float) -> float:
    """Files that one host seals: by their age, or by their size where that is sooner. None while nothing comes."""
    lines_bytes_an_hour = measured.rate * 3600 * measured.line_bytes
    return min(max(3600 / seal_after_s, lines_bytes_an_hour / measured.seal_bytes), measured.rate * 3600)


def day(measured: Measured, hosts: int, seal_after_s: float) -> list[str]:
    """A row: what so many hosts make of a day."""
    reports = hosts * measured.rate * _DAY_S
    lines_gb = reports * measured.line_bytes / 1e9
    objects = hosts * objects_an_hour(measured, seal_after_s) * 24
    stored_gb = lines_gb / measured.ratio
    return [
        f"{hosts:,}",
        _short(reports),
        _bytes(lines_gb * 1e9),
        _bytes(stored_gb * 1e9),
        _short(objects / 24),
        _short(objects),
        _bytes(stored_gb * 1e9 / objects),
        _short(objects / _LISTED),
        _short(reports / _DAY_S * measured.report_us / 1e6),
        _short(lines_gb * measured.query_cpu_s / 3600),
    ]


DAY_TITLES = [
    *("hosts", "reports", "lines", "stored", "objects an hour", "objects", "an object", "LISTs", "cores to take it"),
    "core hours to ask about it",
]


def sealing(measured: Measured, hosts: int, seal_after_s: float) -> list[str]:
    """A row: what an interval makes of the objects, and of what a lost disk takes along."""
    an_hour = objects_an_hour(measured, seal_after_s)
    object_bytes = measured.rate * 3600 * measured.line_bytes / measured.ratio / an_hour
    return [
        f"{seal_after_s:g} s",
        f"{an_hour:,.4g}",
        _short(hosts * an_hour * 24),
        _bytes(object_bytes),
        _short(measured.rate * 3600 / an_hour),
    ]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As reStructuredText has it."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (titles, *rows)]
    return "\n".join(line.rstrip() for line in (rule, lines[0], rule, *lines[1:], rule))


def plan(measured: Measured, hosts: Sequence[int], seal_after_s: Sequence[float]) -> Iterator[str]:
    """What is printed."""
    yield (
        f"{measured.rate:g} reports/s at each host; {measured.report_us:g} µs of CPU a report, so "
        f"{1e6 / measured.report_us:,.0f} reports/s a core;"
    )
    yield (
        f"{measured.line_bytes:,.0f} bytes a report, compressed {measured.ratio:.3g} times; "
        f"{measured.query_cpu_s:g} s of CPU to ask about 1 GB."
    )
    yield ""
    yield f"A day, sealed after {seal_after_s[0]:g} s:"
    yield ""
    yield table(DAY_TITLES, [day(measured, count, seal_after_s[0]) for count in hosts])
    yield ""
    middle = hosts[len(hosts) // 2]
    yield f"The interval (seal_after_s), {middle:,} hosts:"
    yield ""
    titles = ["sealed after", "objects an hour and host", "objects a day", "an object", "reports in it"]
    yield table(titles, [sealing(measured, middle, seconds) for seconds in seal_after_s])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the plan."""
    parser = argparse.ArgumentParser(prog="scripts/capacity", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--hosts", type=_numbers, default=[10, 1000, 100_000], metavar="N,N,…", help="how many (10,1000,100000)")
    add("--rate", type=_positive, default=10.0, metavar="R", help="reports/s at each host (%(default)g)")
    add("--seal-after-s", type=_numbers, default=[60, 300, 900, 3600], metavar="S,S,…", help="(60,300,900,3600)")
    add("--seal-bytes", type=_positive, default=10.0 * MIB, metavar="BYTES", help="(10 MiB)")
    add("--report-us", type=_positive, default=264.0, metavar="US", help="CPU µs a report: scripts/bench (%(default)g)")
    add("--line-bytes", type=_positive, default=6000.0, metavar="BYTES", help="bytes of a line (%(default)g)")
    add("--ratio", type=_positive, default=9.0, metavar="R", help="how many times it is compressed (%(default)g)")
    add("--query-cpu-s", type=_positive, default=14.0, metavar="S", help="CPU s to ask about 1 GB (%(default)g)")
    add("--data-dir", type=Path, metavar="DIR", help="measure bytes and ratio on the sealed files there")
    options = parser.parse_args(arguments)
    line_bytes, ratio = options.line_bytes, options.ratio
    if options.data_dir:
        try:
            line_bytes, ratio = measure(options.data_dir)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    measured = Measured(options.rate, options.report_us, line_bytes, ratio, options.query_cpu_s, options.seal_bytes)
    print("\n".join(plan(measured, options.hosts, options.seal_after_s)))


def measure(data_dir: Path) -> tuple[float, float]:
    """Bytes of a line, and the ratio, of the sealed files. Raises OSError or ValueError."""
    files = sorted((data_dir / "reports").glob("date=*/*.jsonl.zst"))
    if not files:
        raise ValueError(f"there is no sealed file in {data_dir}")
    lines = lines_bytes = 0
    with subprocess.Popen(["zstd", "-dcq", "--", *files], stdout=subprocess.PIPE) as process:
        assert process.stdout
        while piece := process.stdout.read(MIB):
            lines += piece.count(b"\n")
            lines_bytes += len(piece)
    if process.returncode or not lines:
        raise ValueError(f"a file in {data_dir} cannot be read: netwatch verify says which")
    return lines_bytes / lines, lines_bytes / sum(file.stat().st_size for file in files)


def _short(number: float) -> str:
    """``8.64 M``, with three digits."""
    for unit, size in ((" P", 1e15), (" T", 1e12), (" G", 1e9), (" M", 1e6), (" k", 1e3), ("", 1.0)):
        if number >= size * 0.9995:
            return f"{float(f'{number / size:.3g}'):g}{unit}"
    return f"{number:.3g}"


def _bytes(number: float) -> str:
    text = _short(number)
    return f"{text}B" if " " in text else f"{text} B"


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"give whole numbers with commas between: {text!r}")
    return numbers


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e15:
        raise argparse.ArgumentTypeError(f"give a positive number: {text!r}")
    return number


if __name__ == "__main__":
    main()
