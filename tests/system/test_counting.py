"""Promise 5: of the parsed reports, received = stored + duplicate + rejected + shed + unknown + in flight.

The clients keep their own log, and what the metrics say is held against it, against the lines on disk, and against
itself in every scrape, whoever is killed meanwhile.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.system.conftest import Serve
from tests.system.server import Answer, Server, report, wait_until

TERMS: Final = ("stored_total", "duplicate_total", "rejected_total", "shed_total", "unknown_total", "in_flight")
_SAMPLE: Final = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")


class Scrape:
    """One answer of ``/metrics``."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [match.groups() for match in map(_SAMPLE.fullmatch, text.splitlines()) if match]

    def total(self, name: str, labels: str = "") -> float:
        """The sum of all series of ``netwatch_<name>`` whose labels hold ``labels``."""
        return sum(
            float(value) for found, has, value in self.samples if found == f"netwatch_{name}" and labels in (has or "")
        )

    @property
    def terms(self) -> dict[str, float]:
        return {name: self.total(f"reports_{name}") for name in TERMS}

    def demand_exact(self) -> None:
        assert self.total("reports_received_total") == sum(self.terms.values()), self.terms

    def demand_valid(self) -> None:
        check = subprocess.run(
            ["promtool", "check", "metrics"], input=self.text, text=True, capture_output=True, timeout=60
        )
        assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def scrape(server: Server) -> Scrape:
    answer = server.ask("GET", "/metrics")
    assert answer.status == 200
    return Scrape(answer.body.decode())


class Log(NamedTuple):
    """What the clients know: of answered requests what became of their reports, of the others how many there were."""

    known: Counter[str]
    unanswered: Counter[str]
    codes: Counter[str]


class Clients:
    """Threads that post, each one request after the other: good and bad reports, retries under a key, large bodies."""

    def __init__(self, server: Server, count: int, *, is_calm: bool) -> None:
        self.log = Log(Counter(), Counter(), Counter())
        self._server = server
        self._is_calm = is_calm
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _run(self, number: int) -> None:
        rng = random.Random(number)
        sent = 0
        while not self._over.is_set():
            sent += 1
            reports: list[Any] = [report(f"{number}-{sent}-{place}") for place in range(rng.choice((1, 1, 2, 7)))]
            if rng.random() < 0.3:
                reports.append({"clientId": 5})
            if rng.random() < 0.2:
                reports.append(report(f"{number}-{sent}-large", padding_bytes=25_000))
            key = {"Idempotency-Key": f"{number}-{sent}"} if rng.random() < 0.4 else {}
            again = 2 if rng.random() < 0.3 else 1
            while key and again and not self._over.is_set():
                again -= self._post(reports, key)
            if not key:
                self._post(reports, key)

    def _post(self, reports: list[Any], headers: dict[str, str]) -> bool:
        """Post it once; whether it was answered with 200."""
        try:
            answer = self._server.post(*reports, headers=headers)
        except (OSError, http.client.HTTPException):
            assert not self._is_calm
            with self._lock:
                self.log.unanswered["reports"] += len(reports)
            time.sleep(0.01)
            return False
        with self._lock:
            self._note(answer, len(reports))
        return answer.status == 200

    def _note(self, answer: Answer, count: int) -> None:
        known = self.log.known
        if answer.status == 200:
            told = answer.json
            known["stored_total"] += told["accepted"]
            known["duplicate_total"] += told["duplicates"]
            known["rejected_total"] += told["rejected"]
            assert told["accepted"] + told["duplicates"] + told["rejected"] == count
            return
        self.log.codes[answer.code] += 1
        bad = answer.json.get("rejected", 0)
        if answer.code in ("overloaded", "over_share", "too_many_connections"):
            return
        known["rejected_total"] += bad
        if answer.status == 503:
            known["refused"] += count


def idle(server: Server) -> Scrape:
    """A scrape once nothing is in flight any more."""
    last = wait_until(lambda: ((one := scrape(server)).terms["in_flight"] == 0 and one) or None, 10)
    assert last
    return last


def lines_on_disk(server: Server) -> int:
    return len(server.stored())


FLAGS: Final = ("--max-body-bytes", "65536", "--in-flight-bytes", "65536", "--ack-timeout-s", "0.5")


