"""The writer, in processes of its own on a socket that the test holds, with workers played by hand.

What is stored is read by the stock zstd. Each of the design's seven rules for storing once has its tests here, as far
as the queue and the writer keep it; strace kills the writer at a chosen system call.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netwatch.queue import Inbox
from netwatch.storage.files import Files, open_data_directory
from netwatch.writer import HEARTBEAT_S, Writer
from tests.doubles import made_store
from tests.wire import RawLink, batch, ids, make_lines
from tests.writer_process import DEADLINE_S, WriterHouse, WriterProcess, wait_until, writer_house

KIB = 1024
MIB = 1024 * KIB


@pytest.fixture
def house(tmp_path: Path) -> Iterator[WriterHouse]:
    """An empty data directory and the queue's socket."""
    with writer_house(tmp_path) as made:
        yield made


def lines_of(count: int = 1, padding: int = 0) -> bytes:
    return b"".join(make_lines(count, "x" * padding))


def open_bytes(house: WriterHouse) -> int:
    """How many bytes the open segments have."""
    return sum(path.stat().st_size for path in house.open_files())


def drained(house: WriterHouse, writer: WriterProcess) -> bytes:
    """Drain the writer, which must leave nothing; all lines."""
    assert writer.drain() == 0, writer.stderr()
    assert house.open_files() == []
    return house.sealed_lines()


def assert_stored_once(house: WriterHouse, writer: WriterProcess, *batches: bytes) -> None:
    """Drain the writer; exactly the lines of ``batches`` are stored, each once and as it was sent."""
    assert sorted(drained(house, writer).splitlines()) == sorted(b"".join(batches).splitlines())


# --- take, commit, ack ------------------------------------------------------------------------------------------------


def test_acked_batches_of_all_links_are_stored_once(house: WriterHouse) -> None:
    writer = house.start()
    links = [house.link() for _ in range(8)]
    sent = []
    for number in range(1, 11):
        for link in links:
            sent.append(lines_of(3))
            link.send(number, sent[-1])
        assert {link.ack(number) for link in links} == {"stored"}
    for link in links:
        link.close()
    assert_stored_once(house, writer, *sent)


def test_it_says_when_it_takes_batches_and_when_a_link_is_there(house: WriterHouse) -> None:
    writer = house.start().wait_for("recovered")
    house.link()
    writer.wait_for("linked")


def test_writer_that_cannot_write_says_so_in_one_sentence(house: WriterHouse) -> None:
    house.data_dir.mkdir()
    (house.data_dir / "open").write_text("in the way")
    writer = house.start()
    assert writer.wait() == 1
    assert "Cannot write in the data directory" in writer.stderr()
    assert "Traceback" not in writer.stderr()


def test_row_23_what_is_no_line_does_not_end_the_writer(house: WriterHouse) -> None:
    first = house.start()
    kept = lines_of(2)
    assert house.link().store(1, kept) == "stored"
    first.kill()
    writer = house.start()  # it has a leftover: resent ids are compared
    for is_resend in (False, True):
        for garbage in (b"\xff" * 300, b'{"id":"' + b"\xff" * 300 + b'"}\n', b"\n", b'{"id":"x"}\n'):
            bad = house.link(timeout_s=5)
            bad.send(1, garbage, is_resend=is_resend)
            if not (garbage == b'{"id":"x"}\n' and not is_resend):  # looks right at both ends
                bad.wait_closed()
            bad.close()
    good = house.link()
    fresh = lines_of()
    assert good.store(1, fresh) == "stored"
    assert writer.is_alive, writer.stderr()


def test_row_14_worker_stopped_within_a_big_batch_holds_up_nobody(house: WriterHouse) -> None:
    writer = house.start()
    stopped, other = house.link(), house.link()
    big, small = lines_of(padding=300 * KIB), [lines_of() for _ in range(20)]
    frame = batch(1, big)
    stopped.sock.sendall(frame[: 150 * KIB])
    for number, lines in enumerate(small, start=1):
        began_s = time.monotonic()
        assert other.store(number, lines) == "stored"
        assert time.monotonic() - began_s < 1
    stopped.sock.sendall(frame[150 * KIB :])
    assert stopped.ack(1) == "stored"
    for link in (stopped, other):
        link.close()
    assert_stored_once(house, writer, big, *small)


