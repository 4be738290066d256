"""Rounds: one server, one load, all that is measured; in turns, so that all meet the same moods of the machine."""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import zstandard

from netwatch.bench import bodies, loads
from netwatch.bench.bodies import SINGLY, SIZES
from netwatch.bench.processes import machine_cpu_s
from netwatch.bench.servers import Contestant, Sample, Server, Void

SAMPLE_AT = 0.5
"""The part of a round after which memory and connections are looked at."""
CHECKED = 50
"""So many bodies are posted before a round, and their answers looked at, not only the status."""
_FILES_DECODED = 16


@dataclass(frozen=True)
class Cell:
    """One combination of the axes."""

    size: str
    durability: str
    workers: int
    connections: int
    rate_per_s: float = 0.0
    """Of requests that are due; 0 for as many as can be."""


@dataclass(frozen=True)
class Round:
    """What one round has shown of one server."""

    server: str
    cell: Cell
    number: int
    void: str = ""
    """Why it says nothing."""
    figures: dict[str, float] = field(default_factory=dict)
    """By the names of METRICS in netwatch.bench.table."""
    connections: list[int] = field(default_factory=list)
    """Of each process that held any, and of each worker, in the middle of the round."""


@dataclass(frozen=True)
class Lengths:
    """How long the parts of a round take."""

    seconds: float
    warmup_s: float


