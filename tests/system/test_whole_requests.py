"""One request is stored by one commit or not at all: 10 000 reports while the writer, or all, is killed."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.system.conftest import Serve
from tests.system.server import Answer, Server, wait_until

REPORTS_TOTAL = 10_000


def body(name: str) -> bytes:
    """About 1.3 MB of reports that are told apart by their clientId."""
    return b"".join(
        b'{"clientId":"%b %d","hosts":[{"name":"a","url":"http://a/","status":"online","history":[{"t":%d}]}]}\n'
        % (name.encode(), number, number)
        for number in range(REPORTS_TOTAL)
    )


def post(server: Server, name: str, answers: dict[str, Answer | None]) -> None:
    try:
        answers[name] = server.ask(
            "POST", "/api/v1/reports", body(name), {"Content-Type": "application/x-ndjson"}, timeout_s=15
        )
    except OSError:
        answers[name] = None


def stored_by_request(server: Server) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for client in server.stored_clients():
        found.setdefault(client.split()[0], Counter())[client] += 1
    return found


def kill_while_posting(
    server: Server, rounds_total: int, kill: Callable[[], None], again: Callable[[], object]
) -> dict[str, Answer | None]:
    """Kill at another moment of each round's request; the answers by the names of the requests."""
    answers: dict[str, Answer | None] = {}
    assert server.ask("POST", "/api/v1/reports", body("whole"), {"Content-Type": "application/x-ndjson"}).status == 200
    start_s = time.monotonic()
    post(server, "timed", answers)
    usual_s = time.monotonic() - start_s
    for number in range(rounds_total):
        thread = threading.Thread(target=post, args=(server, f"round{number}", answers))
        thread.start()
        # Most of the time goes into sending and making lines; the commit is at the end.
        time.sleep(usual_s * (0.3 + 0.8 * number / rounds_total))
        kill()
        thread.join()
        again()
    return answers


def test_row_02_a_request_of_10000_is_one_200_when_the_writer_is_killed_in_the_middle(
    serve: Serve, full_sweeps: bool, thinned: Callable[[int, int, str], None]
) -> None:
    rounds_total = 40 if full_sweeps else 5
    thinned(40, rounds_total, "moments at which the writer is killed in a request of 10 000")
    server = serve("--workers", "1")

    def kill() -> None:
        os.kill(server.find_one("writer").pid, signal.SIGKILL)

    def again() -> None:
        assert wait_until(lambda: server.find("writer"), 5)
        time.sleep(0.5)  # or it is its backoff that the next round meets

    answers = kill_while_posting(server, rounds_total, kill, again)
    assert {answer and answer.status for answer in answers.values()} == {200}
    assert {answer and answer.json["accepted"] for answer in answers.values()} == {REPORTS_TOTAL}
    server.stop()
    found = stored_by_request(server)
    assert set(found) == {"whole", *answers}
    for name in found:
        assert len(found[name]) == REPORTS_TOTAL
        assert max(found[name].values()) == 1


def test_row_04_a_request_of_10000_is_stored_whole_or_not_at_all_when_all_is_killed(
    serve: Serve, full_sweeps: bool, thinned: Callable[[int, int, str], None]
) -> None:
    """There is no resend here: what a commit left of it is recovered whole, or cut off whole."""
    rounds_total = 40 if full_sweeps else 5
    thinned(40, rounds_total, "moments at which all is killed in a request of 10 000")
    server = serve("--workers", "1")
    answers = kill_while_posting(server, rounds_total, server.kill, server.start)
    server.stop()
    found = stored_by_request(server)
    for name, answer in answers.items():
        stored = found.get(name, Counter())
        assert len(stored) in (0, REPORTS_TOTAL), f"{name}: {len(stored)}"
        assert max(stored.values(), default=1) == 1
        if answer and answer.status == 200:
            assert len(stored) == REPORTS_TOTAL


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_request_of_10000_is_one_commit(serve: Serve, workers: str) -> None:
    """The lines of requests that come at the same time never interleave."""
    server = serve("--workers", workers)
    answers: dict[str, Answer | None] = {}
    threads = [threading.Thread(target=post, args=(server, f"client{number}", answers)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.stop()
    order = [line["report"]["clientId"].split()[0] for line in server.stored()]
    changes = sum(1 for before, after in itertools.pairwise(order) if before != after)
    assert len(order) == 4 * REPORTS_TOTAL
    assert changes == 3