def test_row_01_half_batch_of_a_dead_worker_is_dropped(house: WriterHouse) -> None:
    writer = house.start()
    dead, other = house.link(), house.link()
    dead.sock.sendall(batch(1, lines_of(100))[:-1])
    dead.close()
    kept = lines_of()
    assert other.store(1, kept) == "stored"
    other.close()
    assert_stored_once(house, writer, kept)


def test_batch_larger_than_any_closes_the_link(house: WriterHouse) -> None:
    house.start(commit_bytes=64 * KIB, max_body_bytes=64 * KIB, max_reports=1)
    bad, good = house.link(), house.link()
    with contextlib.suppress(ConnectionError):
        bad.send(1, b"x" * (322 * KIB + 1))
    bad.wait_closed()
    assert good.store(1, lines_of()) == "stored"


def test_request_is_one_commit(house: WriterHouse) -> None:
    """10 000 lines of one request: one write, one sync."""
    log = house.data_dir.parent / "strace"
    writer = house.start(strace=["-o", str(log), "-e", "trace=write,fdatasync,sendto"])
    link = house.link()
    lines = lines_of(10_000)
    assert link.store(1, lines) == "stored"
    link.close()
    assert calls_since_last_sent(log, 1) == ["write", "fdatasync"]
    assert_stored_once(house, writer, lines)


# --- the seven rules --------------------------------------------------------------------------------------------------

_CALL = re.compile(r"^[0-9]+ +([a-z0-9_]+)\((.*)$")
_ACK_OF = r'[0-9]+, "\\x{:02x}(\\x00){{12}}", 13,'


def traced(log: Path) -> list[tuple[str, str]]:
    """What strace wrote: names and arguments of the calls, in order."""
    matches = [_CALL.match(line) for line in log.read_text().splitlines()]
    return [(match[1], match[2]) for match in matches if match]


def calls_before(log: Path, number: int) -> list[str]:
    """The calls before the ack of batch ``number``; what was sent before it stands there as ``sendto``."""
    ack = re.compile(_ACK_OF.format(number))

    def position() -> int:
        calls = enumerate(traced(log))
        return next((place for place, (name, rest) in calls if name == "sendto" and ack.match(rest)), -1)

    wait_until(lambda: position() >= 0, "the ack in the trace")
    return [name for name, _ in traced(log)[: position()]]


def calls_since_last_sent(log: Path, number: int) -> list[str]:
    """The calls between the ack of batch ``number`` and what was sent before it: a heartbeat or another ack."""
    calls = calls_before(log, number)
    return calls[len(calls) - calls[::-1].index("sendto") :]


def test_rule_1_append_then_sync_then_answer_then_seal(house: WriterHouse) -> None:
    log = house.data_dir.parent / "strace"
    calls = "trace=write,fdatasync,sendto,/^rename"
    writer = house.start(strace=["-o", str(log), "-e", calls], seal_bytes=1)
    link = house.link()
    assert link.store(1, lines_of()) == "stored"
    wait_until(lambda: bool(house.sealed_files()), "the sealed file")
    ack = re.compile(_ACK_OF.format(1))
    assert calls_since_last_sent(log, 1) == ["write", "fdatasync"]
    names = ["ack" if name == "sendto" and ack.match(rest) else name for name, rest in traced(log)]
    after = [name for name in names[names.index("ack") + 1 :] if name != "sendto"]
    assert [name.removesuffix("at").removesuffix("at2") for name in after[:3]] == ["write", "fdatasync", "rename"]
    link.close()
    assert writer.drain() == 0


def killed_at_the_ack(house: WriterHouse, link_id: bytes, lines: bytes) -> None:
    """A writer that is killed as it answers the first batch, which is durable by then; its worker saw no answer."""
    for attempt in range(1, 6):
        link = house.link(link_id)
        # the first thing sent is the heartbeat that greets the first link, the second is the ack, where the machine
        # isn't so slow that another heartbeat came first
        writer = house.start(strace=["-o", "/dev/null", "-e", "inject=sendto:signal=KILL:when=2"], seal_bytes=1)
        link.send(1, lines)
        with pytest.raises(EOFError):
            link.ack(1)
        assert writer.wait() == -signal.SIGKILL
        link.close()
        if open_bytes(house) or house.sealed_files():
            return
        assert attempt < 5


