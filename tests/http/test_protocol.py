from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from netwatch.http import protocol
from tests.http.serving import Answer, Client, Seen, Served, chunked, post, serving, until

HEADER_S = 0.3
BODY_S = 0.7
IDLE_S = 0.6
SLACK_S = 0.5
"""How much later than due something may happen on a busy machine."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    """A server with the deadlines it has in life."""
    with serving() as served:
        yield served


@pytest.fixture
def served(shared: Served) -> Served:
    """The shared server, as if it had just been started."""
    shared.forget()
    return shared


@pytest.fixture(scope="module")
def shared_hasty() -> Iterator[Served]:
    """A server whose deadlines are short."""
    with serving(header_timeout_s=HEADER_S, body_timeout_s=BODY_S, idle_timeout_s=IDLE_S) as served:
        yield served


@pytest.fixture
def hasty(shared_hasty: Served) -> Served:
    """The shared server with short deadlines, as if it had just been started."""
    shared_hasty.forget()
    return shared_hasty


def seen(path: str, body: bytes, is_draining: bool = False) -> Seen:
    return Seen(path, body, True, is_draining)


# Whole bodies


@pytest.mark.parametrize("request_of", [post, chunked])
def test_a_whole_body_is_said_to_be_whole(request_of: object, served: Served) -> None:
    assert callable(request_of)
    client = Client(served)
    for byte in request_of(b"hello"):
        client.send(bytes([byte]))
    assert client.answer().body == b"hello"
    client.send(request_of(b"again"))
    assert client.answer()[2] == b"again"
    assert served.seen == [seen("/", b"hello"), seen("/", b"again")]
    client.close()


@pytest.mark.parametrize("request_of", [post, chunked])
def test_row_21_a_body_cut_at_any_offset_is_never_said_to_be_whole(request_of: object, served: Served) -> None:
    assert callable(request_of)
    sent = request_of(b"hello")
    for end in range(len(sent)):
        client = Client(served)
        client.send(sent[:end])
        client.close()
    until(lambda: served.connections == 0)
    header = sent.index(b"\r\n\r\n") + 4
    until(lambda: len(served.cut) == len(sent) - header)
    assert served.seen == []
    assert {cut.is_whole for cut in served.cut} == {False}


def test_an_answer_before_the_body_ends_leaves_the_connection_usable(served: Served) -> None:
    client = Client(served)
    sent = post(b"x" * 300_000, "/early")
    client.send(sent[:1000])
    assert client.answer().status == 200
    client.send(sent[1000:])
    client.send(post(b"next"))
    assert client.answer().body == b"next"
    client.close()


def test_a_client_that_waits_for_100_continue_is_refused_before_it_sends_its_body(served: Served) -> None:
    client = Client(served)
    client.send(post(b"x" * 10, "/early", "Expect: 100-continue")[:-10])
    assert client.answer().status == 200  # and not 100
    client.close()


@pytest.mark.parametrize("header", ["Expect: 100-continue", "Connection: close"])
def test_a_client_that_is_refused_while_it_sends_is_not_reset(header: str, served: Served) -> None:
    client = Client(served)
    piece = b"x" * 1_000_000
    client.send(post(8 * piece, "/early", header)[: -8 * len(piece)])
    until(lambda: served.begun)
    for _ in range(8):  # a reset would end this, and take the answer with it
        client.send(piece)
        time.sleep(0.01)
    assert client.answer().is_last
    client.closed_after_s()
    client.close()


def test_a_client_that_is_refused_while_it_sends_cannot_send_for_ever(hasty: Served) -> None:
    client = Client(hasty)
    client.send(post(b"x" * 1000, "/early", "Connection: close")[:-999])
    assert client.answer().is_last
    began_s = time.monotonic()
    client.trickle(b"x", 0.02)
    assert BODY_S - SLACK_S < time.monotonic() - began_s < BODY_S + SLACK_S
    client.close()


def test_a_client_that_waits_for_100_continue_gets_it_when_its_body_is_read(served: Served) -> None:
    client = Client(served)
    sent = post(b"x" * 10, "/", "Expect: 100-continue")
    client.send(sent[:-10])
    client.demand(b"HTTP/1.1 100 Continue\r\n\r\n")
    client.send(sent[-10:])
    assert client.answer().body == b"x" * 10
    client.close()


# Pipelining


def test_row_22_pipelined_requests_are_answered_in_order_wherever_they_are_split(served: Served) -> None:
    sent = post(b"one", "/1") + chunked(b"two", "/2") + post(b"", "/3") + post(b"four", "/4")
    client = Client(served)
    for split in range(0, len(sent), 3):
        client.send(sent[:split])
        client.send(sent[split:])
        assert [client.answer().body for _ in range(4)] == [b"one", b"two", b"", b"four"]
    assert len(served.seen) == 4 * len(range(0, len(sent), 3))
    assert {request.is_whole for request in served.seen} == {True}
    client.close()


def test_a_request_cut_behind_a_whole_one_costs_only_itself(served: Served) -> None:
    client = Client(served)
    client.send(post(b"one", "/1") + post(b"two", "/2")[:-1])
    assert client.answer().body == b"one"
    client.close()
    until(lambda: served.cut)
    assert served.seen == [seen("/1", b"one")]
    assert not served.cut[0].is_whole


@pytest.mark.parametrize(
    "garbage",
    [b"\0", b"Garbage", b"GET", b"GET / HTTP/9\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"{}\r\n\r\n"],
)
@pytest.mark.parametrize("is_at_once", [True, False])
def test_what_follows_a_whole_request_never_takes_its_answer(garbage: bytes, is_at_once: bool, served: Served) -> None:
    client = Client(served)
    if is_at_once:
        client.send(post(b"kept", "/hold") + garbage + b"\r\n\r\n")
    else:
        client.send(post(b"kept", "/hold"))
        until(lambda: served.begun)
        client.send(garbage + b"\r\n\r\n")
    until(lambda: served.begun)
    served.release()
    answer = client.answer()
    assert (answer.status, answer.body) == (200, b"kept")
    if not answer.is_last:  # the garbage came after it
        assert client.answer().status == 400
    client.closed_after_s()
    assert served.seen == [seen("/hold", b"kept")]


def test_pipelined_requests_before_garbage_are_answered(served: Served) -> None:
    client = Client(served)
    client.send(post(b"one", "/1") + post(b"two", "/2") + b"\0")
    assert [client.answer().body, client.answer().body] == [b"one", b"two"]
    client.closed_after_s()


# What is no HTTP, or may be read in two ways

SMUGGLED = post(b"smuggled", "/smuggled")


@pytest.mark.parametrize(
    "sent",
    [
        b"\0",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"FETCH / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHo\0st: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \0\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nContent-Length: 0x5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZ\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nhello",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
    ],
)
def test_row_22_what_is_not_one_plain_request_is_400_and_closed(sent: bytes, served: Served) -> None:
    client = Client(served)
    client.send(sent + SMUGGLED)
    answer = client.answer()
    assert (answer.status, answer.is_last) == (400, True)
    assert answer.problem["type"] == "urn:netwatch:error:bad_request"
    client.closed_after_s()
    until(lambda: served.connections == 0)
    assert served.seen == []
    assert "/smuggled" not in served.begun


@pytest.mark.parametrize(
    "sent",
    [
        b"POST / HTTP/1.1\r\nX: %b\r\n\r\n" % (b"x" * 600_000),
        b"POST /%b HTTP/1.1\r\n\r\n" % (b"x" * 600_000),
        b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(b"X%d: y\r\n" % number for number in range(60_000)),
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: %b\r\n\r\n" % (b"x" * 600_000),
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;%b\r\nx\r\n0\r\n\r\n" % (b"x" * 600_000),
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%b1\r\nx\r\n0\r\n\r\n" % (b"0" * 600_000),
    ],
)
def test_a_header_without_end_is_refused(sent: bytes, served: Served) -> None:
    client = Client(served)
    try:
        client.send(sent)
    except ConnectionError:
        pass
    until(lambda: not client.is_open())
    until(lambda: served.connections == 0)
    assert served.seen == []


def test_a_long_header_is_taken_up_to_the_limit(served: Served) -> None:
    client = Client(served)
    client.send(post(b"hello", "/", f"X: {'x' * (protocol.MAX_HEADER_BYTES - 200)}"))
    assert client.answer().body == b"hello"
    client.close()


def test_a_trailer_is_no_header(served: Served) -> None:
    client = Client(served)
    client.send(chunked(b"hello"))
    assert client.answer().body == b"hello"
    assert served.headers == [[b"host", b"transfer-encoding"]]
    client.close()


# Offers of another protocol

OFFER = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")


@pytest.mark.parametrize("request_of", [post, chunked])
def test_an_offer_of_another_protocol_is_declined_and_the_body_kept(request_of: object, served: Served) -> None:
    assert callable(request_of)
    sent = request_of(b"hello", "/", *OFFER)
    for split in range(0, len(sent), 5):
        client = Client(served)
        client.send(sent[:split])
        client.send(sent[split:])
        assert client.answer()[::2] == (200, b"hello")
        client.send(post(b"next"))
        assert client.answer().body == b"next"
        client.close()
    assert {request.is_whole for request in served.seen} == {True}
    assert b"upgrade" not in {name for names in served.headers for name in names}


def test_row_22_the_body_of_an_offer_is_no_second_request(served: Served) -> None:
    client = Client(served)
    client.send(post(SMUGGLED, "/", *OFFER))
    assert client.answer().body == SMUGGLED
    client.send(post(b"", "/last"))
    client.answer()
    assert served.begun == ["/", "/last"]
    client.close()


def test_an_offer_behind_an_unanswered_request_is_refused_and_that_one_answered(served: Served) -> None:
    client = Client(served)
    client.send(post(b"one", "/1") + post(b"two", "/2", *OFFER) * 1000)
    answer = client.answer()
    assert (answer.body, answer.is_last) == (b"one", True)
    client.closed_after_s()
    assert served.begun == ["/1"]


# Deadlines


def closed_after_s(clients: Iterable[Client]) -> list[float]:
    with ThreadPoolExecutor(100) as pool:
        return list(pool.map(Client.closed_after_s, clients))


def within(after_s: float, deadline_s: float) -> bool:
    return deadline_s - 0.05 <= after_s <= deadline_s + SLACK_S


def test_row_19_what_does_not_come_is_not_waited_for(hasty: Served) -> None:
    deadlines_s = {
        b"": HEADER_S,
        b"P": HEADER_S,
        b"POST / HTTP/1.1\r\nHost: x\r\n": HEADER_S,
        post(b"hello")[:-5]: HEADER_S + BODY_S,
        post(b"hello")[:-1]: HEADER_S + BODY_S,
        chunked(b"hello")[:-1]: HEADER_S + BODY_S,
        post(b"hello", "/", *OFFER)[:-1]: HEADER_S + BODY_S,
    }
    clients = {sent: Client(hasty) for sent in deadlines_s}
    for sent, client in clients.items():
        client.send(sent)
    for sent, after_s in zip(clients, closed_after_s(clients.values()), strict=True):
        assert within(after_s, deadlines_s[sent]), sent


def test_row_19_a_trickle_does_not_move_the_deadline(hasty: Served) -> None:
    trickles = [
        (b"POST / HTTP/1.1\r\nX: ", b"x", HEADER_S),
        (b"POST / HTTP/1.1\r\n", b"X: y\r\n", HEADER_S),
        (post(b"x" * 9999)[:-9999], b"x", HEADER_S + BODY_S),
        (chunked(b"hello")[:-5], b"x", HEADER_S + BODY_S),
        (post(b"x" * 99999, "/early")[:-99999], b"x", HEADER_S + BODY_S),
    ]
    clients = []
    for start, more, _ in trickles:
        clients.append(client := Client(hasty))
        client.send(start)
        if b"/early" in start:
            client.answer()
        threading.Thread(target=client.trickle, args=(more, 0.02)).start()
    for (start, _, deadline_s), after_s in zip(trickles, closed_after_s(clients), strict=True):
        assert within(after_s, deadline_s), start


def test_row_19_the_second_request_has_its_own_deadline(hasty: Served) -> None:
    client = Client(hasty)
    client.send(post(b"one"))
    client.answer()
    time.sleep(0.1)
    began_s = time.monotonic()
    client.send(b"POST / HTTP/1.1\r\n")
    client.closed_after_s()
    assert within(time.monotonic() - began_s, HEADER_S)


def test_a_request_that_is_whole_may_be_answered_later_than_any_deadline(hasty: Served) -> None:
    client = Client(hasty)
    client.send(post(b"kept", "/hold"))
    time.sleep(HEADER_S + BODY_S + 0.2)
    hasty.release()
    assert client.answer().body == b"kept"
    began_s = time.monotonic()
    client.closed_after_s()
    assert within(time.monotonic() - began_s, IDLE_S)


def test_no_connection_stays_open_when_nothing_more_comes(hasty: Served) -> None:
    leftovers = [b"", b"\r\n", b"\n", b"\r\n" * 3, post(b"two")[:-1], post(b"two")[:9]]
    clients = [Client(hasty) for _ in leftovers]
    for is_at_once in (True, False):
        for client, leftover in zip(clients, leftovers, strict=True):
            client.send(post(b"one") + (leftover if is_at_once else b""))
            assert client.answer().body == b"one"
            client.send(b"" if is_at_once else leftover)
        assert max(closed_after_s(clients)) < HEADER_S + BODY_S + SLACK_S
        clients = [Client(hasty) for _ in leftovers]


def test_no_connection_that_is_used_is_closed(hasty: Served) -> None:
    sent = post(b"hello")
    strays = [b"", b"\r\n", b"\n", sent[:10], sent[:-1]]
    clients = {stray: Client(hasty) for stray in strays}
    starts = {stray: stray if len(stray) > 2 else b"" for stray in strays}  # of the next request, or stray indeed
    for stray, client in clients.items():
        client.send(starts[stray])
    until_s = time.monotonic() + HEADER_S + BODY_S + 0.1
    while time.monotonic() < until_s:
        time.sleep(0.1)
        for stray, client in clients.items():
            client.send(sent[len(starts[stray]) :] + stray)
            assert client.answer().body == b"hello", stray


def test_stalled_clients_leave_nothing_behind(hasty: Served) -> None:
    clients = [Client(hasty) for _ in range(50)]
    for client in clients:
        client.send(post(b"hello")[:-1])
    until(lambda: hasty.connections >= 50)
    until(lambda: hasty.connections == 0)
    until(lambda: not hasty.server.server_state.tasks)


# Drain


@pytest.fixture
def draining(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server to drain: 0.6 s for what is being read, 0.3 s for what is idle, 2 s for the last answers."""
    monkeypatch.setattr(protocol, "DRAIN_IDLE_S", 0.3)
    monkeypatch.setattr(protocol, "ANSWER_S", 2.0)
    with serving(drain_timeout_s=0.6) as served:
        yield served


