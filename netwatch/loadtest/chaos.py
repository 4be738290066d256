"""A server of the load test's own, and the storm that kills its processes.

The storm does what systemd would: a supervisor that died or stopped is started again at once, on the same port, while
what the dead one left may still be ending. Everything that must not happen is added to `failures`, one line each.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

from netwatch.loadtest.command import DEADLY

T = TypeVar("T")

READY_TIMEOUT_S = 20.0  # a new server may wait 10 s for the port
ROLE_TIMEOUT_S = 5.0
ORPHAN_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0

_LISTENING = re.compile(r"listening on (http://\S+?),? ")


class Process(NamedTuple):
    """One life of a process id."""

    pid: int
    started: str  # its start time, so that a pid used again is not mistaken for it
    title: str

    def alive(self) -> bool:
        stat = _stat(self.pid)
        return stat is not None and stat[19] == self.started and stat[0] not in "ZX"


def _stat(pid: int | str) -> list[str] | None:
    """The members of /proc/PID/stat after the command's name: state, parent, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def descendants(root: int) -> list[Process]:
    """All living processes below `root`, itself not."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in os.listdir("/proc"):
        stat = _stat(entry) if entry.isdigit() else None
        if stat is not None and stat[0] not in "ZX":
            children.setdefault(int(stat[1]), []).append((int(entry), stat[19]))
    found: list[Process] = []
    queue = [root]
    while queue:
        for pid, started in children.get(queue.pop(), ()):
            found.append(Process(pid, started, _title(pid)))
            queue.append(pid)
    return found


def kill(processes: Iterable[Process | int]) -> None:
    """SIGKILL to each; one that is gone already is none."""
    for process in processes:
        try:
            os.kill(process if isinstance(process, int) else process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_until(look: Callable[[], T], timeout_s: float, interval_s: float = 0.01) -> T:
    """The first true value of `look`, or its last one when the time is up."""
    until_s = time.monotonic() + timeout_s
    while not (value := look()) and time.monotonic() < until_s:
        time.sleep(interval_s)
    return value


def free_port() -> int:
    """A port below the ephemeral range: clients that reconnect to a dead server can't take it, or meet themselves."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = range(max(1024, low - 12_000), max(low, 2048))  # of hosts that begin with 1024 some clients' own
    for port in random.SystemRandom().sample(ports, min(len(ports), 1000)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port on 127.0.0.1")


class Server:
    """`netwatch serve` on one port and data directory, through all its lives."""

    def __init__(
        self, command: Sequence[str], data_dir: Path, failures: list[str], log: IO[bytes] | None = None
    ) -> None:
        """`command` takes --bind and --data-dir; `log` gets the servers' stderr, by default ours does."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.data_dir = data_dir
        self.failures = failures
        self._command = [*command, "--bind", f"127.0.0.1:{port}", "--data-dir", str(data_dir)]
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._listening = threading.Event()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start it; `wait_ready` waits until it takes reports."""
        # A session of its own: Ctrl-C is for the load test, which stops the server itself.
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=self._log, text=True, start_new_session=True
        )
        self._listening = threading.Event()
        threading.Thread(target=_read_stdout, args=(self._process.stdout, self._listening), daemon=True).start()

    def wait_ready(self) -> bool:
        """Wait for the line that says that it listens; a failure is written down when it doesn't come."""
        process = self._process
        assert process is not None
        wait_until(lambda: self._listening.is_set() or process.poll() is not None, READY_TIMEOUT_S)
        if process.poll() is not None:
            self.failures.append(f"server: ended by itself with exit code {process.returncode}")
        elif not self._listening.is_set():
            self.failures.append(f"server: not listening within {READY_TIMEOUT_S:.0f} s")
        else:
            return True
        return False

    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def find(self, role: str) -> list[Process]:
        return [process for process in descendants(self.pid) if process.title.startswith(f"netwatch: {role}")]

    def kill_all(self) -> list[Process]:
        """SIGKILL to the supervisor and all below it, as nearly at once as a loop can; those below are returned."""
        if self._process is None or self.ended():
            return []
        below = descendants(self.pid)
        kill([self.pid, *below])
        self._process.wait()
        return below

    def kill_supervisor(self) -> list[Process]:
        """SIGKILL to the supervisor alone; what is left of it is returned."""
        if self._process is None or self.ended():
            return []
        below = descendants(self.pid)
        kill([self.pid])
        self._process.wait()
        return below

    def reload(self) -> None:
        """HUP to the supervisor; what comes of it, the clients and the next look at the server see."""
        if not self.ended():
            os.kill(self.pid, signal.SIGHUP)

    def stop(self) -> None:
        """TERM; it must exit with 0 in time, leave no process behind and nothing open."""
        if self._process is None:
            return
        below = descendants(self.pid)
        start_s = time.monotonic()
        self._process.terminate()
        if not wait_until(self.ended, 3 * STOP_TIMEOUT_S, 0.002):
            self.failures.append(f"stop: still running {3 * STOP_TIMEOUT_S:.0f} s after TERM")
            self.kill_all()
            return
        took_s = time.monotonic() - start_s
        if took_s >= STOP_TIMEOUT_S:
            self.failures.append(f"stop: took {took_s:.2f} s")
        if self._process.returncode != 0:
            self.failures.append(f"stop: exit code {self._process.returncode}")
        left_open = leftovers(self.data_dir)
        if left_open:
            self.failures.append(f"stop: {len(left_open)} left in open/: {', '.join(sorted(left_open)[:3])}")
        self.expect_end(below, 1.0)  # multiprocessing's own resource tracker ends just after its parent

    def expect_end(self, processes: Sequence[Process], timeout_s: float = ORPHAN_TIMEOUT_S) -> None:
        """Wait for processes whose parent is gone; those still there are failures, and killed."""
        wait_until(lambda: not any(process.alive() for process in processes), timeout_s)
        orphans = [process for process in processes if process.alive()]
        for orphan in orphans:
            self.failures.append(f"orphan: {orphan.title!r} still runs {timeout_s:.0f} s after its parent")
        kill(orphans)