def test_rule_1_writer_killed_as_it_answers_knows_the_resend(house: WriterHouse) -> None:
    """Had it sealed before, nothing in open/ would tell the next writer what was stored."""
    link_id, lines = os.urandom(16), lines_of(3)
    killed_at_the_ack(house, link_id, lines)
    writer = house.start()
    link = house.link(link_id)
    assert link.store(1, lines, is_resend=True) == "stored"
    link.close()
    assert_stored_once(house, writer, lines)


def test_rule_2_ids_outlive_a_second_kill(house: WriterHouse) -> None:
    link_id, lines = os.urandom(16), lines_of(3)
    killed_at_the_ack(house, link_id, lines)
    for _ in range(2):
        house.start().wait_for("recovered").kill()  # it sealed what was left, and saw no resend
        assert len(house.sealed_files()) == 1
    writer = house.start()
    link = house.link(link_id)
    assert link.store(1, lines, is_resend=True) == "stored"
    link.close()
    assert_stored_once(house, writer, lines)


def test_rule_2_leftover_goes_at_the_end_of_a_drain(house: WriterHouse) -> None:
    lines = lines_of()
    killed_at_the_ack(house, os.urandom(16), lines)
    writer = house.start().wait_for("recovered")
    assert any(path.stat().st_size for path in house.open_files())
    assert_stored_once(house, writer, lines)


def test_rule_4_resend_older_than_ten_seconds_is_unknown(house: WriterHouse) -> None:
    writer = house.start()
    kept, refused = lines_of(), lines_of()
    young, old = house.link(), house.link()
    assert young.store(1, kept, first_sent_s=time.monotonic() - 9, is_resend=True) == "stored"
    assert old.store(1, refused, first_sent_s=time.monotonic() - 10.5, is_resend=True) == "unknown"
    for link in (young, old):
        link.close()
    assert_stored_once(house, writer, kept)


def test_rule_4_first_sending_is_taken_however_late(house: WriterHouse) -> None:
    """What waited in the socket of a frozen writer was never read before: it can be no copy."""
    writer = house.start()
    link, lines = house.link(), lines_of()
    assert link.store(1, lines, first_sent_s=time.monotonic() - 60) == "stored"
    link.close()
    assert_stored_once(house, writer, lines)


def test_rule_5_resend_is_refused_while_a_leftover_is_not_recovered(house: WriterHouse) -> None:
    first = house.start()
    link, lines = house.link(), lines_of(3)
    assert link.store(1, lines) == "stored"
    first.kill()
    day = json.loads(lines.splitlines()[0])["receivedAt"][:10]
    in_the_way = house.data_dir / "reports" / f"date={day}"
    in_the_way.touch()  # recovery cannot publish anything there, whoever runs it
    writer = house.start()
    fresh = [lines_of(), lines_of()]
    other = house.link()
    assert other.store(1, fresh[0]) == "stored"
    assert house.link().store(1, lines, is_resend=True) == "recovering"
    assert other.store(2, fresh[1]) == "stored"
    in_the_way.unlink()

    def is_answered() -> bool:
        return house.link().store(1, lines, is_resend=True) == "stored"  # by another link: refusals are remembered

    wait_until(is_answered, "the recovery")
    for known in house._links:
        known.close()
    assert_stored_once(house, writer, lines, *fresh)


def test_rule_6_link_that_breaks_while_both_live_stores_once(house: WriterHouse) -> None:
    writer = house.start()
    link_id = os.urandom(16)
    sent = [lines_of(2) for _ in range(3)]
    for number, lines in enumerate(sent, start=1):
        link = house.link(link_id)
        assert link.store(number, lines) == "stored"
        link.close()
        back = house.link(link_id)
        assert back.store(number, lines, is_resend=True) == "stored"
        again = house.link(link_id)
        assert again.store(number, lines, is_resend=True) == "stored"
        again.close()
    assert_stored_once(house, writer, *sent)


def test_rule_6_refusal_is_remembered_too(house: WriterHouse) -> None:
    writer = house.start(min_free_bytes=1 << 62)
    link, lines = house.link(), lines_of()
    assert link.store(1, lines) == "disk_full"
    link.close()
    back = house.link(link.id)
    assert back.store(1, lines, is_resend=True) == "disk_full"
    back.close()
    assert_stored_once(house, writer)


