"""How fast a shipper goes: so many bytes a second, and later and later while nothing succeeds."""

from __future__ import annotations

import pytest

from netwatch.ship.pace import Backoff, Bandwidth


def test_the_bandwidth_holds_on_average_whatever_the_sizes() -> None:
    bandwidth = Bandwidth(1000)
    now_s, sent_bytes = 100.0, 0
    for size_bytes in (500, 3000, 10, 10, 2000, 480):
        now_s += bandwidth.wait_s(size_bytes, now_s)
        assert sent_bytes <= (now_s - 100.0) * 1000
        sent_bytes += size_bytes
    assert now_s + bandwidth.wait_s(1, now_s) == pytest.approx(106.0)


def test_what_was_not_used_is_not_saved_up() -> None:
    bandwidth = Bandwidth(1000)
    assert bandwidth.wait_s(1000, 0.0) == 0
    assert bandwidth.wait_s(1000, 50.0) == 0
    assert bandwidth.wait_s(1000, 50.0) == 1


def test_without_a_bound_nothing_waits() -> None:
    assert Bandwidth(0).wait_s(1 << 40, 0.0) == 0


@pytest.mark.parametrize(("jitter", "longest_s"), [(0.0, 30.0), (1.0, 60.0)])
def test_each_failure_in_a_row_waits_longer_up_to_a_minute(jitter: float, longest_s: float) -> None:
    backoff = Backoff(lambda: jitter)
    waits = [backoff.failed(0.0) for _ in range(40)]
    assert waits[:3] == [waits[0], 2 * waits[0], 4 * waits[0]]
    assert waits == sorted(waits)
    assert waits[-1] == longest_s
    backoff.succeeded()
    assert (backoff.at_s, backoff.failed(7.0)) == (0.0, waits[0])
    assert backoff.at_s == 7.0 + waits[0]