def test_without_kills_every_term_is_what_the_clients_saw(serve: Serve) -> None:
    server = serve("--workers", "2", *FLAGS)
    clients = Clients(server, 12, is_calm=True)
    clients.start()
    time.sleep(4)
    clients.end()
    last = idle(server)
    last.demand_exact()
    log = clients.log
    for name in ("stored_total", "duplicate_total"):
        assert last.terms[name] == log.known[name] > 0, name
    assert log.codes.keys() <= {"overloaded", "over_share", "invalid_member", "ack_timeout"}
    # of a refused request that was parsed the client is not told how many of its reports were bad
    assert last.terms["rejected_total"] >= log.known["rejected_total"] > 0
    late = last.terms["shed_total"] + last.terms["unknown_total"]
    extra = last.terms["rejected_total"] - log.known["rejected_total"]
    assert late + extra == log.known["refused"]
    assert last.total("rejections_total") == last.terms["rejected_total"]
    assert last.total("requests_total", 'code="overloaded"') == log.codes["overloaded"]
    assert last.total("requests_total", 'status="200",code="ok"') > 0
    server.stop()
    assert (
        last.terms["stored_total"] <= lines_on_disk(server) <= last.terms["stored_total"] + last.terms["unknown_total"]
    )


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return 0


def storm(serve: Serve, duration_s: float, *, every_s: float) -> None:
    """Kill and freeze workers, the writer and Gunicorn under load; every scrape adds up, also of all that died."""
    server = serve("--workers", "3", *FLAGS)
    clients = Clients(server, 12, is_calm=False)
    clients.start()
    rng = random.Random(5)
    until_s = time.monotonic() + duration_s
    kills: Counter[str] = Counter()
    scrapes: list[Scrape] = []
    while time.monotonic() < until_s:
        kind = rng.choice(("worker", "worker", "writer", "writer", "gunicorn", "freeze"))
        victims = server.find("writer" if kind == "freeze" else kind)
        if kind == "gunicorn":  # a worker that was forked just now has its master's title
            victims = [victim for victim in victims if parent_of(victim.pid) == server.pid]
        if victims:
            victim = rng.choice(victims).pid
            os.kill(victim, signal.SIGSTOP if kind == "freeze" else signal.SIGKILL)
            kills[kind] += 1
        next_s = time.monotonic() + every_s
        while time.monotonic() < next_s:
            try:
                scrapes.append(scrape(server))
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)
            else:
                scrapes[-1].demand_exact()
                del scrapes[1:-1]
                time.sleep(0.05)
        if victims and kind == "freeze":
            os.kill(victim, signal.SIGCONT)
    clients.end()
    assert wait_until(lambda: len(server.find("worker")) == 3, 10)
    scrapes[-1].demand_valid()  # taken in the storm
    last = idle(server)
    last.demand_exact()
    last.demand_valid()
    log, terms = clients.log, last.terms
    said = json.dumps({"terms": terms, **{name: dict(value) for name, value in log._asdict().items()}})
    assert all(kills.values()), kills
    assert terms["unknown_total"] > 0, said
    lost = log.unanswered["reports"]
    for name in ("stored_total", "duplicate_total", "rejected_total"):
        more = log.known["refused"] if name == "rejected_total" else 0
        assert 0 < log.known[name] <= terms[name] <= log.known[name] + lost + more, f"{name}: {said}"
    assert terms["shed_total"] + terms["unknown_total"] <= log.known["refused"] + lost, said
    assert last.total("worker_starts_total") >= 3 + kills["worker"]
    assert last.total("child_deaths_total", 'child="writer"') == kills["writer"]
    assert last.total("child_deaths_total", 'child="gunicorn"') == kills["gunicorn"]
    server.stop()
    lines = lines_on_disk(server)
    assert terms["stored_total"] <= lines <= terms["stored_total"] + terms["unknown_total"], f"{lines} lines: {said}"
    print(said, kills, lines)


def test_the_sums_are_exact_whoever_is_killed(serve: Serve) -> None:
    storm(serve, 12.0, every_s=0.7)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_sums_are_exact_after_ten_minutes_of_kills(serve: Serve) -> None:
    storm(serve, 600.0, every_s=1.5)