def test_rule_6_half_read_batch_of_the_predecessor_is_closed_with_it(house: WriterHouse) -> None:
    writer = house.start()
    link, lines = house.link(), lines_of(50)
    frame = batch(1, lines)
    link.sock.sendall(frame[: len(frame) // 2])
    back = house.link(link.id)
    assert back.store(1, lines, is_resend=True) == "stored"
    link.wait_closed()
    with pytest.raises(ConnectionError):
        link.sock.sendall(frame[len(frame) // 2 :])
    back.close()
    assert_stored_once(house, writer, lines)


def test_rule_6_batch_read_but_not_committed_is_stored_once(house: WriterHouse) -> None:
    """While the writer syncs other groups, a link whose batch it has read breaks, comes back and resends it."""
    greeted = 5
    delay = (
        f"inject=fdatasync:delay_enter=200000:when={greeted + 2}+"  # after the proof at the start, and the greetings
    )
    writer = house.start(strace=["-o", "/dev/null", "-e", delay], commit_bytes=KIB, seal_bytes=MIB)
    links = [house.link() for _ in range(greeted)]
    sent = [lines_of(padding=KIB) for _ in range(2 * greeted)]
    for link, lines in zip(links, sent[:greeted], strict=True):
        assert link.store(1, lines) == "stored"
    before_bytes = open_bytes(house)
    links[0].send(2, sent[greeted])
    wait_until(lambda: open_bytes(house) > before_bytes, "the first to be written, so that it is being synced")
    for link, lines in zip(links[1:], sent[greeted + 1 :], strict=True):
        link.send(2, lines)
    assert [link.ack(2) for link in links[:2]] == ["stored"] * 2
    links[-1].close()  # its batch was read with the second's, and waits for two others to be synced
    back = house.link(links[-1].id)
    assert back.store(2, sent[-1], is_resend=True) == "stored"
    assert [link.ack(2) for link in links[2:-1]] == ["stored"] * (greeted - 3)
    for link in (*links, back):
        link.close()
    assert_stored_once(house, writer, *sent)


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_rule_7_segment_given_up_is_recovered_before_the_next_group(house: WriterHouse, error: str) -> None:
    """Row 10: the failed sync is not tried again, its group is refused, and what was acked before stays stored."""
    log = house.data_dir.parent / "strace"
    trace = ["-e", "trace=fdatasync,/^rename,sendto", "-e", f"inject=fdatasync:error={error}:when=3"]
    writer = house.start(strace=["-o", str(log), *trace])
    link = house.link()
    kept, refused, fresh = lines_of(2), lines_of(2), lines_of(2)
    assert link.store(1, kept) == "stored"
    assert link.store(2, refused) == ("disk_full" if error == "ENOSPC" else "disk_error")
    assert link.store(3, fresh) == "stored"
    calls = calls_since_last_sent(log, 3)  # recovery: sync, rename; then the next group: sync
    assert calls[0] == calls[2] == "fdatasync"
    assert calls[1].startswith("rename")
    assert len(calls) == 3
    link.close()
    assert_stored_once(house, writer, kept, fresh)


# --- killed at any instant --------------------------------------------------------------------------------------------


class SteadyWorker:
    """A worker by hand that gives up nothing: it starts a new writer for a dead one, comes back and resends."""

    def __init__(self, house: WriterHouse, writer: WriterProcess, **settings: Any) -> None:
        self._house = house
        self._settings = settings
        self.writer = writer
        self.exit_codes: list[int] = []
        self._link = house.link()
        self._number = 0

    def store(self, lines: bytes) -> None:
        """Store a batch, whatever happens to the writer."""
        self._number += 1
        first_sent_s = time.monotonic()
        is_resend = False
        while True:
            try:
                self._link.send(self._number, lines, first_sent_s=first_sent_s, is_resend=is_resend)
                while not self._link.has_news(0.02):
                    self._replace_dead_writer()  # a link that none accepted yet waits for the next
                assert self._link.ack(self._number) == "stored"
            except (ConnectionError, EOFError):
                self._link.close()
                self.writer.wait()
                self._replace_dead_writer()
                self._link = self._house.link(self._link.id)
                is_resend = True
            else:
                return

    def _replace_dead_writer(self) -> None:
        if not self.writer.is_alive:
            self.exit_codes.append(self.writer.wait())
            self.writer = self._house.start(**self._settings)

    def drain(self) -> None:
        """Hang up, and drain writers until one is not killed in it."""
        self._link.close()
        self.exit_codes.append(self.writer.drain())
        while self.exit_codes[-1] == -signal.SIGKILL:
            self.writer = self._house.start(**self._settings).wait_for("recovered")
            self.exit_codes.append(self.writer.drain())


CALLS = ("write", "fdatasync", "sendto", "fsync", "/^rename", "/^unlink")


def live_and_drain(directory: Path, strace: list[str]) -> bool:
    """Three batches, sealed one by one, and a drain, with the first writer under strace; whether that was killed."""
    directory.mkdir()
    sent = [lines_of(2) for _ in range(3)]
    with writer_house(directory) as house:
        worker = SteadyWorker(house, house.start(strace=strace, seal_bytes=len(sent[0]) + 1), seal_bytes=1)
        for lines in sent:
            worker.store(lines)
        worker.drain()
        assert set(worker.exit_codes[:-1]) <= {-signal.SIGKILL}
        assert worker.exit_codes[-1] == 0, worker.writer.stderr()
        assert sorted(house.sealed_lines().splitlines()) == sorted(b"".join(sent).splitlines())
        assert house.open_files() == []
        return len(worker.exit_codes) > 1


def test_row_02_writer_killed_at_every_system_call(
    tmp_path: Path, full_sweeps: bool, thinned: Callable[[int, int, str], None]
) -> None:
    """Of its start, commits, acks, seals and drain: nothing is lost, nothing is stored twice."""
    log = tmp_path / "strace"
    assert not live_and_drain(tmp_path / "untouched", ["-o", str(log), "-e", "trace=" + ",".join(CALLS)])
    names = [name for name, _ in traced(log)]
    totals = {call: sum(bool(re.search(call.lstrip("/"), name)) for name in names) for call in CALLS}
    cases = [(call, number) for call, total in totals.items() for number in range(1, total + 1)]
    syncs = [place for place, name in enumerate(names) if name == "fdatasync" and names[place - 1] == "write"]
    commit = ("write", names[: syncs[1]].count("write"))  # the first sync is the proof that the disk can
    chosen = cases if full_sweeps else sorted({commit, *cases[:: max(len(cases) // 12, 1)]})
    thinned(len(cases), len(chosen), "system calls to kill the writer at")
    for case, (call, number) in enumerate(chosen):
        inject = f"inject={call}:signal=KILL:when={number}"
        was_killed = live_and_drain(tmp_path / f"case-{case}", ["-o", "/dev/null", "-e", inject])
        assert was_killed or call == "sendto", inject  # heartbeats: how many there are, the clock decides


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_request_of_10_000_reports_is_stored_whole_when_the_writer_dies_in_its_commit(
    house: WriterHouse, tmp_path: Path, call: str
) -> None:
    """Not at all, if it is killed before the write; whole, if before the sync: and never a part or a copy."""
    with writer_house(tmp_path / "untouched") as untouched:
        log = tmp_path / "strace"
        untouched.start(strace=["-o", str(log), "-e", f"trace={call},sendto"])
        untouched.link().store(1, lines_of())
        number = calls_before(log, 1).count(call)
    lines = lines_of(10_000)
    inject = f"inject={call}:signal=KILL:when={number}"
    first = house.start(strace=["-o", "/dev/null", "-e", inject]).wait_for("recovered")
    link = house.link()
    first_sent_s = time.monotonic()
    link.send(1, lines, first_sent_s=first_sent_s)
    with pytest.raises(EOFError):
        link.ack(1)
    assert first.wait() == -signal.SIGKILL
    assert bool(open_bytes(house)) == (call == "fdatasync")
    writer = house.start().wait_for("recovered")
    assert len(house.sealed_lines().splitlines()) == (10_000 if call == "fdatasync" else 0)
    back = house.link(link.id)
    assert back.store(1, lines, first_sent_s=first_sent_s, is_resend=True) == "stored"
    back.close()
    assert_stored_once(house, writer, lines)


def test_resend_completes_a_batch_that_was_stored_in_part(house: WriterHouse) -> None:
    """What the disk kept of a commit that was never answered: some whole lines, then a torn tail."""
    link_id, lines = os.urandom(16), lines_of(3000, padding=100)
    killed_at_the_ack(house, link_id, lines)
    leftover = next(path for path in house.open_files() if path.stat().st_size)
    os.truncate(leftover, leftover.stat().st_size * 2 // 3)
    writer = house.start().wait_for("recovered")
    stored = len(house.sealed_lines().splitlines())
    assert 0 < stored < 3000
    link = house.link(link_id)
    assert link.store(1, lines, is_resend=True) == "stored"
    link.close()
    assert_stored_once(house, writer, lines)


# --- drain, seal, heartbeats ------------------------------------------------------------------------------------------


def test_term_takes_what_links_still_send_and_ends_with_the_last(house: WriterHouse) -> None:
    writer = house.start()
    links = [house.link() for _ in range(2)]
    sent = [lines_of() for _ in range(7)]
    for link in links:
        link.send(1, sent[0] if link is links[0] else sent[1])
        assert link.ack(1) == "stored"
    writer.signal(signal.SIGTERM)
    for number, lines in enumerate(sent[2:6], start=2):
        assert links[0].store(number, lines) == "stored"
    links[0].close()
    assert links[1].store(2, sent[6]) == "stored"
    assert writer.is_alive
    links[1].close()
    assert writer.wait() == 0
    assert_stored_once(house, writer, *sent)


@pytest.mark.parametrize("frozen_s", [0.0, 1.1 * HEARTBEAT_S])
def test_term_takes_a_link_that_has_not_been_accepted_yet(house: WriterHouse, frozen_s: float) -> None:
    """Also when the time of its wait is over as the signal comes: select() returns then without having looked."""
    writer = house.start().wait_for("recovered").wait_idle()
    writer.freeze()
    sent = [lines_of() for _ in range(3)]
    links = [house.link(timeout_s=5) for _ in sent]
    for link, lines in zip(links, sent, strict=True):
        link.send(1, lines)
    time.sleep(frozen_s)
    writer.signal(signal.SIGTERM)
    writer.signal(signal.SIGCONT)
    for link in links:
        assert link.ack(1) == "stored"
        link.close()
    assert_stored_once(house, writer, *sent)


def test_term_while_it_recovers_drains_after_that(house: WriterHouse) -> None:
    first = house.start()
    link, lines = house.link(), lines_of(3)
    assert link.store(1, lines) == "stored"
    link.close()
    first.kill()
    delay = "inject=fdatasync:delay_enter=200000:when=2"  # in the recovery; the first is the proof
    writer = house.start(strace=["-o", "/dev/null", "-e", delay])
    wait_until(lambda: any(path.suffix == ".recovering" for path in house.open_files()), "the recovery")
    assert_stored_once(house, writer, lines)


def test_stop_without_reports_leaves_no_file(house: WriterHouse) -> None:
    writer = house.start().wait_for("recovered")
    house.link().close()
    assert drained(house, writer) == b""
    assert sorted(path.name for path in house.data_dir.iterdir()) == ["open", "quarantine", "reports"]
    assert list((house.data_dir / "reports").iterdir()) == []


def test_usr1_seals_now(house: WriterHouse) -> None:
    writer = house.start()
    link, sent = house.link(), [lines_of() for _ in range(3)]
    for number, lines in enumerate(sent, start=1):
        assert link.store(number, lines) == "stored"
        assert len(house.sealed_files()) == number - 1
        writer.signal(signal.SIGUSR1)
        wait_until(lambda number=number: len(house.sealed_files()) == number, "the seal")  # type: ignore[misc]
        assert sorted(house.sealed_lines().splitlines()) == sorted(b"".join(sent[:number]).splitlines())
    writer.signal(signal.SIGUSR1)  # nothing to seal
    link.close()
    assert_stored_once(house, writer, *sent)
    assert [event["reason"] for event in writer.events("segment_sealed")] == ["asked"] * 3


def test_segment_is_sealed_at_its_size(house: WriterHouse) -> None:
    writer = house.start(seal_bytes=10 * KIB)
    link, sent = house.link(), [lines_of(padding=3 * KIB) for _ in range(8)]
    for number, lines in enumerate(sent, start=1):
        assert link.store(number, lines) == "stored"
    link.close()
    assert_stored_once(house, writer, *sent)
    assert [event["reason"] for event in writer.events("segment_sealed")] == ["size"] * 2
    assert all(10 * KIB <= event["lines_bytes"] < 14 * KIB for event in writer.events("segment_sealed"))


def test_segment_is_sealed_so_long_after_its_first_line(house: WriterHouse) -> None:
    writer = house.start(seal_after_s=0.4)
    link, sent = house.link(), [lines_of(), lines_of()]
    assert link.store(1, sent[0]) == "stored"
    began_s = time.monotonic()
    assert link.store(2, sent[1]) == "stored"
    wait_until(lambda: bool(house.sealed_files()), "the seal")
    assert 0.3 < time.monotonic() - began_s < 5
    assert writer.wait_for_event("segment_sealed")["reason"] == "age"
    link.close()
    assert_stored_once(house, writer, *sent)


def test_batches_are_refused_below_the_reserve(house: WriterHouse) -> None:
    writer = house.start(min_free_bytes=1 << 62)
    link = house.link()
    assert link.heartbeat() == "disk_full"
    assert link.store(1, lines_of()) == "disk_full"
    link.close()
    assert drained(house, writer) == b""


class RoomyFiles(Files):
    """A disk with as much room as the test says."""

    room_bytes = 0

    def free_bytes(self) -> int:
        return self.room_bytes


class InThread:
    """A writer in a thread of the test, on a disk with as much room as the test says."""

    def __init__(self, directory: Path, path: str, drain_s: float) -> None:
        self.files = RoomyFiles(open_data_directory(directory))
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen()
        self._listener.setblocking(False)
        self._wakeup, self._signalled = os.pipe()
        inbox = Inbox(self._listener, self._wakeup, max_batch_bytes=MIB, group_bytes=MIB)
        store = made_store(self.files, seal_bytes=MIB, min_free_bytes=MIB)
        store.start(time.monotonic())
        self._writer = Writer(inbox, store, drain_s=drain_s, on_link=lambda: None, on_beat=lambda: None)
        self.is_clean: bool | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.is_clean = self._writer.run()

    def drain(self) -> bool | None:
        self._writer.drain()
        os.write(self._signalled, b"\x0f")
        self._thread.join(DEADLINE_S)
        return self.is_clean

    def close(self) -> None:
        self.drain()
        self._listener.close()
        for fd in (self._wakeup, self._signalled, self.files._root):
            os.close(fd)


@pytest.fixture
def in_thread(tmp_path: Path) -> Iterator[InThread]:
    """A writer in a thread; it waits 0.2 s for its links when it drains."""
    with tempfile.TemporaryDirectory(prefix="netwatch-") as directory:
        writer = InThread(tmp_path / "data", f"{directory}/queue.sock", drain_s=0.2)
        yield writer
        writer.close()


def test_row_08_writer_goes_on_by_itself_when_there_is_room(in_thread: InThread) -> None:
    link = RawLink(in_thread.path)
    assert link.heartbeat() == "disk_full"
    assert link.store(1, lines_of()) == "disk_full"
    in_thread.files.room_bytes = 2 * MIB
    assert link.store(2, lines_of()) == "stored"
    while link.heartbeat() != "stored":
        pass
    in_thread.files.room_bytes = 0
    while link.heartbeat() != "disk_full":
        pass
    link.close()
    assert in_thread.drain() is True


def test_link_open_past_the_deadline_is_not_clean(in_thread: InThread) -> None:
    in_thread.files.room_bytes = 2 * MIB
    link = RawLink(in_thread.path)
    assert link.store(1, lines_of()) == "stored"
    began_s = time.monotonic()
    assert in_thread.drain() is False
    assert 0.15 < time.monotonic() - began_s < 5
    link.wait_closed()
    link.close()
    assert os.listdir(f"/proc/self/fd/{in_thread.files._root}/open") == []  # it is sealed all the same


def test_link_open_past_the_deadline_is_a_non_zero_exit(house: WriterHouse) -> None:
    writer = house.start(drain_timeout_s=-3.8)  # of which 4 s more are waited
    link, lines = house.link(), lines_of()
    assert link.store(1, lines) == "stored"
    assert writer.drain() == 1
    assert ids(house.sealed_lines()) == ids(lines)