def _read_stdout(stdout: IO[str], listening: threading.Event) -> None:
    with stdout:
        for line in stdout:
            if _LISTENING.search(line):
                listening.set()


def leftovers(data_dir: Path) -> list[str]:
    """The names in open/."""
    try:
        return os.listdir(data_dir / "open")
    except FileNotFoundError:
        return []


class Storm:
    """Kills by one kind, or a seeded mix of all, every so many seconds, until it is told to end."""

    def __init__(self, server: Server, kind: str, every_s: float, seed: int, *, kills_total: int | None = None) -> None:
        """`kills_total`: end after so many."""
        self._kills_total = kills_total or float("inf")
        self.kills: Counter[str] = Counter()
        self._server, self._kind, self._every_s = server, kind, every_s
        self._rng = random.Random(seed)
        self._over = threading.Event()

    def end(self) -> None:
        """Ask it to return; a kill under way is finished first."""
        self._over.set()

    def run(self) -> None:
        """Runs in a thread of its own; when it returns, a server is up, or a failure says why not."""
        next_s = time.monotonic() + self._every_s
        while self.kills.total() < self._kills_total and not self._over.wait(max(0.0, next_s - time.monotonic())):
            next_s = time.monotonic() + self._every_s  # never sooner after a late one, which would meet a backoff
            if self._server.wait_ready():
                self.strike(self._rng.choice(DEADLY) if self._kind == "mix" else self._kind)
            else:
                self._server.kill_all()
                self._server.start()
        self._server.wait_ready()

    def strike(self, target: str) -> None:
        """Kill one target now, and start again what systemd would."""
        server = self._server
        if target == "stop":
            server.stop()
            server.start()
        elif target == "reload":
            server.reload()
        elif target in ("all", "supervisor"):
            left = server.kill_all() if target == "all" else server.kill_supervisor()
            server.start()
            server.expect_end(left)
        else:
            found = wait_until(lambda: server.find(target), ROLE_TIMEOUT_S)
            if not found:
                server.failures.append(f"server: no process titled 'netwatch: {target}' within {ROLE_TIMEOUT_S:.0f} s")
                return
            victim = self._rng.choice(found)
            below = descendants(victim.pid)
            kill([victim])
            server.expect_end([victim, *below])
        self.kills[target] += 1