def idle(served: Served) -> Client:
    client = Client(served)
    client.send(post(b"first"))
    assert not client.answer().is_last
    return client


def last(answer: Answer, body: bytes) -> None:
    assert (answer.status, answer.body, answer.is_last) == (200, body, True)


def test_row_17_an_idle_connection_has_its_next_request_answered_and_is_closed(draining: Served) -> None:
    clients = [idle(draining) for _ in range(5)]
    draining.drain()
    time.sleep(0.1)
    for client in clients:
        client.send(post(b"next"))
        last(client.answer(), b"next")
        client.closed_after_s()
    assert draining.seen[-1] == seen("/", b"next", is_draining=True)
    draining.thread.join(1)
    assert not draining.thread.is_alive()


def test_row_17_a_connection_that_stays_idle_is_closed(draining: Served) -> None:
    clients = [idle(draining), Client(draining)]
    until(lambda: draining.connections == 2)
    draining.drain()
    began_s = time.monotonic()
    for client in clients:
        client.closed_after_s()
        assert within(time.monotonic() - began_s, 0.3)


def test_row_17_a_request_in_work_is_answered_whatever_follows_it(draining: Served) -> None:
    following = [b"", post(b"two")[:9], post(b"two")[:-1], b"\r\n", b"\0"]
    clients = [Client(draining) for _ in following]
    for client, sent in zip(clients, following, strict=True):
        client.send(post(b"kept", "/hold") + sent)
    until(lambda: len(draining.begun) == len(clients))
    draining.drain()
    time.sleep(0.7)  # longer than a request may still be read
    draining.release()
    assert [client.answer().body for client in clients] == [b"kept"] * len(clients)