class Bodies:
    """The files of bodies, each made when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[str, list[bytes]] = {}

    def of(self, size: str) -> tuple[Path, list[bytes]]:
        path = self._directory / f"{size}.bodies"
        if size not in self._made:
            self._made[size] = bodies.make_bodies(SIZES[size])
            bodies.write_bodies(path, self._made[size])
        return path, self._made[size]


class Bench:
    """Runs rounds, below a directory on the disk that is measured."""

    def __init__(self, directory: Path, lengths: Lengths, threads: int, say: Callable[[str], None]) -> None:
        self._directory, self._lengths, self._threads, self._say = directory, lengths, threads, say
        self._bodies = Bodies(directory)

    def alternate(self, contestants: Sequence[Contestant], cell: Cell, rounds: int) -> Iterator[Round]:
        """So many rounds of each, in turns. A void one is repeated once; twice void ends the cell for its server."""
        running = list(contestants)
        for number in range(1, rounds + 1):
            for contestant in running[:: 1 if number % 2 else -1]:  # none is always the first
                for _ in range(2):
                    measured = self.round(contestant, cell, number)
                    yield measured
                    if not measured.void:
                        break
                else:
                    self._say(f"{contestant.name}, {label(cell)}: void twice, given up")
                    running.remove(contestant)

    def round(self, contestant: Contestant, cell: Cell, number: int) -> Round:
        """One round; void when anything was answered but 200, or the server did not start or stop as it should."""
        measured = Round(contestant.name, cell, number)
        directory = Path(tempfile.mkdtemp(prefix=f"{contestant.name}-", dir=self._directory))
        try:
            measured = self._measure(measured, contestant, directory)
        except (Void, loads.LoadFailed) as void:
            measured = replace(measured, void=str(void))
        finally:
            shutil.rmtree(directory)
        shown = f"VOID: {measured.void}" if measured.void else summary(measured)
        self._say(f"{contestant.name}, {label(cell)}, round {number}: {shown}")
        return measured

    def _measure(self, measured: Round, contestant: Contestant, directory: Path) -> Round:
        cell = measured.cell
        name = cell.size if contestant.takes_ndjson else SINGLY.get(cell.size, cell.size)
        size = SIZES[name]
        path, contents = self._bodies.of(name)
        with Server(contestant, directory, workers=cell.workers, durability=cell.durability) as server:
            url = f"http://{server.address}/api/v1/reports"
            server.check(contents[:CHECKED], size.content_type, size.reports)
            if self._lengths.warmup_s:
                command = loads.wrk_command(
                    url, path, size.content_type, cell.connections, self._threads, self._lengths.warmup_s
                )
                refuse_faults(loads.run(command, lambda: None, 0.0), "in the warm-up")
            command = self._command(cell, url, path, size.content_type)
            samples: list[Sample] = []
            before, machine_s = server.used(), machine_cpu_s()
            load = loads.run(command, lambda: samples.append(server.sample()), SAMPLE_AT * self._lengths.seconds)
            loaded, machine_s = server.used(), machine_cpu_s() - machine_s
            used = server.stop()
        refuse_faults(load)
        reports = load.requests * size.reports
        body_bytes = sum(map(len, contents)) / len(contents)
        if load.cpu_share > 0.9 * self._threads:
            self._say(f"wrk itself used {load.cpu_share:.2f} processors: it may be the limit, see --threads")
        figures = {
            "requests_per_s": load.requests / load.duration_s,
            "reports_per_s": reports / load.duration_s,
            "mb_per_s": load.requests * body_bytes / load.duration_s / 1e6,
            "p50_ms": load.p50_ms,
            "p99_ms": load.p99_ms,
            "p999_ms": load.p999_ms,
            "max_ms": load.max_ms,
            "cpu_us": (used.cpu_s - before.cpu_s) / reports * 1e6,
            "pss_mb": samples[0].pss_bytes / 1e6,
            "disk_bytes": (used.write_bytes - before.write_bytes) / reports,
            "load_cpu_share": load.cpu_share,
            "others_cpu_share": (machine_s - (loaded.cpu_s - before.cpu_s)) / load.duration_s - load.cpu_share,
        }
        if ratio := compression_ratio(server.data_dir):
            figures["compression"] = ratio
        connections = samples[0].connections
        if "{workers}" in contestant.command:  # one that holds none is seen too
            connections = connections + [0] * (cell.workers - len(connections))
        return replace(measured, figures=figures, connections=connections)

    def _command(self, cell: Cell, url: str, path: Path, content_type: str) -> list[str]:
        if cell.rate_per_s:
            return loads.rate_command(url, path, content_type, cell.connections, cell.rate_per_s, self._lengths.seconds)
        return loads.wrk_command(url, path, content_type, cell.connections, self._threads, self._lengths.seconds)


def refuse_faults(load: loads.Load, when: str = "") -> None:
    """Raise Void unless there were requests and each was answered 200."""
    if load.faults or not load.requests:
        listed = ", ".join(f"{count} × {name}" for name, count in sorted(load.faults.items())) or "no answer at all"
        raise Void(f"{listed} {when}".rstrip())


def compression_ratio(data_dir: Path) -> float | None:
    """Decoded bytes for each byte of the zstd files, over an even choice of them; None when there are none."""
    files = sorted(data_dir.rglob("*.zst"))
    decoded = stored = 0
    for path in files[:: -(-len(files) // _FILES_DECODED) or 1]:
        with path.open("rb") as file:
            reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            try:
                length = sum(map(len, iter(lambda: reader.read(1 << 20), b"")))  # noqa: B023 # used within the turn
            except zstandard.ZstdError:  # it was stopped in the middle of it
                continue
        decoded += length
        stored += path.stat().st_size if length else 0
    return decoded / stored if stored else None


def cells(
    sizes: Sequence[str], durabilities: Sequence[str], workers: Sequence[int], connections: Sequence[int]
) -> list[Cell]:
    """Every combination."""
    return [Cell(*values) for values in itertools.product(sizes, durabilities, workers, connections)]


def label(cell: Cell) -> str:
    parts = [cell.size, cell.durability, count(cell.workers, "worker"), count(cell.connections, "connection")]
    return ", ".join(parts + ([f"open loop at {cell.rate_per_s:.0f}/s"] if cell.rate_per_s else []))


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def summary(measured: Round) -> str:
    figures = measured.figures
    return (
        f"{figures['reports_per_s']:.0f} reports/s, {figures['cpu_us']:.1f} µs CPU a report, "
        f"p99 {figures['p99_ms']:.1f} ms, {figures['pss_mb']:.0f} MB"
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
