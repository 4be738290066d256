"""The queue's two ends, each against a peer that speaks the wire format by hand, over real Unix sockets.

:class:`netwatch.queue.Link` runs in the loops it has in a worker and in a plain one; :class:`netwatch.queue.Inbox` is
called step by step, so that a link breaks exactly where the test says.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import secrets
import signal
import socket
import tempfile
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from netwatch.errors import Overloaded
from netwatch.queue import Batch, Inbox, Link, Stored
from tests.wire import ACK, BATCH, COUNT, HELLO, MAGIC, OUTCOMES, RESEND, RESULT, RawLink, batch, hello, make_lines
from tests.writer_process import wait_until, writer_house

KIB = 1024
DEADLINE_S = 20.0
LOOP_DEADLINE_S = 6.0

Main = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture
def path() -> Iterator[str]:
    """A path for a socket, short enough wherever the tests run."""
    with tempfile.TemporaryDirectory(prefix="netwatch-") as directory:
        yield f"{directory}/queue.sock"


# --- the worker's end -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    """Runs a coroutine function to its end, in a worker's loop and in a plain one."""

    def run_main(main: Main) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(main(), LOOP_DEADLINE_S))

    return run_main


class Sent:
    """A batch as it came."""

    def __init__(self, number: int, first_sent_ns: int, flags: int, lines: bytes) -> None:
        self.number = number
        self.first_sent_ns = first_sent_ns
        self.flags = flags
        self.lines = lines


class HandWriter:
    """The writer's end of one link, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.link_id = b""

    async def greeting(self) -> bytes:
        magic, link_id = HELLO.unpack(await self._reader.readexactly(HELLO.size))
        assert magic == MAGIC
        return bytes(link_id)

    async def batch(self) -> Sent:
        size, number, first_sent_ns, flags = BATCH.unpack(await self._reader.readexactly(BATCH.size))
        return Sent(number, first_sent_ns, flags, await self._reader.readexactly(size))

    def ack(self, number: int, outcome: str = "stored") -> None:
        self.write(ACK.pack(number, OUTCOMES.index(outcome), 0))

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def die(self) -> None:
        self._writer.transport.abort()

    def hang_up(self) -> None:
        """Close the link when all is sent."""
        self._writer.close()

    def freeze(self) -> None:
        """Read no more."""
        self._transport.pause_reading()

    def thaw(self) -> None:
        self._transport.resume_reading()

    @property
    def _transport(self) -> asyncio.ReadTransport:
        return cast(asyncio.ReadTransport, self._writer.transport)


class HandWriters:
    """The links that a worker opens, one after another; each says hello first."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[HandWriter] = asyncio.Queue()
        self._all: list[HandWriter] = []

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._all.append(HandWriter(reader, writer))
        self.accepted.put_nowait(self._all[-1])

    def die(self) -> None:
        for writer in self._all:
            writer.die()

    async def next(self) -> HandWriter:
        writer = await self.accepted.get()
        writer.link_id = await writer.greeting()
        return writer


@contextlib.asynccontextmanager
async def listening(path: str) -> AsyncIterator[HandWriters]:
    writers = HandWriters()
    server = await asyncio.start_unix_server(writers.accept, path)
    try:
        yield writers
    finally:
        server.close()
        writers.die()
        await turns()


@contextlib.asynccontextmanager
async def linked(
    path: str, *, batch_bytes: int = 64 * KIB, ack_timeout_s: float = DEADLINE_S
) -> AsyncIterator[tuple[Link, HandWriters, HandWriter]]:
    """A link, and the writer's end of it."""
    async with listening(path) as writers:
        link = Link(path, batch_bytes=batch_bytes, ack_timeout_s=ack_timeout_s)
        link.open()
        yield link, writers, await writers.next()
        await link.close()  # not after a failure: it waits for what was handed over


async def turns() -> None:
    """Let the loop do what it can do without waiting for anything."""
    for _ in range(20):
        await asyncio.sleep(0)


async def become(is_so: Callable[[], bool]) -> None:
    """Return when ``is_so()``; :func:`run` has a deadline for everything."""
    while True:
        if is_so():
            return
        await asyncio.sleep(0.001)


async def refusal(stored: asyncio.Future[Stored | None]) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        await stored
    return caught.value


def test_batch_is_acked(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path) as (link, _, writer):
            before_ns = time.monotonic_ns()
            stored = link.store(b"one\n")
            sent = await writer.batch()
            assert (sent.number, sent.flags, sent.lines) == (1, 0, b"one\n")
            assert before_ns <= sent.first_sent_ns <= time.monotonic_ns()
            assert not stored.done()
            writer.ack(1)
            await stored

    run(main)