def test_row_17_a_request_whose_rest_comes_in_time_is_answered(draining: Served) -> None:
    clients = {end: Client(draining) for end in (1, 30, -5, -1)}
    clients[2] = idle(draining)
    sent = post(b"whole")
    for end, client in clients.items():
        client.send(sent[:end])
    until(lambda: len(draining.begun) == 3)
    draining.drain()
    time.sleep(0.4)  # longer than an idle connection may stay
    for end, client in clients.items():
        client.send(sent[end:])
        last(client.answer(), b"whole")
        client.closed_after_s()


def test_row_17_a_request_that_does_not_come_whole_is_cut_off(draining: Served) -> None:
    clients = [Client(draining), Client(draining), idle(draining)]
    for client, end in zip(clients, (-1, 30, -1), strict=True):
        client.send(post(b"never", "/never")[:end])
    until(lambda: draining.begun.count("/never") == 2)
    draining.drain()
    began_s = time.monotonic()
    for client in clients:
        client.closed_after_s()
        assert within(time.monotonic() - began_s, 0.6)
    draining.thread.join(1)
    assert not draining.thread.is_alive()
    assert [cut.is_whole for cut in draining.cut] == [False, False]


def test_pipelined_requests_are_all_answered(draining: Served) -> None:
    client = Client(draining)
    client.send(post(b"one", "/hold") + post(b"two") + post(b"three"))
    until(lambda: draining.begun)
    draining.drain()
    draining.release()
    assert [client.answer().body, client.answer().body] == [b"one", b"two"]
    last(client.answer(), b"three")
    client.closed_after_s()


def test_without_time_to_drain_what_is_there_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(drain_timeout_s=0.0) as served:
        busy, stalled, quiet = Client(served), Client(served), idle(served)
        busy.send(post(b"kept", "/hold"))
        stalled.send(post(b"never")[:-1])
        until(lambda: len(served.begun) == 3)
        served.drain()
        stalled.closed_after_s(0.5)
        served.release()
        last(busy.answer(), b"kept")
        quiet.send(post(b"next"))
        last(quiet.answer(), b"next")
