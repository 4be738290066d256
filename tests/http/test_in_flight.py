from __future__ import annotations

import asyncio

import pytest

from netwatch.errors import Overloaded
from netwatch.http.in_flight import InFlight
from tests.http.door import REPORT, Door, Exchange, until

KIB = 1024


def refused(in_flight: InFlight, client: str, size: int, *, is_page: bool = False) -> str:
    held = in_flight.bytes
    with pytest.raises(Overloaded) as caught:
        in_flight.take(client, size, is_page=is_page)
    assert in_flight.bytes == held
    assert caught.value.headers == {"Retry-After": "1"}
    return caught.value.code


def test_bytes_in_flight_are_taken_up_to_the_limit_and_given_back() -> None:
    in_flight = InFlight(10, 0)
    in_flight.take("a", 10, is_page=False)
    in_flight.take("a", 0, is_page=False)
    assert refused(in_flight, "a", 1) == "overloaded"
    assert in_flight.bytes == 10
    in_flight.give("a", 4)
    in_flight.take("a", 4, is_page=False)
    assert in_flight.bytes == 10


def test_the_reserved_part_is_for_pages_only() -> None:
    in_flight = InFlight(10, 4)
    in_flight.take("shipper", 6, is_page=False)
    assert refused(in_flight, "shipper", 1) == "overloaded"
    assert refused(in_flight, "another", 1) == "overloaded"
    in_flight.take("page", 4, is_page=True)
    assert refused(in_flight, "other page", 1, is_page=True) == "overloaded"
    in_flight.give("page", 4)
    assert refused(in_flight, "another", 1) == "overloaded"
    in_flight.give("shipper", 6)
    in_flight.take("shipper", 6, is_page=False)


def test_pages_may_take_what_is_not_reserved_too() -> None:
    in_flight = InFlight(10, 4)
    in_flight.take("page", 10, is_page=True)
    assert refused(in_flight, "shipper", 1) == "overloaded"


def test_a_client_alone_may_have_everything() -> None:
    in_flight = InFlight(10, 0)
    for _ in range(10):
        in_flight.take("a", 1, is_page=False)
    assert in_flight.bytes == 10


def test_with_others_no_client_gets_more_than_its_share() -> None:
    in_flight = InFlight(12, 0)
    in_flight.take("a", 4, is_page=False)
    in_flight.take("b", 2, is_page=False)
    assert refused(in_flight, "a", 3) == "over_share"
    in_flight.take("a", 2, is_page=False)  # half of 12
    assert refused(in_flight, "a", 1) == "over_share"
    in_flight.take("b", 1, is_page=False)
    in_flight.give("b", 3)
    in_flight.take("a", 6, is_page=False)  # alone again


def test_the_first_request_of_a_client_may_be_larger_than_its_share() -> None:
    in_flight = InFlight(12, 0)
    in_flight.take("a", 2, is_page=False)
    in_flight.take("b", 8, is_page=False)
    assert refused(in_flight, "b", 1) == "over_share"
    in_flight.take("c", 2, is_page=False)


def test_what_has_no_bytes_is_no_client() -> None:
    in_flight = InFlight(12, 0)
    in_flight.take("a", 8, is_page=False)
    in_flight.take("b", 0, is_page=False)
    in_flight.take("a", 4, is_page=False)
    in_flight.give("a", 12)
    in_flight.take("b", 0, is_page=False)
    in_flight.give("b", 0)
    in_flight.give("b", 0)
    assert in_flight.bytes == 0


def test_requests_of_one_client_without_a_body_are_all_answered() -> None:
    async def scenario() -> None:
        door = Door()
        exchanges = [Exchange(door, [b""], size=size) for size in (None, None, 0, 0)]
        answers = await asyncio.gather(*(exchange.run() for exchange in exchanges))
        assert [answer["type"] for answer in answers] == ["urn:netwatch:error:empty_body"] * 4

    asyncio.run(scenario())


def test_a_client_over_its_share_is_429_and_the_others_are_served() -> None:
    async def scenario() -> None:
        door = Door(max_body_bytes=8 * KIB, in_flight_bytes=8 * KIB, page_reserve_bytes=0)
        greedy = [Exchange(door, [REPORT], size=3 * KIB, client="10.0.0.1") for _ in range(3)]
        modest = Exchange(door, [REPORT], size=KIB, client="10.0.0.2")
        for exchange in (*greedy, modest):
            exchange.gate.clear()
        running = [asyncio.create_task(exchange.run()) for exchange in (greedy[0], modest)]
        await until(lambda: greedy[0].is_begun and modest.is_begun)
        assert (await greedy[1].run())["type"] == "urn:netwatch:error:over_share"
        assert (greedy[1].status, greedy[1].headers["retry-after"]) == (429, "1")
        other = Exchange(door, [REPORT], size=len(REPORT), client="10.0.0.3")
        assert (await other.run())["accepted"] == 1
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        fine = Exchange(door, [REPORT], size=len(REPORT), client="10.0.0.1")
        assert (await fine.run())["accepted"] == 1

    asyncio.run(scenario())


def test_pages_are_served_while_shippers_have_taken_all_that_is_theirs() -> None:
    async def scenario() -> None:
        door = Door(max_body_bytes=4 * KIB, in_flight_bytes=8 * KIB, page_reserve_bytes=4 * KIB)
        shipper = Exchange(door, [REPORT], size=4 * KIB, client="10.0.0.1")
        shipper.gate.clear()
        running = asyncio.create_task(shipper.run())
        await until(lambda: shipper.is_begun)
        other = Exchange(door, [REPORT.ljust(KIB)], size=KIB, client="10.0.0.2")
        assert (await other.run())["type"] == "urn:netwatch:error:overloaded"
        assert other.status == 503
        sent = b'[{"type":"crash","body":{}}]'.ljust(KIB)
        page = Exchange(
            door,
            [sent],
            size=len(sent),
            client="10.0.0.3",
            kind="application/reports+json",
            path="/api/v1/browser-reports",
        )
        await page.run()
        assert page.status == 204
        own = Exchange(door, [REPORT.ljust(KIB)], size=KIB, client="10.0.0.4", headers={"origin": "http://x"})
        assert (await own.run())["accepted"] == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())