def test_what_arrives_in_one_turn_goes_in_one_batch(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path) as (link, _, writer):
            stored = [link.store(b"one\n"), link.store(b"two\n")]
            assert (await writer.batch()).lines == b"one\ntwo\n"
            writer.ack(1)
            await asyncio.gather(*stored)

    run(main)


def test_one_batch_is_in_flight_and_what_arrives_meanwhile_gathers(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path) as (link, _, writer):
            stored = [link.store(b"one\n")]
            assert (await writer.batch()).number == 1
            for line in (b"two\n", b"three\n"):
                stored.append(link.store(line))
                await turns()
            writer.ack(1)
            second = await writer.batch()
            assert (second.number, second.lines) == (2, b"two\nthree\n")
            assert stored[0].done()
            assert not stored[1].done()
            writer.ack(2)
            await asyncio.gather(*stored)

    run(main)


def test_batch_bytes_bound_a_batch_and_one_request_may_exceed_them(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path, batch_bytes=10) as (link, _, writer):
            requests = [b"1234\n", b"5678\n", b"9\n", b"longer than ten bytes\n", b"a\n", b"b\n"]
            stored = [link.store(lines) for lines in requests]
            for number, lines in enumerate([b"1234\n5678\n", b"9\n", b"longer than ten bytes\n", b"a\nb\n"], start=1):
                sent = await writer.batch()
                assert (sent.number, sent.lines) == (number, lines)
                writer.ack(number)
            await asyncio.gather(*stored)

    run(main)


def test_an_ack_always_fits_into_the_socket(run: Callable[[Main], None], path: str) -> None:
    """Its results are what is large: they bound how many requests with a key go in a batch."""

    async def main() -> None:
        async with linked(path) as (link, _, writer):
            stored = [link.store(b"line\n", number.to_bytes(16, "big")) for number in range(6000)]
            acks: list[int] = []
            while sum(acks) < len(stored):
                sent = await writer.batch()
                (count,) = COUNT.unpack_from(sent.lines)
                acks.append(count)
                results = [RESULT.pack(1, b"%036d" % number) for number in range(count)]
                writer.write(ACK.pack(sent.number, 0, count) + b"".join(results))
            assert max(acks) * RESULT.size < 100_000  # half of what a socket holds at least
            assert {result.accepted for result in await asyncio.gather(*stored) if result} == {1}

    run(main)


@pytest.mark.parametrize(
    ("code", "retry_after"), [("disk_full", "10"), ("disk_error", "5"), ("recovering", "1"), ("unknown", "1")]
)
def test_refusal_is_overloaded_with_its_code(
    run: Callable[[Main], None], path: str, code: str, retry_after: str
) -> None:
    async def main() -> None:
        async with linked(path) as (link, _, writer):
            both = [link.store(b"one\n"), link.store(b"two\n")]
            await writer.batch()
            writer.ack(1, code)
            for stored in both:
                error = await refusal(stored)
                assert (error.code, error.status, error.headers["Retry-After"]) == (code, 503, retry_after)
            fine = link.store(b"three\n")
            assert (await writer.batch()).number == 2
            writer.ack(2)
            await fine

    run(main)


def test_ack_timeout_is_overloaded_and_the_late_ack_harms_nobody(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path, ack_timeout_s=0.3) as (link, _, writer):
            began_s = time.monotonic()
            sent = link.store(b"sent\n")
            await writer.batch()
            gathered = link.store(b"gathered\n")
            for stored in (sent, gathered):
                error = await refusal(stored)
                assert (error.code, error.status) == ("ack_timeout", 503)
            assert 0.25 <= time.monotonic() - began_s < 5
            fresh = link.store(b"fresh\n")
            writer.ack(1)  # too late: who waited for it was refused
            second = await writer.batch()
            assert (second.number, second.lines) == (2, b"fresh\n")  # what was gathered and refused is never sent
            assert not fresh.done()
            writer.ack(2)
            await fresh

    run(main)


def test_a_request_that_waits_longer_is_not_refused_with_an_older_one(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path, ack_timeout_s=0.4) as (link, _, writer):
            older = link.store(b"older\n")
            await writer.batch()
            await asyncio.sleep(0.2)  # not a wait for anything: the two have to differ in age
            younger = link.store(b"younger\n")
            assert (await refusal(older)).code == "ack_timeout"
            assert not younger.done()
            writer.ack(1)
            assert (await writer.batch()).lines == b"younger\n"
            writer.ack(2)
            await younger

    run(main)


def test_unanswered_batch_is_resent_flagged_with_the_first_sent_time(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path) as (link, writers, writer):
            stored = link.store(b"one\n")
            first = await writer.batch()
            assert (first.number, first.flags) == (1, 0)
            for _ in range(3):
                link_id = writer.link_id
                writer.die()
                writer = await writers.next()
                assert writer.link_id == link_id
                again = await writer.batch()
                assert again.flags == RESEND
                assert (again.number, again.lines) == (first.number, first.lines)
                assert again.first_sent_ns == first.first_sent_ns
            gathered = link.store(b"two\n")
            writer.ack(1)
            await stored
            second = await writer.batch()
            assert (second.number, second.flags, second.lines) == (2, 0, b"two\n")
            writer.ack(2)
            await gathered

    run(main)


