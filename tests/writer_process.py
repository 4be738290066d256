"""Real writer processes on a temporary data directory, on a socket that the test holds as the supervisor does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import netwatch
from tests.wire import RawLink

DEADLINE_S: Final = 20.0

_MAIN: Final = """
import json, os, socket, sys
from pathlib import Path
from netwatch import writer
from netwatch.errors import StartError
from netwatch.metrics.board import Meter
from netwatch.settings import Settings
from netwatch.storage.files import open_data_directory
from netwatch.storage.layout import new_instance

data_dir, listener, news, settings = sys.argv[1:]
os.writev(int(news), [b"pid %d\\n" % os.getpid()])  # not write(), which tests count
queue = socket.socket(fileno=int(listener))
chosen = Settings(data_dir=Path(data_dir), **json.loads(settings))
try:
    is_clean = writer.run(
        chosen,
        open_data_directory(chosen.data_dir),
        queue,
        lambda word: os.write(int(news), word.encode() + b"\\n"),
        new_instance(),
        {},
        meter=Meter(),
        on_beat=lambda: None,
    )
except StartError as error:
    print(f"netwatch: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
except OSError as error:  # of open_data_directory, which is the supervisor's part
    sys.exit(f"netwatch: {error}")
sys.exit(0 if is_clean else 1)
"""


class WriterProcess:
    """One process that runs ``netwatch.writer.run``, under strace where ``strace`` has options for it."""

    def __init__(
        self, data_dir: Path, listener: socket.socket, strace: Sequence[str], settings: dict[str, Any]
    ) -> None:
        self._news, theirs = os.pipe()
        self._words: list[str] = []
        self._unread = b""
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        tracer = ["strace", "-f", "-qq", "-xx", *strace] if strace else []
        # the package that the test imported, even where that is a copy with a bug planted in it
        environ = {**os.environ, "PYTHONPATH": str(Path(netwatch.__file__).parent.parent)}
        fds = [listener.fileno(), theirs]
        arguments = [str(data_dir), *map(str, fds), json.dumps({"min_free_bytes": 0, **settings})]
        command = [*tracer, sys.executable, "-P", "-c", _MAIN, *arguments]
        self._process = subprocess.Popen(command, pass_fds=fds, env=environ, stderr=self.log)
        os.close(theirs)
        try:
            self.pid = int(self._word("pid ").removeprefix("pid "))
        except BaseException:
            self._process.kill()
            self.close()
            raise

    def _word(self, start: str) -> str:
        give_up_at_s = time.monotonic() + DEADLINE_S
        while True:
            for word in self._words:
                if word.startswith(start):
                    return word
            if not select.select([self._news], [], [], max(give_up_at_s - time.monotonic(), 0))[0]:
                raise TimeoutError(f"The writer did not say {start!r} in time: {self.stderr()}")
            data = os.read(self._news, 4096)
            if not data:
                raise EOFError(f"The writer ended before it said {start!r}: {self.stderr()}")
            *words, self._unread = (self._unread + data).split(b"\n")
            self._words += [word.decode() for word in words]

    def wait_for(self, word: str) -> WriterProcess:
        """Return when it said ``recovered`` or ``linked``. Raises EOFError if it ended before that."""
        self._word(word)
        return self

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: int) -> None:
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, negative for a signal, when it has ended."""
        return self._process.wait(DEADLINE_S)

    def kill(self) -> None:
        """SIGKILL it and reap it, as a supervisor must before it starts the next."""
        self.signal(signal.SIGKILL)
        self.wait()

    def drain(self) -> int:
        """SIGTERM it; its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def stderr(self) -> str:
        """What it logged."""
        self.log.seek(0)
        return self.log.read().decode()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The members of the log's lines with this event."""
        lines = [json.loads(line) for line in self.stderr().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def wait_for_event(self, name: str) -> dict[str, Any]:
        """The first such line of the log, when it is there."""
        wait_until(lambda: bool(self.events(name)), f"the event {name}")
        return self.events(name)[0]

    def rss_bytes(self) -> int:
        """Its memory."""
        return int(self._status("VmRSS")) * 1024

    def wait_idle(self) -> WriterProcess:
        """Return when it has waited for something for 50 ms."""
        seen: list[tuple[float, str]] = [(0.0, "")]

        def is_idle() -> bool:
            switches = self._status("voluntary_ctxt_switches")
            if switches != seen[-1][1] or self._status("State") != "S":
                seen.append((time.monotonic(), switches))
            return time.monotonic() - seen[-1][0] > 0.05

        wait_until(is_idle, "the writer to be idle")
        return self

    def freeze(self) -> None:
        """SIGSTOP it; it stands still when this returns."""
        self.signal(signal.SIGSTOP)
        wait_until(lambda: self._status("State") == "T", "the writer to stand still")

    def _status(self, member: str) -> str:
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{member}:\s+(\S+)", status, re.MULTILINE)
        assert found
        return found[1]

    def close(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(AttributeError):  # it never said its pid
                self.signal(signal.SIGCONT)
                self.signal(signal.SIGKILL)
            self._process.kill()
            self._process.wait()
        os.close(self._news)
        self.log.close()


class WriterHouse:
    """A data directory, the queue's socket, and the writers that were started there one after another."""

    def __init__(self, directory: Path, socket_path: str) -> None:
        self.data_dir = directory / "data"
        self.path = socket_path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(socket_path)
        self._listener.listen(128)
        self._writers: list[WriterProcess] = []
        self._links: list[RawLink] = []

    def start(self, *, strace: Sequence[str] = (), **settings: Any) -> WriterProcess:
        """Start a writer; the one before it must have been reaped."""
        assert not any(writer.is_alive for writer in self._writers)
        self._writers.append(WriterProcess(self.data_dir, self._listener, strace, settings))
        return self._writers[-1]

    def link(self, link_id: bytes = b"", *, timeout_s: float = DEADLINE_S, greet: bool = True) -> RawLink:
        """A new link, by hand."""
        self._links.append(RawLink(self.path, link_id, timeout_s=timeout_s, greet=greet))
        return self._links[-1]

    def open_files(self) -> list[Path]:
        return sorted((self.data_dir / "open").iterdir())

    def sealed_files(self) -> list[Path]:
        return sorted((self.data_dir / "reports").glob("*/*.jsonl.zst"))

    def sealed_lines(self) -> bytes:
        """All lines of all sealed files, as the stock tool reads them; a file that is not one whole frame fails."""
        command = ["zstd", "-dcq", "--", *map(str, self.sealed_files())]
        return subprocess.run(command, check=True, capture_output=True).stdout if self.sealed_files() else b""

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
        for link in self._links:
            link.close()
        self._listener.close()


@contextlib.contextmanager
def writer_house(directory: Path) -> Iterator[WriterHouse]:
    """A house below ``directory``; the socket's path is short, whatever ``directory`` is called."""
    with tempfile.TemporaryDirectory(prefix="netwatch-") as short:
        house = WriterHouse(directory, f"{short}/queue.sock")
        try:
            yield house
        finally:
            house.close()


def wait_until(is_so: Callable[[], bool], what: str, timeout_s: float = DEADLINE_S) -> None:
    """Return when ``is_so()``; fail after ``timeout_s``."""
    give_up_at_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < give_up_at_s, f"waited {timeout_s} s in vain for {what}"
        time.sleep(0.005)
