"""A running `netwatch serve`, as its operators and clients see it: a command, a port, processes, files and logs.

Like all of tests/system it imports nothing from netwatch, and every wait has a deadline.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
NETWATCH = str(ROOT / ".venv/bin/netwatch")
START_S = 15.0
STOP_S = 5.0
"""A stop takes less, whatever is going on."""
GIVE_UP_S = 20.0
MIB = 1024 * 1024

_LISTENING = re.compile(r"netwatch: listening on (http://\S+), writing to (/.*)\n\Z")


class Answer(NamedTuple):
    """One HTTP answer; the names of the headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    took_s: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """What a problem document's type says."""
        assert self.headers["content-type"] == "application/problem+json", self
        kind: str = self.json["type"]
        assert kind.startswith("urn:netwatch:error:"), self
        return kind.rpartition(":")[2]


class Process(NamedTuple):
    """One life of a process id."""

    pid: int
    started: str
    title: str

    @property
    def is_alive(self) -> bool:
        stat = _stat(self.pid)
        return stat is not None and stat[19] == self.started and stat[0] not in "ZX"

    @property
    def rss_bytes(self) -> int:
        """Anonymous memory and what it shares with the others of the program's files; 0 when it is gone."""
        stat = _stat(self.pid)
        return int(stat[21]) * os.sysconf("SC_PAGE_SIZE") if stat else 0


class Server:
    """`netwatch serve` on a free port below the ephemeral range and a data directory, through all its lives."""

    def __init__(self, data_dir: Path, log: Path, *flags: str) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.flags = flags
        self.log = log
        self.line = ""
        self.stdout = b""
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: set[Process] = set()

    def spawn(
        self, *, environ: Mapping[str, str] | None = None, before: Sequence[str] = (), pass_fds: Sequence[int] = ()
    ) -> None:
        """Start the command and do not wait; ``before`` stands in front of it."""
        bind = ["--bind", f"127.0.0.1:{self.port}", "--data-dir", str(self.data_dir)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*before, NETWATCH, "serve", *bind, *self.flags],
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
                pass_fds=pass_fds,
            )
        self.stdout = b""

    def start(self) -> Server:
        """Start it, and wait until its line on stdout says that it takes reports."""
        self.spawn()
        self.wait_for_line()
        return self

    def wait_for_line(self, timeout_s: float = START_S) -> None:
        until_s = time.monotonic() + timeout_s
        while not self.stdout.endswith(b"\n"):
            self._read_stdout(until_s - time.monotonic())
        self.line = self.stdout.decode()
        match = _LISTENING.match(self.line)
        assert match, self.line
        assert match[1] == self.url
        assert Path(match[2]) == self.data_dir.absolute()
        self.processes()

    def _read_stdout(self, timeout_s: float) -> None:
        assert self._process
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], max(timeout_s, 0))
        assert ready, f"no line on stdout in time; {self.log_text()}"
        data = os.read(self._process.stdout.fileno(), 4096)
        assert data, f"the server ended with {self._process.wait()}; {self.log_text()}"
        self.stdout += data

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def processes(self) -> list[Process]:
        """The supervisor and all below it, as they are now."""
        found = descendants(self.pid) if self.is_running else []
        self._seen.update(found)
        return found

    def find(self, role: str) -> list[Process]:
        """The processes of this title."""
        return [process for process in self.processes() if process.title == f"netwatch: {role}"]

    def find_one(self, role: str) -> Process:
        """The only process of this title, once there is one."""
        found = wait_until(lambda: self.find(role), 5.0)
        assert len(found) == 1, found
        return found[0]

    def left(self) -> list[Process]:
        """Processes of any of its lives that are still alive."""
        return [process for process in self._seen if process.is_alive]

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = GIVE_UP_S) -> int:
        """Wait for its end: the exit code. What it still printed is in ``stdout`` then."""
        assert self._process
        code = self._process.wait(timeout_s)
        assert self._process.stdout
        with self._process.stdout as stdout:
            self.stdout += stdout.read()
        return code

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Stop it as an operator does, and see that nothing is left: how long it took, in seconds."""
        self.processes()
        start_s = time.monotonic()
        self.send(number)
        code = self.wait()
        took_s = time.monotonic() - start_s
        assert code == 0, self.log_text()
        assert self.stdout.decode() == self.line
        assert wait_until(lambda: not self.left(), 1.0), self.left()
        assert self.open_files() == []
        return took_s

    def kill(self) -> None:
        """SIGKILL to all of it."""
        if self.is_running:
            for process in self.processes():
                _kill(process)
            self.wait()

    def end(self) -> None:
        """Whatever became of it, leave nothing behind."""
        self.kill()
        for process in self.left():
            _kill(process)
        if self._process and self._process.stdout:
            self._process.stdout.close()

    def log_text(self) -> str:
        return self.log.read_text()

    def logged(self, event: str | None = None) -> list[dict[str, Any]]:
        """The lines on stderr (of one event): each must be one JSON object."""
        lines = [json.loads(line) for line in self.log_text().splitlines()]
        return [line for line in lines if event is None or line["event"] == event]

    def post(self, *reports: object, headers: Mapping[str, str] | None = None, timeout_s: float = 10.0) -> Answer:
        """POST one report as an object, several as NDJSON; bytes are sent as they are."""
        body = b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in reports)
        kind = "application/json" if len(reports) == 1 else "application/x-ndjson"
        return self.ask("POST", "/api/v1/reports", body, {"Content-Type": kind, **(headers or {})}, timeout_s)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        start_s = time.monotonic()
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, content, time.monotonic() - start_s)

    def connect(self, timeout_s: float = 10.0) -> socket.socket:
        """A raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout_s)

    def sealed_files(self) -> list[Path]:
        return sorted(path for path in (self.data_dir / "reports").rglob("*") if path.is_file())

    def open_files(self) -> list[str]:
        return sorted(os.listdir(self.data_dir / "open"))

    def stored(self) -> list[dict[str, Any]]:
        """Every sealed line, by the stock zstd; each file must pass its test."""
        files = [str(path) for path in self.sealed_files()]
        if not files:
            return []
        subprocess.run(["zstd", "-tq", "--", *files], check=True, timeout=60)
        output = subprocess.run(["zstd", "-dcq", "--", *files], check=True, capture_output=True, timeout=60).stdout
        return [json.loads(line) for line in output.splitlines()]

    def stored_clients(self) -> list[str]:
        """The `clientId` of every sealed report, sorted."""
        return sorted(line["report"]["clientId"] for line in self.stored())


