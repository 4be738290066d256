"""Idempotency keys at the writer: stored once, claimed with the commit and never before, known again after a crash."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netwatch.reports import Key, Lines
from tests import wire
from tests.test_writer import assert_stored_once
from tests.wire import keyed_batch, make_lines
from tests.writer_process import WriterHouse, WriterProcess, wait_until, writer_house

_lines = Lines("host1", max_report_bytes=1 << 20, max_depth=32)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[WriterHouse]:
    with writer_house(tmp_path) as house:
        yield house


def request(name: str, count: int = 2, first: int = 0) -> tuple[bytes, bytes]:
    """A request under the key ``name``: the key's digest, and its lines from number ``first`` on, made now."""
    key = Key("", name)
    report = json.dumps({"clientId": name, "hosts": []}).encode()
    lines = [_lines.line(report, time.time_ns(), key.id(index)) for index in range(first, first + count)]
    return key.digest, b"".join(lines)


def first_id(name: str) -> str:
    return Key("", name).id(0)


def test_the_same_key_is_stored_once_and_answered_with_the_first_id(house: WriterHouse) -> None:
    writer = house.start()
    links = [house.link(), house.link()]
    sent = request("a")
    assert links[0].store_keyed(1, sent) == ("stored", [(2, first_id("a"))])
    assert links[0].store_keyed(2, request("a")) == ("stored", [(0, first_id("a"))])
    assert links[1].store_keyed(1, request("a", 5)) == ("stored", [(0, first_id("a"))])  # bodies are not compared
    for link in links:
        link.close()
    assert_stored_once(house, writer, sent[1])


def test_the_same_key_twice_in_one_batch_is_stored_once(house: WriterHouse) -> None:
    writer = house.start()
    link = house.link()
    a, b, plain = request("a"), request("b", 1), (b"", make_lines(1)[0])
    outcome, results = link.store_keyed(1, plain, a, request("a"), b, plain := (b"", make_lines(1)[0]), request("b"))
    assert (outcome, results) == (
        "stored",
        [(2, first_id("a")), (0, first_id("a")), (1, first_id("b")), (0, first_id("b"))],
    )
    link.close()
    stored = drained_lines(house, writer)
    assert len(stored) == 5
    assert len({json.loads(line)["id"] for line in stored}) == 5


def drained_lines(house: WriterHouse, writer: WriterProcess) -> list[bytes]:
    assert writer.drain() == 0
    return house.sealed_lines().splitlines()


def test_the_same_key_twice_in_one_group_is_stored_once(house: WriterHouse) -> None:
    writer = house.start().wait_for("recovered")
    links = [house.link() for _ in range(4)]
    sent = request("a")
    writer.wait_idle().freeze()
    for link in links:
        link.sock.sendall(keyed_batch(1, [sent]))
    writer.signal(signal.SIGCONT)
    answers = [link._read() for link in links]
    while any(not number for number, _, _ in answers):
        answers = [link._read() if not answer[0] else answer for link, answer in zip(links, answers, strict=True)]
    assert {outcome for _, outcome, _ in answers} == {"stored"}
    assert sorted(results for _, _, results in answers) == [[(0, first_id("a"))]] * 3 + [[(2, first_id("a"))]]
    for link in links:
        link.close()
    assert_stored_once(house, writer, sent[1])


def test_a_commit_that_is_refused_leaves_the_key_free(house: WriterHouse) -> None:
    writer = house.start(strace=["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=3"])
    link = house.link()
    number, outcomes = 0, []
    while "disk_error" not in outcomes:
        number += 1
        outcome, results = link.store_keyed(number, request(f"k{number}"))
        outcomes.append(outcome)
        assert results == [(2, first_id(f"k{number}"))] or outcome != "stored"
        assert number < 10
    refused = request(f"k{number}")
    assert link.store_keyed(number + 1, refused) == ("stored", [(2, first_id(f"k{number}"))])
    assert link.store_keyed(number + 2, request(f"k{number}")) == ("stored", [(0, first_id(f"k{number}"))])
    link.close()
    ids = [json.loads(line)["id"] for line in drained_lines(house, writer)]
    assert sorted(ids) == sorted(Key("", f"k{n}").id(index) for n in range(1, number + 1) for index in (0, 1))


def killed_between_commit_and_answer(house: WriterHouse, sent: tuple[bytes, bytes], link_id: bytes = b"") -> None:
    """The writer dies as it sends the ack of the batch: it is stored, and nobody knows."""
    for attempt in range(1, 6):
        link = house.link(link_id)
        # the heartbeat that greets the first link is sent first, unless the machine is so slow that there is another
        writer = house.start(strace=["-o", "/dev/null", "-e", "inject=sendto:signal=KILL:when=2"], seal_bytes=1)
        link.sock.sendall(keyed_batch(1, [sent]))
        with pytest.raises(EOFError):
            link.ack(1)
        assert writer.wait() == -signal.SIGKILL
        link.close()
        if any(path.stat().st_size for path in house.open_files()):
            return
        assert attempt < 5


