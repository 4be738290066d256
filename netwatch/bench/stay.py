"""One server for many minutes: whether it stays as fast, and as small, as it was at first."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from netwatch.bench import bodies, loads
from netwatch.bench.bodies import SIZES
from netwatch.bench.rounds import Cell, label, refuse_faults
from netwatch.bench.servers import Contestant, Sample, Server
from netwatch.bench.table import grid

REFERENCE = 2
"""The minute that the last one is compared with: in the first, memory still grows."""


class Minute(NamedTuple):
    number: int
    requests_per_s: float
    p99_ms: float
    pss_mb: float


def stay(
    contestant: Contestant,
    cell: Cell,
    minutes: int,
    directory: Path,
    threads: int,
    say: Callable[[str], None],
    minute_s: float = 60.0,
) -> Iterator[Minute]:
    """Load it for so many minutes, with new connections each minute. Raises Void on any answer but 200."""
    size = SIZES[cell.size]
    path = directory / "bodies"
    bodies.write_bodies(path, bodies.make_bodies(size))
    place = Path(tempfile.mkdtemp(prefix=f"{contestant.name}-", dir=directory))
    try:
        with Server(contestant, place, workers=cell.workers, durability=cell.durability) as server:
            server.check(bodies.read_bodies(path)[:1], size.content_type, size.reports)
            url = f"http://{server.address}/api/v1/reports"
            for number in range(1, minutes + 1):
                command = loads.wrk_command(url, path, size.content_type, cell.connections, threads, minute_s)
                samples: list[Sample] = []
                load = loads.run(command, lambda: samples.append(server.sample()), 0.95 * minute_s)  # noqa: B023 # it ends with the turn
                refuse_faults(load, f"in minute {number}")
                minute = Minute(number, load.requests / load.duration_s, load.p99_ms, samples[0].pss_bytes / 1e6)
                say(f"minute {number}: {minute.requests_per_s:.0f} requests/s, {minute.pss_mb:.1f} MB")
                yield minute
            server.stop()
    finally:
        shutil.rmtree(place)


def stay_table(cell: Cell, minutes: Sequence[Minute]) -> str:
    """A row a minute, and what has become of throughput and memory since the second."""
    rows = [[str(m.number), f"{m.requests_per_s:,.0f}", f"{m.p99_ms:.1f}", f"{m.pss_mb:.1f}"] for m in minutes]
    table = f"{label(cell).capitalize()}.\n\n" + grid(["minute", "requests/s", "p99 ms", "RSS MB"], rows, names=1)
    if len(minutes) <= REFERENCE:
        return f"{table}\n"
    then, last = minutes[REFERENCE - 1], minutes[-1]
    return (
        f"{table}\n\nMinute {last.number} beside minute {then.number}: requests/s × "
        f"{last.requests_per_s / then.requests_per_s:.3f}, RSS × {last.pss_mb / then.pss_mb:.3f}.\n"
    )
