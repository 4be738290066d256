"""A server that is measured, from its start to the last of its processes' end; any, by the template of its command."""

from __future__ import annotations

import http.client
import json
import random
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from netwatch.bench import processes

NETWATCH_COMMAND = (
    "{python} -m netwatch serve --bind {address} --data-dir {dir} --workers {workers} --durability {durability}"
)
PEER_COMMAND = "{path} -addr {address} -dir {dir}"

_START_TIMEOUT_S = 20.0
_ANSWER_TIMEOUT_S = 20.0
_STOPPED = (0, -15)  # by itself, or by the SIGTERM that it got


class Void(Exception):
    """A round that says nothing, and why."""


@dataclass(frozen=True)
class Contestant:
    """A server that can be started again and again."""

    name: str
    command: str  # a template
    takes_ndjson: bool
    path: str = ""

    def words(self, **values: object) -> list[str]:
        """Its command; KeyError or ValueError when the template asks for what is not there."""
        values |= {"python": sys.executable, "path": self.path}
        return [word.format(**values) for word in shlex.split(self.command)]


@dataclass(frozen=True)
class Account:
    """What all of a server's processes have used since it was started."""

    cpu_s: float
    write_bytes: int


@dataclass(frozen=True)
class Sample:
    """A server in the middle of its work."""

    pss_bytes: int
    connections: list[int]  # of each process that has any


class Server:
    """One run of it, within a `with`; what the body of that leaves running is stopped."""

    def __init__(self, contestant: Contestant, directory: Path, **values: object) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.data_dir = directory / "data"
        self._log = directory / "log"
        self._words = contestant.words(address=self.address, dir=self.data_dir, **values)
        self._keeper: subprocess.Popen[str]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            log = stack.enter_context(self._log.open("wb"))
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", "netwatch.bench.keeper", *self._words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for us; the keeper stops when we have ended
            )
        assert self._keeper.stdout
        first = self._keeper.stdout.readline()
        if not first.strip().isdigit():
            self._keeper.communicate()
            raise Void(f"it did not start: {json.loads(first)['error'] if first else self.log_tail()}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._keeper.poll() is None:
            self._keeper.communicate()

    def stop(self) -> Account:
        """Stop it and wait for the last of its processes; what all of them used. Void when it did not end well."""
        said, _ = self._keeper.communicate()
        account = json.loads(said.splitlines()[-1])
        if account["killed"] or account["exit_code"] not in _STOPPED:
            killed = f", {account['killed']} processes had to be killed" if account["killed"] else ""
            raise Void(f"it ended with exit code {account['exit_code']}{killed}: {self.log_tail()}")
        return Account(account["cpu_s"], account["write_bytes"])

    def used(self) -> Account:
        """What it has used so far; exact while it is idle."""
        return Account(processes.cpu_s(self._keeper.pid), processes.write_bytes(self._keeper.pid))

    def sample(self) -> Sample:
        connections = processes.connections(self._keeper.pid, self.port)
        return Sample(processes.pss_bytes(self._keeper.pid), connections)

    def check(self, bodies: Iterable[bytes], content_type: str, reports: int) -> None:
        """Wait until it answers, and post each body once: Void when an answer is not 200, or not for all reports."""
        give_up_at_s = time.monotonic() + _START_TIMEOUT_S
        connection = http.client.HTTPConnection(self.address, timeout=_ANSWER_TIMEOUT_S)
        while True:
            try:
                connection.connect()
                break
            except ConnectionRefusedError:
                if time.monotonic() > give_up_at_s:
                    raise Void(f"nobody listens on {self.address}: {self.log_tail()}") from None
                time.sleep(0.02)
        try:
            for body in bodies:
                connection.request("POST", "/api/v1/reports", body, {"Content-Type": content_type})
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200 or _accepted(text, reports) != reports:
                    raise Void(f"it answered {answer.status} to a body of {reports} reports: {text[:200]!r}")
        except (OSError, http.client.HTTPException) as error:
            raise Void(f"it gave no answer ({error!r}): {self.log_tail()}") from None
        finally:
            connection.close()

    def log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "it logged nothing"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses, below those from which the clients' own are taken."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _accepted(text: bytes, otherwise: int) -> int:
    """How many reports an answer says were taken; not every server says."""
    try:
        answer: Any = json.loads(text)
        return int(answer.get("accepted", otherwise))
    except (ValueError, AttributeError, TypeError):
        return otherwise