def test_answered_batch_is_not_resent(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path) as (link, writers, writer):
            stored = link.store(b"one\n")
            await writer.batch()
            writer.ack(1)
            await stored
            writer.die()
            writer = await writers.next()
            fresh = link.store(b"two\n")
            sent = await writer.batch()
            assert (sent.number, sent.flags, sent.lines) == (2, 0, b"two\n")
            writer.ack(2)
            await fresh

    run(main)


def test_ack_sent_just_before_the_writer_died_is_read(run: Callable[[Main], None], path: str) -> None:
    """Also when something was left unread, which turns the end of the link into a reset."""

    async def main() -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        link = Link(path, batch_bytes=KIB, ack_timeout_s=DEADLINE_S)
        link.open()
        with listener:
            sock, _ = await loop.sock_accept(listener)
            stored = link.store(b"one\n")
            while len(await loop.sock_recv(sock, HELLO.size)) < HELLO.size:
                pass
            await loop.sock_recv(sock, 1)
            sock.send(ACK.pack(1, 0, 0))
            sock.close()
            await stored
        await link.close()

    run(main)


def test_batch_that_nobody_waits_for_is_not_resent(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path, ack_timeout_s=0.2) as (link, writers, writer):
            late = link.store(b"late\n")
            await writer.batch()
            await refusal(late)
            writer.die()
            writer = await writers.next()
            fresh = link.store(b"fresh\n")
            sent = await writer.batch()
            assert (sent.number, sent.flags, sent.lines) == (2, 0, b"fresh\n")
            writer.ack(2)
            await fresh

    run(main)


def test_batch_that_one_still_waits_for_is_resent_whole(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path) as (link, writers, writer):
            gone, waiting = link.store(b"gone\n"), link.store(b"waiting\n")
            await writer.batch()
            gone.cancel()  # its client has hung up
            writer.die()
            writer = await writers.next()
            again = await writer.batch()
            assert (again.number, again.flags, again.lines) == (1, RESEND, b"gone\nwaiting\n")
            writer.ack(1)
            await waiting

    run(main)


def test_late_ack_of_a_dropped_batch_does_not_answer_another(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path, ack_timeout_s=0.5) as (link, writers, writer):
            dropped = link.store(b"dropped\n")
            await writer.batch()
            await refusal(dropped)
            writer.die()
            writer = await writers.next()
            fresh = link.store(b"fresh\n")
            assert (await writer.batch()).number == 2
            writer.write(ACK.pack(1, OUTCOMES.index("stored"), 0) + ACK.pack(0, OUTCOMES.index("disk_full"), 0))
            await become(lambda: link.trouble(DEADLINE_S) == "disk_full")  # what was sent after the late ack was read
            assert not fresh.done()
            writer.ack(2)
            await fresh

    run(main)


def test_acks_are_read_whatever_pieces_they_come_in(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path) as (link, _, writer):
            for number in range(1, 4):
                stored = link.store(b"one\n")
                await writer.batch()
                acks = ACK.pack(0, 0, 0) + ACK.pack(number, 0, 0) + ACK.pack(0, 0, 0)
                for position in range(len(acks)):
                    writer.write(acks[position : position + 1])
                    await turns()
                await stored

    run(main)


def test_half_an_ack_of_a_dead_writer_is_forgotten(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path) as (link, writers, writer):
            stored = link.store(b"one\n")
            await writer.batch()
            writer.write(ACK.pack(1, 0, 0)[:-1])
            await turns()
            writer.hang_up()  # in order, so that the half ack arrives
            writer = await writers.next()
            assert (await writer.batch()).flags == RESEND
            writer.ack(1, "disk_error")
            assert (await refusal(stored)).code == "disk_error"

    run(main)