def test_a_retry_after_a_crash_between_commit_and_answer_adds_nothing(house: WriterHouse) -> None:
    sent = request("a")
    killed_between_commit_and_answer(house, sent)
    writer = house.start()
    link = house.link()
    assert link.store_keyed(1, request("a")) == ("stored", [(0, first_id("a"))])  # by a new request, made anew
    assert link.store_keyed(2, request("a")) == ("stored", [(0, first_id("a"))])
    link.close()
    assert_stored_once(house, writer, sent[1])


def test_a_resend_after_a_crash_is_answered_as_its_request_would_have_been(house: WriterHouse) -> None:
    """It is the same request's: for its client they are new."""
    sent, link_id = request("a"), os.urandom(16)
    killed_between_commit_and_answer(house, sent, link_id)
    writer = house.start()
    link = house.link(link_id)
    assert link.store_keyed(1, sent, is_resend=True) == ("stored", [(2, first_id("a"))])
    assert link.store_keyed(2, request("a")) == ("stored", [(0, first_id("a"))])
    link.close()
    assert_stored_once(house, writer, sent[1])


def test_a_request_that_a_crash_stored_in_part_is_completed_by_its_retry(house: WriterHouse) -> None:
    part, rest = request("a", 2), request("a", 3, first=2)
    killed_between_commit_and_answer(house, part)
    writer = house.start()
    link = house.link()
    assert link.store_keyed(1, (part[0], part[1] + rest[1])) == ("stored", [(3, first_id("a"))])
    link.close()
    assert_stored_once(house, writer, part[1], rest[1])


def test_keys_that_are_none_of_the_stored_are_stored_after_a_crash(house: WriterHouse) -> None:
    sent, other = request("a"), request("b")
    killed_between_commit_and_answer(house, sent)
    writer = house.start()
    link = house.link()
    assert link.store_keyed(1, other) == ("stored", [(2, first_id("b"))])
    link.close()
    assert_stored_once(house, writer, sent[1], other[1])


def test_while_a_leftover_is_not_recovered_keys_wait_and_other_requests_do_not(house: WriterHouse) -> None:
    sent = request("a")
    killed_between_commit_and_answer(house, sent)
    day = json.loads(sent[1].splitlines()[0])["receivedAt"][:10]
    in_the_way = house.data_dir / "reports" / f"date={day}"
    in_the_way.touch()
    writer = house.start()
    link, plain = house.link(), make_lines(1)[0]
    assert link.store_keyed(1, request("a"))[0] == "recovering"
    assert house.link().store(1, plain) == "stored"
    in_the_way.unlink()
    numbers = iter(range(2, 10_000))
    results: list[tuple[str, list[tuple[int, str]]]] = []

    def is_answered() -> bool:
        results.append(link.store_keyed(next(numbers), request("a")))
        return results[-1][0] == "stored"

    wait_until(is_answered, "the recovery")
    assert results[-1][1] == [(0, first_id("a"))]
    for known in house._links:
        known.close()
    assert_stored_once(house, writer, sent[1], plain)


def test_row_23_a_table_of_keys_that_does_not_fit_closes_the_link(house: WriterHouse) -> None:
    writer = house.start()
    key, lines = request("a")
    table = wire.KEYED.pack(key, 0, len(lines))
    payloads = [
        wire.COUNT.pack(2) + table + lines,
        wire.COUNT.pack(0xFFFFFFFF) + table + lines,
        wire.COUNT.pack(1) + wire.KEYED.pack(key, 0, len(lines) + 1) + lines,
        wire.COUNT.pack(1) + wire.KEYED.pack(key, 5, 1) + lines,
        wire.COUNT.pack(1) + wire.KEYED.pack(key, 0, 0) + lines,
        wire.COUNT.pack(1) + wire.KEYED.pack(key, 0, len(lines) - 1) + lines,
        wire.COUNT.pack(2) + table + wire.KEYED.pack(key, 0, len(lines)) + lines,
        wire.COUNT.pack(1) + table,
        b"\x01",
        wire.COUNT.pack(1) + table + lines[:-30] + b"x" * 27 + b'"}\n',
    ]
    for payload in payloads:
        link = house.link()
        link.sock.sendall(wire.BATCH.pack(len(payload), 1, time.monotonic_ns(), wire.HAS_KEYS) + payload)
        link.wait_closed()
        link.close()
    good = house.link()
    assert good.store_keyed(1, (key, lines)) == ("stored", [(2, first_id("a"))])
    good.close()
    assert_stored_once(house, writer, lines)
