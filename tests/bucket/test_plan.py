"""Which objects become one: those of an hour that is over, up to a size, with what belongs to a compacted one."""

from __future__ import annotations

import calendar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netwatch.compaction import plan
from netwatch.compaction.plan import Object

DAY = "2026-11-22"
MIDNIGHT_S = float(calendar.timegm((2026, 11, 22, 0, 0, 0)))
LATE_S = MIDNIGHT_S + 2 * 86400


def single(time: str, size_bytes: int = 10, instance: str = "0a1b2c3d") -> Object:
    path = f"date={DAY}/reports-{DAY}T{time}.000Z-{instance}-000001.jsonl.zst"
    found = plan.parsed(path, size_bytes, 0.0)
    assert found
    return found


def compacted(*sources: Object, size_bytes: int | None = None) -> Object:
    path = plan.path_of(sources, [source.path.encode() for source in sources])
    total_bytes = sum(source.size_bytes for source in sources)
    found = plan.parsed(path, total_bytes if size_bytes is None else size_bytes, 0.0)
    assert found
    return found


def planned(*objects: Object, now_s: float = LATE_S, target_bytes: int = 100) -> list[list[Object]]:
    return list(plan.groups(objects, now_s, 7200.0, target_bytes))


def test_an_hour_s_objects_of_all_hosts_become_one() -> None:
    hour = [single(f"10-{minute:02}-00", instance=host) for minute in range(3) for host in ("00000001", "00000002")]
    assert planned(*reversed(hour)) == [hour]


def test_hours_stay_apart() -> None:
    ten, eleven = [single("10-00-00"), single("10-59-59")], [single("11-00-00"), single("11-00-01")]
    assert planned(*ten, *eleven) == [ten, eleven]


@pytest.mark.parametrize(("after_s", "is_due"), [(11 * 3600 + 7199, False), (11 * 3600 + 7200, True)])
def test_an_hour_is_left_alone_until_it_has_settled(after_s: int, is_due: bool) -> None:
    hour = [single("10-00-00"), single("10-59-59")]
    assert planned(*hour, now_s=MIDNIGHT_S + after_s) == ([hour] if is_due else [])


def test_a_group_ends_at_the_size() -> None:
    hour = [single(f"10-{minute:02}-00", 40) for minute in range(8)]
    assert planned(*hour) == [hour[:3], hour[3:6], hour[6:]]


def test_one_alone_has_nothing_to_gain() -> None:
    assert planned(single("10-00-00"), single("11-00-00")) == []


def test_what_an_interrupted_compaction_left_goes_to_what_it_made() -> None:
    sources = [single(f"10-{minute:02}-00", 40) for minute in range(3)]
    made = compacted(*sources)
    assert planned(made, *sources[1:]) == [sorted([made, *sources[1:]])]


def test_what_came_late_goes_to_what_is_compacted() -> None:
    made = compacted(single("10-00-00", 100), single("10-30-00", 100))
    late, after = single("10-10-00"), single("10-45-00")
    assert planned(made, late, after) == [[made, late]]


def test_what_is_large_enough_stays_as_it_is() -> None:
    one = compacted(single("10-00-00"), single("10-20-00"), size_bytes=50)
    two = compacted(single("10-21-00"), single("10-40-00"), size_bytes=50)
    assert planned(one, two) == []
    small = compacted(single("10-41-00"), single("10-50-00"), size_bytes=20)
    assert planned(one, two, small, single("10-51-00")) == [[small, single("10-51-00")]]


@pytest.mark.parametrize(
    "path",
    [
        "compaction.lease",
        f"date={DAY}/notes.txt",
        f"date={DAY}/reports-{DAY}T10-00-00.000Z-0a1b2c3d-000001.jsonl.zst.tmp",
        f"date={DAY}/reports-{DAY}T10-00-00.000Z--0a1b2c3d.jsonl.zst",
    ],
)
def test_what_is_not_ours_is_left_alone(path: str) -> None:
    assert plan.parsed(path, 10, 0.0) is None


def test_the_name_follows_from_the_lines_whatever_their_order() -> None:
    sources = [single("10-00-00"), single("10-20-00")]
    assert plan.path_of(sources, [b"1", b"2"]) == plan.path_of(sources[::-1], [b"2", b"1"])
    assert plan.path_of(sources, [b"1", b"2"]) != plan.path_of(sources, [b"1", b"3"])
    assert plan.path_of(sources, [b"1"]).startswith(f"date={DAY}/reports-{DAY}T10-00-00.000Z--{DAY}T10-20-00.000Z-")


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 7199), st.integers(1, 120)), max_size=40, unique_by=lambda pair: pair[0]),
    st.integers(1, 10),
    st.randoms(use_true_random=False),
)
def test_it_comes_to_an_end_and_loses_none(times: list[tuple[int, int]], shrink: int, random: object) -> None:
    """However well they compress, and whatever a compaction left behind: soon there is nothing to do."""
    objects = {single(f"{s // 3600 + 10}-{s // 60 % 60:02}-{s % 60:02}", size): {s} for s, size in times}
    for _ in range(12):
        todo = planned(*objects)
        if not todo:
            break
        for group in todo:
            assert len(group) > 1
            inside = set().union(*(objects[member] for member in group))
            made = compacted(*group, size_bytes=1 + sum(member.size_bytes for member in group) // shrink)
            kept = [member for member in group if random.random() < 0.1]  # type: ignore[attr-defined]
            for member in group:
                if member not in kept:
                    del objects[member]
            objects[made] = inside
    else:
        assert len(todo) <= 1, "it goes on for ever"
    assert set().union(*objects.values()) == {s for s, _ in times}
    assert len({member.path for member in objects}) == len(objects)
