"""The reports of a run follow from their ids, vary, and are bad where they must be; the ledger knows their fate."""

from __future__ import annotations

import pytest

from netwatch.errors import Rejected
from netwatch.loadtest.command import SIZES
from netwatch.loadtest.ledger import Fate, Ledger, fate_of
from netwatch.loadtest.lines import Lines
from netwatch.loadtest.reports import SHAPES, Reports
from netwatch.reports import Lines as ServerLines
from tests.stored import stored_report

RUN = "0a1b2c3d"


@pytest.mark.parametrize(
    ("size", "low", "high"), [("small", 500, 1000), ("medium", 5000, 7000), ("large", 25000, 35000)]
)
def test_reports_follow_from_their_id_and_differ(size: str, low: int, high: int) -> None:
    reports, again = Reports(1, {size: 1}), Reports(1, {size: 1})
    ids = [f"{RUN}-0-{number}" for number in range(50)]
    bodies = [reports.body(report_id) for report_id in ids]
    assert bodies == [again.body(report_id) for report_id in ids]
    assert len({body.partition(b'"hosts"')[2] for body in bodies}) > 25
    assert all(low < len(body) < high and b"\n" not in body for body in bodies)
    lines = Lines(reports)
    assert [lines.differs(report_id, stored_report(again, report_id)) for report_id in ids] == [""] * len(ids)
    assert lines.differs(ids[0], stored_report(reports, ids[1])) == "clientId"
    assert not any(reports.is_bad(report_id) for report_id in ids)


def test_a_mix_has_its_sizes_by_their_weights() -> None:
    reports = Reports(1, {"small": 8, "medium": 3, "large": 1})
    sizes = [len(reports.body(f"{RUN}-0-{number}")) for number in range(1200)]
    small, large = sum(size < 2000 for size in sizes), sum(size > 20_000 for size in sizes)
    assert (700 < small < 900, 60 < large < 140) == (True, True)


def test_options_and_shapes_name_the_same_sizes() -> None:
    assert set(SHAPES) == set(SIZES)


def test_bad_reports_are_what_the_share_says_and_the_server_rejects_each_kind() -> None:
    """The server's own rules, so that a rule that is relaxed is not taken for a fault that the load test found."""
    reports = Reports(1, {"small": 1}, 0.5)
    lines = ServerLines("host1", max_report_bytes=1 << 20, max_depth=32)
    ids = [f"{RUN}-0-{number}" for number in range(400)]
    bad = [report_id for report_id in ids if reports.is_bad(report_id)]
    assert 150 < len(bad) < 250
    kinds = set()
    for report_id in ids:
        body = reports.body(report_id)
        if report_id in bad:
            with pytest.raises(Rejected) as rejected:
                lines.line(body, 0, "", b"")
            kinds.add((rejected.value.code, rejected.value.pointer))
        else:
            assert lines.line(body, 0, "", b"")
    assert len(kinds) >= 8


@pytest.mark.parametrize(
    ("outcome", "fate"),
    [
        (200, Fate.ACKED),
        (400, Fate.REJECTED),
        (429, Fate.REJECTED),
        (500, Fate.UNKNOWN),
        (503, Fate.UNKNOWN),
        ("closed", Fate.UNKNOWN),
        ("cut", Fate.UNKNOWN),
        ("timeout", Fate.UNKNOWN),
        ("garbage", Fate.UNKNOWN),
        ("refused", Fate.UNSENT),
    ],
)
def test_fate_of_a_report_follows_from_the_outcome(outcome: int | str, fate: Fate) -> None:
    assert fate_of(outcome) is fate


def test_a_bad_report_must_not_be_stored_whatever_its_request_was_answered() -> None:
    ledger = Ledger(RUN, 1)
    for fate in (Fate.ACKED, Fate.UNKNOWN):
        ledger.settle(0, numbers := ledger.take(0, 3), fate, [numbers[1]])
        assert list(ledger.fates[0][-3:]) == [fate, Fate.REJECTED, fate]
