"""What the processes below one process use, read from /proc while they run."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ESTABLISHED = "01"


class Process(NamedTuple):
    pid: int
    parent: int
    own_s: float  # user and system time of all its threads, those that ended too
    waited_s: float  # the same of all descendants that it, or a child of it, has reaped


def descendants(root: int) -> list[Process]:
    """All processes below `root`, itself not; those that nobody has reaped yet are among them."""
    children: dict[int, list[Process]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := _stat(int(name))):
            children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    parents = [root]
    while parents:
        below = children.get(parents.pop(), [])
        found += below
        parents += [process.pid for process in below]
    return found


def cpu_s(root: int) -> float:
    """User and system time that all below `root` have used, also those that ended and were reaped below it."""
    return sum(process.own_s + process.waited_s for process in descendants(root))


def machine_cpu_s() -> float:
    """User and system time of the whole machine since it was started, and what its host took away from it."""
    user, nice, system, _, _, irq, softirq, steal = (int(cell) for cell in _read("/proc/stat").split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def pss_bytes(root: int) -> int:
    """Memory of all processes below `root`; what several share is counted once."""
    total = 0
    for process in descendants(root):
        for line in _read(f"/proc/{process.pid}/smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def write_bytes(root: int) -> int:
    """Bytes that `root` and all below it caused to be written to disks: dirtied pages, not what write() was given.

    Those of a descendant that ended are in the account of who reaped it.
    """
    total = 0
    for pid in [root, *(process.pid for process in descendants(root))]:
        for line in _read(f"/proc/{pid}/io").splitlines():
            if line.startswith("write_bytes:"):
                total += int(line.split()[1])
    return total


def connections(root: int, port: int) -> list[int]:
    """How many connections to `port` each process below `root` holds, of those that hold any; most first."""
    sockets = set()
    for family in ("tcp", "tcp6"):
        for line in _read(f"/proc/net/{family}").splitlines()[1:]:
            cells = line.split()
            if cells[3] == _ESTABLISHED and int(cells[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{cells[9]}]")
    held: Counter[int] = Counter()
    for process in descendants(root):
        folder = f"/proc/{process.pid}/fd"
        try:
            held[process.pid] = sum(_link(f"{folder}/{name}") in sockets for name in os.listdir(folder))
        except OSError:
            continue
    return sorted((count for count in held.values() if count), reverse=True)


def _stat(pid: int) -> Process | None:
    cells = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if not cells:
        return None
    user, system, waited_user, waited_system = (int(cell) / _TICKS_PER_S for cell in cells[11:15])
    return Process(pid, int(cells[1]), user + system, waited_user + waited_system)


def _read(path: str) -> str:
    """The text of a file of /proc, "" when the process is gone."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
