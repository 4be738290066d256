"""Names: what they say, what they never do (collide, match a reader's glob while the file grows)."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import pytest

from netwatch.storage import layout
from netwatch.storage.layout import SegmentId

SEGMENT = SegmentId("0a1b2c3d", 7)
RECEIVED_AT = "2026-11-22T10:24:10.123456Z"
SEALED = "reports/date=2026-11-22/reports-2026-11-22T10-24-10.123Z-0a1b2c3d-000007.jsonl.zst"


def test_each_path_says_which_segment_it_is() -> None:
    assert SEGMENT.open_path == "open/0a1b2c3d-000007.jsonl.zst.open"
    assert SEGMENT.recovering_path == "open/0a1b2c3d-000007.jsonl.zst.recovering"
    assert SEGMENT.quarantine_path == "quarantine/0a1b2c3d-000007.jsonl.zst"
    assert SEGMENT.sealed_path(RECEIVED_AT) == SEALED


def test_each_name_is_read_back() -> None:
    assert layout.open_segment(PurePosixPath(SEGMENT.open_path).name) == SEGMENT
    assert layout.recovering_segment(PurePosixPath(SEGMENT.recovering_path).name) == SEGMENT
    assert layout.sealed_segment(PurePosixPath(SEALED).name) == SEGMENT


@pytest.mark.parametrize("number", [1, 999_999, 1_000_000, 123_456_789])
def test_a_count_beyond_six_digits_is_read_back(number: int) -> None:
    segment = SegmentId("ffffffff", number)
    assert layout.open_segment(PurePosixPath(segment.open_path).name) == segment
    assert layout.sealed_segment(PurePosixPath(segment.sealed_path(RECEIVED_AT)).name) == segment


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0a1b2c3d-000007.jsonl.zst",
        "0a1b2c3d-000007.jsonl.zst.open.bak",
        "0a1b2c3d-000007.jsonl.zst.open\n",
        "0A1B2C3D-000007.jsonl.zst.open",
        "0a1b2c3-000007.jsonl.zst.open",
        "0a1b2c3d-7.jsonl.zst.open",
        ".0a1b2c3d-000007.jsonl.zst.open",
        "0a1b2c3d-٠٠٠٠٠٧.jsonl.zst.open",
        "reports-2026-11-22T10-24-10.123Z-0a1b2c3d-000007.jsonl.zst.part",
        "reports-2026-11-22T10-24-10Z-0a1b2c3d-000007.jsonl.zst",
        "lost+found",
    ],
)
def test_a_name_that_is_not_ours_is_no_segment(name: str) -> None:
    assert layout.open_segment(name) is None
    assert layout.recovering_segment(name) is None
    assert layout.sealed_segment(name) is None


@pytest.mark.parametrize("pattern", ["*.zst", "*.jsonl.zst", "*.jsonl", "*.jsonl.*zst", "reports-*"])
def test_no_readers_glob_matches_what_is_not_sealed(pattern: str) -> None:
    assert not fnmatchcase(PurePosixPath(SEGMENT.open_path).name, pattern)
    assert not fnmatchcase(PurePosixPath(SEGMENT.recovering_path).name, pattern)


def test_sealed_names_sort_by_time() -> None:
    times = ["2026-11-22T23:59:59.999999Z", "2026-11-23T00:00:00.000000Z", "2026-11-23T00:00:00.001000Z"]
    paths = [SegmentId("0a1b2c3d", 9 - count).sealed_path(time) for count, time in enumerate(times)]
    assert paths == sorted(paths)


def test_row_15_many_seals_in_one_millisecond_have_names_of_their_own() -> None:
    assert len({SegmentId("0a1b2c3d", number).sealed_path(RECEIVED_AT) for number in range(1000)}) == 1000


def test_every_writer_has_a_name_of_its_own() -> None:
    names = {layout.new_instance() for _ in range(100)}
    assert len(names) == 100
    assert all(layout.open_segment(f"{name}-000001.jsonl.zst.open") for name in names)


def test_the_times_in_a_name_are_one_in_a_sealed_file_s_and_two_in_a_compacted_object_s() -> None:
    path = layout.compacted_path("2026-11-22T10-00-03.512Z", "2026-11-22T10-59-58.020Z", "0123456789abcdef")
    assert path.startswith("date=2026-11-22/reports-2026-11-22T10-00-03.512Z--2026-11-22T10-59-58.020Z-")
    name = path.rpartition("/")[2]
    assert layout.times_in_name(name) == ("2026-11-22T10-00-03.512Z", "2026-11-22T10-59-58.020Z")
    assert layout.sealed_segment(name) is None, "no host takes it for one of its own"
    sealed = "reports-2026-11-22T10-24-10.123Z-0a1b2c3d-000007.jsonl.zst"
    assert layout.times_in_name(sealed) == ("2026-11-22T10-24-10.123Z",) * 2
    assert layout.times_in_name(f"{sealed}.open") is None