def read_answer(connection: socket.socket) -> Answer:
    """Exactly one answer from a raw connection; raises ConnectionError when it ends before."""
    start_s = time.monotonic()

    def read(look: Callable[[bytes], int]) -> bytes:
        data = b""
        while missing := look(data):
            more = connection.recv(missing)
            if not more:
                raise ConnectionError(f"closed after {data!r}")
            data += more
        return data

    head = read(lambda data: not data.endswith(b"\r\n\r\n")).decode()
    status, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    size = int(headers.get("content-length", "0"))
    return Answer(int(status.split()[1]), headers, read(lambda data: size - len(data)), time.monotonic() - start_s)


def report(client: str, *, padding_bytes: int = 0) -> dict[str, Any]:
    """A small valid report; ``padding_bytes`` of text that hardly compresses make it larger."""
    made: dict[str, Any] = {
        "clientId": client,
        "timestamp": "2026-11-22T10:24:10.123Z",
        "hosts": [{"name": "a", "url": "http://a/", "status": "online", "history": [{"t": 1, "latency": 5.5}]}],
    }
    if padding_bytes:
        made["padding"] = random.Random(client).randbytes(padding_bytes // 2).hex()
    return made


def wait_until(look: Callable[[], T], timeout_s: float, interval_s: float = 0.02) -> T:
    """The first true value of ``look``, or its last one when the time is up."""
    until_s = time.monotonic() + timeout_s
    while not (value := look()) and time.monotonic() < until_s:
        time.sleep(interval_s)
    return value


def free_port() -> int:
    """A port below the ephemeral range, so that no client of another test takes it while a server restarts."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.SystemRandom().sample(range(max(1024, low - 12_000), low), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port on 127.0.0.1")


def descendants(root: int) -> list[Process]:
    """The living process ``root`` and all below it."""
    children: dict[int, list[int]] = {}
    stats = {int(name): _stat(name) for name in os.listdir("/proc") if name.isdigit()}
    for pid, stat in stats.items():
        if stat and stat[0] not in "ZX":
            children.setdefault(int(stat[1]), []).append(pid)
    found = []
    queue = [root]
    while queue:
        pid = queue.pop()
        if stat := stats.get(pid):
            found.append(Process(pid, stat[19], _title(pid)))
        queue += children.get(pid, [])
    return found


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


def _kill(process: Process) -> None:
    if process.is_alive:
        os.kill(process.pid, signal.SIGKILL)