def test_link_waits_for_a_writer_that_is_not_there_yet(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        link = Link(path, batch_bytes=KIB, ack_timeout_s=DEADLINE_S)
        link.open()
        stored = link.store(b"early\n")
        assert link.trouble(DEADLINE_S) == "writer_away"
        await turns()
        async with listening(path) as writers:
            writer = await writers.next()
            assert (await writer.batch()).lines == b"early\n"
            writer.ack(1)
            await stored
            await link.close()

    run(main)


def test_a_refusal_says_whether_the_request_may_be_stored_all_the_same(run: Callable[[Main], None], path: str) -> None:
    """Certain is only what was never sent, or refused when it was first sent, unless the writer itself doubts."""

    async def main() -> None:
        async with linked(path, ack_timeout_s=0.3) as (link, writers, writer):
            sent, gathered = link.store(b"sent\n"), None
            assert (await writer.batch()).number == 1
            gathered = link.store(b"gathered\n")
            late = [await refusal(sent), await refusal(gathered)]
            assert [(error.code, error.may_be_stored) for error in late] == [
                ("ack_timeout", True),
                ("ack_timeout", False),
            ]
            writer.ack(1)
            number = 1
            for outcome, may_be_stored in (("disk_full", False), ("recovering", False), ("unknown", True)):
                number += 1
                refused = link.store(b"refused\n")
                assert (await writer.batch()).number == number
                writer.ack(number, outcome)
                assert (await refusal(refused)).may_be_stored is may_be_stored
            resent = link.store(b"resent\n")
            await writer.batch()
            writer.die()
            writer = await writers.next()
            assert (await writer.batch()).flags == RESEND
            writer.ack(number + 1, "disk_full")
            assert (await refusal(resent)).may_be_stored
            again = link.store(b"again\n")
            await writer.batch()
            writer.ack(number + 2, "disk_full")
            assert not (await refusal(again)).may_be_stored

    run(main)


def test_trouble_names_what_a_report_would_meet(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path) as (link, _, writer):
            assert link.trouble(DEADLINE_S) is None
            for outcome in ("disk_full", "disk_error", "stored"):
                writer.ack(0, outcome)
                expected = None if outcome == "stored" else outcome
                await become(lambda expected=expected: link.trouble(DEADLINE_S) == expected)  # type: ignore[misc]
            await asyncio.sleep(0.05)
            assert link.trouble(0.04) == "writer_away"  # it has said nothing for so long
            stored = link.store(b"one\n")
            await writer.batch()
            assert link.trouble(DEADLINE_S) is None
            await asyncio.sleep(0.05)
            assert link.trouble(0.04) == "ack_timeout"
            writer.ack(1)
            await stored
            os.unlink(path)  # or it would be back at once
            writer.die()
            await become(lambda: link.trouble(DEADLINE_S) == "writer_away")

    run(main)


def test_close_waits_for_what_was_handed_over(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path, batch_bytes=4) as (link, writers, writer):
            stored = [link.store(b"one\n"), link.store(b"two\n")]
            closing = asyncio.ensure_future(link.close())
            for number in (1, 2):
                await writer.batch()
                assert not closing.done()
                writer.ack(number)
            await closing
            assert all(request.done() for request in stored)
            with pytest.raises(asyncio.IncompleteReadError):
                await writer.batch()
            assert writers.accepted.empty()  # it does not come back

    run(main)


def test_cancelled_request_is_passed_over(run: Callable[[Main], None], path: str) -> None:
    async def main() -> None:
        async with linked(path) as (link, _, writer):
            gone, waiting = link.store(b"gone\n"), link.store(b"waiting\n")
            gone.cancel()
            await writer.batch()
            writer.ack(1)
            await waiting

    run(main)


def test_row_13_memory_is_bounded_while_the_writer_is_frozen(run: Callable[[Main], None], path: str) -> None:
    """A writer that takes nothing: what was refused is let go; at most one batch and its copy on the way are held."""
    batch_bytes, wave_bytes = 256 * KIB, 1024 * KIB

    async def main() -> None:
        async with linked(path, batch_bytes=batch_bytes, ack_timeout_s=0.1) as (link, _, writer):
            writer.freeze()
            held = []
            for _ in range(8):
                lines = [os.urandom(16 * KIB) for _ in range(wave_bytes // (16 * KIB))]
                stored = [link.store(line) for line in lines]
                del lines
                for request in stored:
                    assert (await refusal(request)).code == "ack_timeout"
                del stored, request
                gc.collect()  # the tests' own tracebacks
                held.append(tracemalloc.get_traced_memory()[0] - before)
            assert max(held) < 3 * batch_bytes, held
            writer.thaw()
            fresh = link.store(b"fresh\n")
            writer.ack((await writer.batch()).number)
            second = await writer.batch()
            assert second.lines == b"fresh\n"
            writer.ack(second.number)
            await fresh

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        run(main)
    finally:
        tracemalloc.stop()


# --- the writer's end -------------------------------------------------------------------------------------------------

GROUP_BYTES = 64 * KIB
MAX_BATCH_BYTES = 1024 * KIB


class Door:
    """An inbox on a real socket, with links made by hand; nothing happens but in :meth:`group` and the others here."""

    def __init__(self, path: str, group_bytes: int) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(1024)
        self._listener.setblocking(False)
        self._wakeup, self._signalled = os.pipe()
        self.inbox = Inbox(self._listener, self._wakeup, max_batch_bytes=MAX_BATCH_BYTES, group_bytes=group_bytes)
        self._links: list[RawLink] = []

    def link(self, link_id: bytes = b"", *, greet: bool = True) -> RawLink:
        self._links.append(RawLink(self.path, link_id, greet=greet))
        return self._links[-1]

    def drain(self) -> list[Batch]:
        """All batches that have come, when nothing more is there to be read."""
        batches = []
        give_up_at_s = time.monotonic() + DEADLINE_S
        idle = 0
        while idle < 3:  # a link that was just accepted, or whose body just began, is read the next time
            assert time.monotonic() < give_up_at_s
            group = self.inbox.receive(0)
            batches += group
            ready = [key for key, _ in self.inbox._selector.select(0)]
            idle = 0 if ready or group else idle + 1
        return batches

    def answer_all(self, outcome: str = "stored") -> list[bytes]:
        """Answer all batches that have come; their lines."""
        batches = self.drain()
        for received in batches:
            self.inbox.answer(received, outcome)
        return [bytes(received.lines) for received in batches]

    def is_closed(self, link: RawLink) -> bool:
        """Whether the inbox has closed the link, at once or as soon as it reads."""
        self.drain()
        link.sock.setblocking(False)
        try:
            while link.sock.recv(4096):
                pass
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        finally:
            with contextlib.suppress(OSError):
                link.sock.settimeout(DEADLINE_S)
        return True

    def close(self) -> None:
        self.inbox.close()
        for link in self._links:
            link.close()
        self._listener.close()
        os.close(self._wakeup)
        os.close(self._signalled)


@pytest.fixture
def door(path: str) -> Iterator[Door]:
    """An inbox that takes batches of up to 1 MiB, in groups of about 64 KiB."""
    opened = Door(path, GROUP_BYTES)
    yield opened
    opened.close()


@pytest.fixture
def narrow_door(path: str) -> Iterator[Door]:
    """An inbox whose groups are one batch each."""
    opened = Door(path, 1)
    yield opened
    opened.close()


def line(padding: int = 0) -> bytes:
    return make_lines(1, "x" * padding)[0]


def test_inbox_hands_over_a_batch_and_its_ack_goes_back(door: Door) -> None:
    link, lines = door.link(), b"".join(make_lines(3))
    link.send(7, lines, first_sent_s=123.5)
    (received,) = door.drain()
    assert (received.number, received.first_sent_s, received.is_resend) == (7, 123.5, False)
    assert received.lines == lines
    assert not link.has_news(0)
    door.inbox.answer(received, "stored")
    assert link.ack(7) == "stored"


def test_group_holds_what_fits_and_at_least_one_batch(door: Door) -> None:
    sizes = [30 * KIB, 30 * KIB, 30 * KIB, 200 * KIB, 1]
    for number, size in enumerate(sizes, start=1):
        door.link().send(number, line(size))
        while not (sent := door.inbox._whole) or sent[-1].number != number:  # in order, and none handed over yet
            _read_without_handing_over(door)
    groups = [[received.number for received in door.inbox.receive(0)] for _ in range(4)]
    assert groups == [[1, 2], [3], [4], [5]]
    assert door.inbox.receive(0) == []


def test_links_that_were_just_answered_have_a_moment_to_be_part_of_the_next_group(door: Door) -> None:
    door.inbox._follow_up_s = 0.5
    prompt, slower = links = door.link(), door.link()
    for link in links:
        link.send(1, line())
    assert len(door.answer_all()) == 2
    prompt.send(2, line())
    timer = threading.Timer(0.1, slower.send, (2, line()))
    timer.start()
    group = door.inbox.receive(0)
    timer.join()
    assert [received.number for received in group] == [2, 2]
    for received in group:
        door.inbox.answer(received, "stored")
    assert door.inbox.receive(0) == []
    prompt.send(3, line())
    began_s = time.monotonic()
    assert len(door.inbox.receive(0)) == 1
    assert time.monotonic() - began_s < 0.4, "the other was idle when there was nothing to do: nobody waits for it"


def test_receive_returns_early_for_a_signal_and_late_for_nothing(door: Door) -> None:
    began_s = time.monotonic()
    assert door.inbox.receive(0.05) == []
    assert time.monotonic() - began_s >= 0.045
    os.write(door._signalled, b"\x0f")
    began_s = time.monotonic()
    assert door.inbox.receive(DEADLINE_S) == []
    assert time.monotonic() - began_s < DEADLINE_S / 2


def test_row_23_frame_cut_at_every_byte_is_no_batch(door: Door) -> None:
    good = door.link()
    frame = hello(secrets.token_bytes(16)) + batch(1, line())
    for length in range(len(frame)):
        cut = door.link(greet=False)
        cut.sock.sendall(frame[:length])
        assert door.drain() == []
        cut.close()
        assert door.drain() == []
        assert len(door.inbox) == 1, f"cut at {length}"
    good.send(1, line())
    assert len(door.answer_all()) == 1
    assert good.ack(1) == "stored"


def test_row_23_frame_in_two_pieces_is_whole_wherever_it_is_split(door: Door) -> None:
    lines = line()
    frame = hello(secrets.token_bytes(16))[:4]
    for position in range(1, len(frame) + 16 + BATCH.size + len(lines)):
        link = door.link(greet=False)
        frame = hello(link.id) + batch(1, lines)
        link.sock.sendall(frame[:position])
        assert door.drain() == []
        link.sock.sendall(frame[position:])
        assert door.answer_all() == [lines]
        assert link.ack(1) == "stored"
        link.close()


def test_row_23_frame_byte_by_byte_is_whole(door: Door) -> None:
    link = door.link(greet=False)
    lines = b"".join(make_lines(2))
    frame = hello(link.id) + batch(1, lines)
    for position in range(len(frame)):
        assert door.drain() == []
        link.sock.sendall(frame[position : position + 1])
    assert door.answer_all() == [lines]


def test_row_23_garbage_after_a_batch_closes_the_link(door: Door) -> None:
    """Whether it comes with the batch or behind it; the batch, which was whole, may be taken or not."""
    good = door.link()
    lines = line()
    for garbage in (b"\0", b"garbage" * 10, b"\xff" * 100_000):
        for is_later in (False, True):
            link = door.link(greet=False)
            frame = hello(link.id) + batch(1, lines)
            link.sock.setblocking(False)
            link.sock.send(frame + (b"" if is_later else garbage))
            batches = door.drain()
            assert len(batches) <= 1
            assert all(received.lines == lines for received in batches)
            if is_later:
                with contextlib.suppress(BrokenPipeError):
                    link.sock.send(garbage)
            assert door.is_closed(link)
            for received in batches:
                door.inbox.answer(received, "stored")
    good.send(1, lines)
    assert door.answer_all() == [lines]
    assert good.ack(1) == "stored"


@pytest.mark.parametrize(
    ("what", "frame"),
    [
        ("another magic", b"nwq2" + bytes(16) + batch(1, b"x\n")),
        ("http", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("larger than any batch", hello(bytes(16)) + BATCH.pack(MAX_BATCH_BYTES + 1, 1, 0, 0)),
        ("empty", hello(bytes(16)) + BATCH.pack(0, 1, 0, 0)),
        ("number 0, a heartbeat's", hello(bytes(16)) + batch(0, line())),
        ("unknown flags", hello(bytes(16)) + BATCH.pack(2, 1, 0, 2) + b"x\n"),
        ("no line feed at the end", hello(bytes(16)) + batch(1, line()[:-1])),
        ("no line", hello(bytes(16)) + batch(1, b"\xff" * 200 + b'"}\n')),
        ("no line in a resend", hello(bytes(16)) + batch(1, line() + b"x\n" + line(), is_resend=True)),
        ("a wrong checksum in a resend", hello(bytes(16)) + batch(1, line().replace(b"0", b"1"), is_resend=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # the frames hold the time
)
def test_row_23_what_is_no_batch_closes_the_link(door: Door, what: str, frame: bytes) -> None:
    good, bad = door.link(), door.link(greet=False)
    bad.sock.sendall(frame)
    assert door.drain() == [], what
    assert door.is_closed(bad), what
    good.send(1, line())
    assert len(door.answer_all()) == 1
    assert good.ack(1) == "stored"


def test_largest_batch_is_taken(door: Door) -> None:
    lines = line(MAX_BATCH_BYTES - len(line(1)) + 1)
    assert len(lines) == MAX_BATCH_BYTES
    link = door.link()
    link.sock.setblocking(False)
    frame, batches = memoryview(batch(1, lines)), list[Batch]()
    while frame:
        with contextlib.suppress(BlockingIOError):
            frame = frame[link.sock.send(frame) :]
        batches += door.inbox.receive(0)
    assert [received.lines == lines for received in [*batches, *door.drain()]] == [True]


def test_row_23_random_garbage_harms_only_its_link(
    door: Door, full_sweeps: bool, thinned: Callable[[int, int, str], None]
) -> None:
    """Random bytes, and frames with random changes, all from one seed."""
    cases = 20_000 if full_sweeps else 1000
    thinned(20_000, cases, "garbage on the writer's socket")
    chance = random.Random(23)
    good = door.link()
    lines = line()
    for case in range(1, cases + 1):
        link = door.link(greet=False)
        frame = bytearray(hello(link.id) + batch(1, lines, is_resend=chance.random() < 0.5))
        kind = chance.randrange(4)
        if kind == 0:
            frame = bytearray(chance.randbytes(chance.randrange(1, 300)))
        elif kind == 1:
            frame[:4] = MAGIC
            frame[4:] = chance.randbytes(chance.randrange(16, 300))
        elif kind == 2:
            for _ in range(chance.randrange(1, 4)):
                frame[chance.randrange(HELLO.size + BATCH.size)] = chance.randrange(256)
        else:
            position = chance.randrange(len(frame))
            frame[position:position] = chance.randbytes(chance.randrange(1, 20))
        link.sock.sendall(frame)
        for received in door.drain():
            door.inbox.answer(received, "stored")
        link.close()
        if case % 10 == 0:
            good.send(case, lines)
            assert door.answer_all() == [lines], f"case {case}"
            assert good.ack(case) == "stored"
    door.drain()
    assert len(door.inbox) == 1


def test_row_14_worker_stopped_within_a_big_batch_holds_up_nobody(door: Door) -> None:
    stopped, others = door.link(), [door.link() for _ in range(5)]
    frame = batch(1, line(MAX_BATCH_BYTES // 2))
    stopped.sock.sendall(frame[: 100 * KIB])
    for number in range(1, 20):
        for other in others:
            other.send(number, line())
        assert len(door.answer_all()) == len(others)
        assert {other.ack(number) for other in others} == {"stored"}
    sent = 100 * KIB
    stopped.sock.setblocking(False)
    batches: list[Batch] = []
    while sent < len(frame):  # goes on as if nothing had been
        with contextlib.suppress(BlockingIOError):
            sent += stopped.sock.send(frame[sent : sent + 64 * KIB])
        batches += door.inbox.receive(0)
    assert len(batches) + len(door.drain()) == 1


def test_worker_that_reads_no_acks_holds_up_nobody(door: Door) -> None:
    deaf, good = door.link(), door.link()
    deaf.send(1, line())
    good.send(1, line())
    batches = door.drain()
    for _ in range(2000):  # more than its socket holds
        door.inbox.heartbeat("stored")
        while good.has_news(0):
            good.read_ack()
    for received in batches:
        door.inbox.answer(received, "stored")
    assert good.ack(1) == "stored"
    assert len(door.inbox) == 1  # it will come back and ask again
    back = door.link(deaf.id)
    back.send(1, line(), is_resend=True)
    assert door.drain() == []
    assert back.ack(1) == "stored"


def test_heartbeat_goes_to_every_link(door: Door) -> None:
    links = [door.link() for _ in range(3)]
    door.drain()
    door.inbox.heartbeat("disk_full")
    assert [link.read_ack() for link in links] == [(0, "disk_full")] * 3


def test_rule_6_link_that_comes_back_is_answered_from_memory(door: Door) -> None:
    for outcome in OUTCOMES:
        link, lines = door.link(), line()
        link.send(1, lines)
        assert door.answer_all(outcome) == [lines]
        link.close()
        door.drain()
        back = door.link(link.id)
        back.send(1, lines, is_resend=True)
        assert door.drain() == []
        assert back.ack(1) == outcome
        back.send(2, lines)
        assert door.answer_all() == [lines]
        assert back.ack(2) == "stored"


def test_rule_6_link_that_comes_back_closes_its_predecessor(door: Door) -> None:
    """Half-read batch and all: the rest of that batch would be a second copy."""
    lines = line(10 * KIB)
    link = door.link()
    frame = batch(1, lines)
    link.sock.sendall(frame[:5000])
    door.drain()
    back = door.link(link.id)
    door.drain()
    assert door.is_closed(link)
    with pytest.raises(ConnectionError):
        link.sock.sendall(frame[5000:])
    back.send(1, lines, is_resend=True)
    assert door.answer_all() == [lines]
    assert back.ack(1) == "stored"


@pytest.mark.parametrize("hung_up", [False, True], ids=["still open", "hung up"])
def test_rule_6_whole_batch_of_a_predecessor_is_dropped_before_its_commit(narrow_door: Door, hung_up: bool) -> None:
    """It was read whole and waited for its commit when its link came back: one of the two copies must go."""
    door = narrow_door
    others, link = [door.link() for _ in range(4)], door.link()
    lines = line()
    for other in others:
        other.send(1, line(KIB))
    link.send(1, lines)
    groups = _first_group_with_the_rest_waiting(door)
    if hung_up:
        link.close()
        groups += door.inbox.receive(0)
    back = door.link(link.id)
    back.send(1, lines, is_resend=True)
    copies = [received for received in [*groups, *door.drain()] if received.lines == lines]
    assert [received.is_resend for received in copies] == [True]
    assert hung_up or door.is_closed(link)
    door.inbox.answer(copies[0], "stored")
    assert back.ack(1) == "stored"


def _first_group_with_the_rest_waiting(door: Door) -> list[Batch]:
    """Read the batches of all links, the last link's last; the first group, so that the others wait for their turn."""
    inbox, last = door.inbox, door._links[-1]
    give_up_at_s = time.monotonic() + DEADLINE_S
    while len(inbox._whole) < len(door._links):
        assert time.monotonic() < give_up_at_s
        _read_without_handing_over(door)
    while inbox._whole[-1].link.id != last.id:
        inbox._whole.rotate(1)
    return inbox.receive(0)


def _read_without_handing_over(door: Door) -> None:
    for key, _ in door.inbox._selector.select(DEADLINE_S):
        if key.data is None:
            door.inbox._accept()
        else:
            door.inbox._read(key.data)


def test_rule_6_batch_read_whole_is_answered_from_memory_after_its_link_is_gone(door: Door) -> None:
    link, lines = door.link(), line()
    link.send(1, lines)
    (received,) = door.drain()
    link.close()
    door.drain()
    assert len(door.inbox) == 0
    door.inbox.answer(received, "stored")
    back = door.link(link.id)
    back.send(1, lines, is_resend=True)
    assert door.drain() == []
    assert back.ack(1) == "stored"


def test_rule_6_older_batch_than_the_last_answered_closes_the_link(door: Door) -> None:
    link = door.link()
    for number in (1, 2):
        link.send(number, line())
        door.answer_all()
        assert link.ack(number) == "stored"
    link.send(1, line(), is_resend=True)
    assert door.drain() == []
    assert door.is_closed(link)


def test_answers_are_forgotten_when_nobody_can_ask(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netwatch.queue._REMEMBER_S", -1.0)
    alive, gone = door.link(), door.link()
    for link in (alive, gone):
        link.send(1, line())
    door.answer_all()
    gone.close()
    door.drain()
    door.inbox.heartbeat("stored")
    assert set(door.inbox._answered) == {alive.id}


def test_len_counts_batches_of_links_that_are_gone(narrow_door: Door) -> None:
    door = narrow_door
    links = [door.link() for _ in range(3)]
    for link in links:
        link.send(1, line())
    _first_group_with_the_rest_waiting(door)
    for link in links:
        link.close()
    taken = 1
    while len(door.inbox):
        taken += len(door.inbox.receive(0))
    assert taken == 3


# --- both ends, with a writer's process between -----------------------------------------------------------------------


def test_row_13_frozen_writer_is_refused_at_the_deadline_and_goes_on(
    run: Callable[[Main], None], tmp_path: Path
) -> None:
    async def main() -> None:
        link = Link(house.path, batch_bytes=256 * KIB, ack_timeout_s=0.3)
        link.open()
        await link.store(line())
        writer.freeze()
        before_bytes = writer.rss_bytes()
        for _ in range(4):
            for stored in [link.store(line(KIB * 16)) for _ in range(64)]:
                assert (await refusal(stored)).code == "ack_timeout"
        assert link.trouble(0.2) == "ack_timeout"
        writer.signal(signal.SIGCONT)
        began_s = time.monotonic()
        while True:
            try:
                await link.store(line())
                break
            except Overloaded:
                assert time.monotonic() - began_s < DEADLINE_S
        assert time.monotonic() - began_s < 1.5
        assert writer.rss_bytes() - before_bytes < 16 * 1024 * KIB
        await link.close()

    with writer_house(tmp_path) as house:
        writer = house.start().wait_for("recovered")
        run(main)
        assert writer.drain() == 0
        assert len(house.sealed_lines().splitlines()) >= 2


def test_row_02_writer_killed_again_and_again_loses_and_doubles_nothing(
    run: Callable[[Main], None], tmp_path: Path
) -> None:
    kills = 6

    async def main() -> None:
        link = Link(house.path, batch_bytes=4 * KIB, ack_timeout_s=DEADLINE_S)
        link.open()
        is_over = False

        async def client() -> None:
            while not is_over:
                lines = line(100)
                await link.store(lines)
                acked.append(lines)

        clients = [asyncio.ensure_future(client()) for _ in range(16)]
        writer = house.start(seal_bytes=20 * KIB)
        for _ in range(kills):
            target = len(acked) + 200
            await become(lambda target=target: len(acked) >= target)  # type: ignore[misc]
            await asyncio.to_thread(writer.kill)
            writer = house.start(seal_bytes=20 * KIB)
        is_over = True
        await asyncio.gather(*clients)
        await link.close()
        assert await asyncio.to_thread(writer.drain) == 0

    acked: list[bytes] = []
    with writer_house(tmp_path) as house:
        run(main)
        assert sorted(house.sealed_lines().splitlines(keepends=True)) == sorted(acked)
        assert house.open_files() == []


def test_link_and_a_writer_speak_the_format_of_these_tests(tmp_path: Path) -> None:
    """The tests' own idea of the format is the real one: both real ends understand it, and each other."""
    with writer_house(tmp_path) as house:
        house.start()
        link = house.link()
        assert link.store(1, line()) == "stored"
        link.sock.sendall(b"garbage" * 100)
        link.wait_closed()
        wait_until(lambda: house.link().store(1, line()) == "stored", "another link's ack")
