"""The board: memory that all processes share, in which each counts in cells of its own, so that one scrape sees all.

The supervisor makes it before it forks; nobody else ever opens it. A cell is one aligned store of 8 bytes, by its one
owner: no lock, nothing half written by a process that is killed. Workers come and go, so each holds one of many slots
for as long as it lives: a record lock, which the kernel takes back however it ends. What it leaves is settled by
whoever gets that lock next, and its heir counts on where it stopped.
"""

from __future__ import annotations

import bisect
import fcntl
import mmap
import os
import struct
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from netwatch.metrics import table
from netwatch.metrics.table import GAUGE, Labels, Metric

SLOTS: Final = 4096
"""More workers than there can be, those that a reload replaces included. A slot that nobody used takes no memory."""
_CELL_BYTES: Final = 8
_LINE: Final = 8
"""Cells in a line of the processor's cache: two processes must not write in the same one."""

_TERMS: Final = struct.Struct(f"{len(table.TERMS)}q")
_TERMS_CELLS: Final = 1 + 2 * len(table.TERMS)
_HALVES: Final = (_CELL_BYTES, _CELL_BYTES + _TERMS.size)
"""Where the terms stand, in bytes, after an even and an odd number of steps."""
_READ_TRIES: Final = 1000


def _lines(cells: int) -> int:
    return -(-cells // _LINE) * _LINE


_WRITER_AT: Final = _lines(SLOTS // _CELL_BYTES)  # before it a byte for each slot: whether it was ever used
_SUPERVISOR_AT: Final = _WRITER_AT + _lines(table.WRITER.cells_total)
_SLOTS_AT: Final = _SUPERVISOR_AT + _lines(table.SUPERVISOR.cells_total)
_SLOT_CELLS: Final = _lines(_TERMS_CELLS + table.WORKER.cells_total)
_BOARD_BYTES: Final = (_SLOTS_AT + SLOTS * _SLOT_CELLS) * _CELL_BYTES


class Meter:
    """What one process counts in. Without ``cells`` it counts for nobody, in memory of its own."""

    def __init__(self, cells: memoryview | None = None) -> None:
        self.cells = memoryview(bytearray(_SLOT_CELLS * _CELL_BYTES)).cast("q") if cells is None else cells

    def place(self, metric: Metric, labels: Labels = ()) -> int:
        """Which of the ``cells`` is the metric's, for who counts with every request."""
        return metric.first + metric.series[labels]

    def add(self, metric: Metric, count: int = 1, labels: Labels = ()) -> None:
        """Count ``count`` more."""
        self.cells[metric.first + metric.series[labels]] += count

    def set(self, metric: Metric, value: int, labels: Labels = ()) -> None:
        """The gauge is now ``value`` of its units."""
        self.cells[metric.first + metric.series[labels]] = value

    def observe(self, metric: Metric, value: int, labels: Labels = ()) -> None:
        """Count a value of the histogram, in its units."""
        first = metric.first + metric.series[labels]
        self.cells[first + bisect.bisect_left(metric.bounds, value)] += 1
        self.cells[first + len(metric.bounds) + 1] += value


class Terms:
    """The terms of promise 5 of one worker; at every instant, also of its death, received is the sum of the others.

    They are kept twice: the next values are written where nobody looks, and one store makes them count.
    """

    def __init__(self, cells: memoryview | None = None) -> None:
        self._cells = memoryview(bytearray(_TERMS_CELLS * _CELL_BYTES)).cast("q") if cells is None else cells
        self._step: int = self._cells[0]
        self._values = list(_current(self._cells))

    def received(self, count: int) -> None:
        """A body was taken apart into ``count`` reports; they are in flight."""
        values = self._values
        values[0] += count
        values[6] += count
        self._keep()

    def stored(self, count: int) -> None:
        """A request of ``count`` reports is over, and each of them is stored, as most are."""
        values = self._values
        values[1] += count
        values[6] -= count
        self._keep()

    def done(
        self, count: int, *, stored: int = 0, duplicate: int = 0, rejected: int = 0, shed: int = 0, unknown: int = 0
    ) -> None:
        """A request of ``count`` reports is over, and so many of them became of each kind."""
        values = self._values
        values[1] += stored
        values[2] += duplicate
        values[3] += rejected
        values[4] += shed
        values[5] += unknown
        values[6] -= count
        self._keep()

    def settle(self) -> None:
        """Their worker is dead: what was in flight is unknown."""
        self.done(self._values[6], unknown=self._values[6])

    def _keep(self) -> None:
        self._step = step = self._step + 1
        _TERMS.pack_into(self._cells, _HALVES[step & 1], *self._values)
        self._cells[0] = step


def _current(cells: memoryview) -> tuple[int, ...]:
    """The terms as they are after some step, none of them newer than the others."""
    for _ in range(_READ_TRIES):
        step = cells[0]
        values = _TERMS.unpack_from(cells, _HALVES[step & 1])
        if cells[0] == step:
            break
    return values


class WorkerMeter(Meter):
    """What one worker counts in; ``number`` is its slot's, None if it counts for nobody."""

    def __init__(self, cells: memoryview | None = None, number: int | None = None) -> None:
        super().__init__(None if cells is None else cells[_TERMS_CELLS:])
        self.terms = Terms(None if cells is None else cells[:_TERMS_CELLS])
        self.number = number

    def settle(self) -> None:
        """The worker that counted here is dead: what it had in flight is unknown, and it holds nothing any more."""
        self.terms.settle()
        for metric in table.WORKER.metrics:
            if metric.kind == GAUGE:
                self.set(metric, 0)


class Reading(NamedTuple):
    """All cells at one time: each worker's terms and others, by its slot's number; the writer's; the supervisor's."""

    terms: Mapping[int, Sequence[int]]
    workers: Mapping[int, Sequence[int]]
    writer: Sequence[int]
    supervisor: Sequence[int]


class Board:
    """The shared memory. Make it in the supervisor; its children inherit it."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("netwatch-metrics")
        weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, _BOARD_BYTES)
        self._memory = mmap.mmap(self._fd, _BOARD_BYTES)
        self._cells = memoryview(self._memory).cast("q")
        self._own: int | None = None
        self.writer = Meter(self._cells[_WRITER_AT:_SUPERVISOR_AT])
        self.supervisor = Meter(self._cells[_SUPERVISOR_AT:_SLOTS_AT])
        self.supervisor.set(table.BUILD, 1, next(iter(table.BUILD.series)))
        self.supervisor.set(table.STARTED_AT, time.time_ns())

    def claim(self) -> WorkerMeter:
        """A slot for this process, for as long as it lives: the first that no living one has."""
        for number in range(SLOTS):
            if self._lock(number):
                self._own = number
                self._memory[number] = 1
                meter = self._slot(number)
                meter.settle()
                meter.add(table.WORKER_STARTS)
                meter.set(table.WORKERS, 1)
                return meter
        return WorkerMeter()

    def read(self) -> Reading:
        """Settle what dead workers left, and read everything."""
        terms, workers = {}, {}
        for number in (number for number, is_used in enumerate(self._memory[:SLOTS]) if is_used):
            if number != self._own and self._lock(number):
                self._slot(number).settle()
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, number)
            cells = self._slot_cells(number)
            terms[number] = _current(cells)
            workers[number] = cells[_TERMS_CELLS:].tolist()
        return Reading(terms, workers, self.writer.cells.tolist(), self.supervisor.cells.tolist())

    def connections_wanted(self) -> int:
        """How many more this process's worker should take: up to a sixteenth more than workers have on average."""
        if self._own is None:
            return 1
        slots = [_SLOTS_AT + number * _SLOT_CELLS + _TERMS_CELLS for number in range(self._memory.find(b"\0"))]
        counts = [self._cells[at + table.CONNECTIONS.first] for at in slots if self._cells[at + table.WORKERS.first]]
        own = self._cells[slots[self._own] + table.CONNECTIONS.first]
        return max(sum(counts) * 17 // (16 * len(counts)) - own, own * len(counts) <= sum(counts))

    def _lock(self, number: int) -> bool:
        """Take the slot, unless a living process has it."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            return False
        return True

    def _slot(self, number: int) -> WorkerMeter:
        return WorkerMeter(self._slot_cells(number), number)

    def _slot_cells(self, number: int) -> memoryview:
        first = _SLOTS_AT + number * _SLOT_CELLS
        return self._cells[first : first + _SLOT_CELLS]
