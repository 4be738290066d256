"""The reader of segments, cut, zeroed and flipped everywhere: an exact prefix always, and the ending is said.

The segments are made by Segment itself. ``good_at`` says for each offset how many lines were acked when the file was
that long: fewer must never come back from a file that is cut there.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from netwatch.storage.files import Files
from netwatch.storage.frame import Ending, FrameReader
from netwatch.storage.layout import SegmentId
from netwatch.storage.segment import Segment
from tests.doubles import blocks, made_line, made_lines

HEADER_BYTES = 6  # magic number, descriptor, window: what our compressor writes
TAIL_ZEROS = 8
"""So many zero bytes at the end of what cannot be decoded are taken for pages that never reached the disk."""


@dataclasses.dataclass
class Made:
    """A segment file: its bytes, its lines, and after each commit its size and the number of lines."""

    content: bytes
    lines: list[bytes]
    commits: list[tuple[int, int]]

    def acked_at(self, size: int) -> int:
        return max((count for end, count in self.commits if end <= size), default=0)


@dataclasses.dataclass
class Read:
    lines: list[bytes]
    ending: Ending
    broken_bytes: int


def make(groups: list[bytes], *, is_sealed: bool = False) -> Made:
    with tempfile.TemporaryDirectory() as directory:
        for name in ("open", "reports"):
            Path(directory, name).mkdir()
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        segment = Segment(Files(root), SegmentId("0a1b2c3d", 1), compression_level=1)
        lines: list[bytes] = []
        commits = []
        for group in groups:
            segment.append([group], 0.0)
            lines += group.splitlines()
            commits.append((segment.stored_bytes, len(lines)))
        if is_sealed:
            path = Path(directory, segment.seal())
        else:
            path = Path(directory, segment.id.open_path)
            os.close(segment.fd)
        os.close(root)
        return Made(path.read_bytes(), lines, commits)


def read(content: bytes) -> Read:
    fd = os.memfd_create("segment")
    try:
        os.write(fd, content)
        reader = FrameReader(fd)
        lines = list(reader.lines())
        return Read(lines, reader.ending, reader.broken_bytes)
    finally:
        os.close(fd)


def small_groups() -> list[bytes]:
    """Some dozen lines in commits of different sizes, one of them of more than one block."""
    return [
        made_line(0),
        made_lines(1, 9, filling=40),
        made_lines(10, 3, filling=60_000),  # 180 KB of lines: more than one block of 128 KiB
        made_lines(13, 2, filling=300),
        made_lines(15, 20),
        made_line(35, filling=2000),
    ]


@pytest.fixture(scope="module")
def open_segment() -> Made:
    return make(small_groups())


@pytest.fixture(scope="module")
def sealed_segment() -> Made:
    return make(small_groups(), is_sealed=True)


@pytest.fixture(params=["open", "sealed"])
def segment(request: pytest.FixtureRequest, open_segment: Made, sealed_segment: Made) -> Made:
    return open_segment if request.param == "open" else sealed_segment


def demand_prefix(found: Read, made: Made) -> None:
    assert found.lines == made.lines[: len(found.lines)], "a line was altered"


def test_the_segment_is_what_the_sweeps_want(open_segment: Made) -> None:
    ends = [end for _, end in blocks(open_segment.content)]
    assert len(open_segment.lines) == 36
    assert len(ends) > len(open_segment.commits) == 6
    assert {end for end, _ in open_segment.commits} < set(ends)
    assert ends[-1] == len(open_segment.content) < 5000


def test_an_open_segment_is_read_whole(open_segment: Made) -> None:
    assert read(open_segment.content) == Read(open_segment.lines, Ending.OPEN, 0)


def test_a_sealed_segment_is_read_whole(sealed_segment: Made) -> None:
    assert read(sealed_segment.content) == Read(sealed_segment.lines, Ending.SEALED, 0)


def test_an_empty_file_is_an_open_segment_without_lines() -> None:
    assert read(b"") == Read([], Ending.OPEN, 0)


def test_torn_tail_is_cut(segment: Made) -> None:
    """Cut at every offset: everything acked by then, nothing altered, and never called damage."""
    ends = {0, HEADER_BYTES, *(end for _, end in blocks(segment.content))}
    for size in range(len(segment.content)):
        found = read(segment.content[:size])
        demand_prefix(found, segment)
        assert len(found.lines) >= segment.acked_at(size), size
        # Between blocks the cut does not show, unless a line goes on behind it.
        assert found.ending in ((Ending.OPEN, Ending.TORN) if size in ends else (Ending.TORN,)), size
        if found.ending is Ending.TORN:  # nothing is broken in what is left when the broken bytes are cut off
            good = read(segment.content[: size - found.broken_bytes])
            assert good.lines == segment.lines[: segment.acked_at(size - found.broken_bytes)], size
            assert good.broken_bytes == 0, size


def test_row_06_zeros_at_the_end_are_a_torn_tail(open_segment: Made) -> None:
    """Pages that never reached the disk, where the file's size did: whole ones behind the last commit, or its end."""
    for count in (1, 2, 3, 7, 8, 9, 100, 4096, 3_000_000):
        found = read(open_segment.content + bytes(count))
        assert found == Read(open_segment.lines, Ending.TORN, count), count


def test_row_06_zeroed_from_every_offset_is_a_torn_tail(segment: Made) -> None:
    for offset in range(len(segment.content)):
        for more in (0, 1, 4096):
            zeros = len(segment.content) - offset + more
            found = read(segment.content[:offset] + bytes(zeros))
            demand_prefix(found, segment)
            assert len(found.lines) >= segment.acked_at(offset), (offset, more)
            # Fewer zeros at the end of a block could as well be damage to it: then it is called the worse.
            is_clear = zeros >= TAIL_ZEROS
            assert found.ending in ((Ending.TORN,) if is_clear else (Ending.TORN, Ending.DAMAGED)), (offset, more)
            if len(found.lines) < len(segment.lines):
                assert found.broken_bytes > 0, (offset, more)


def flips(segment: Made) -> Iterator[tuple[int, Read]]:
    """Each bit flipped in turn: in which byte, and what is read then."""
    for offset in range(len(segment.content)):
        for bit in range(8):
            content = bytearray(segment.content)
            content[offset] ^= 1 << bit
            yield offset, read(bytes(content))


def test_row_07_a_flipped_bit_is_found(open_segment: Made) -> None:
    """Two kinds of flips look like a torn tail, and are called one: their bytes are counted, but not set aside.

    One in the header of the frame or of a block can make a block reach beyond the end of the file, as one does that is
    torn off. One in the last block can take away the last line feed, as if the group went on in a next block.
    """
    *_, (last, _) = blocks(open_segment.content)
    headers = {start + byte for start, _ in blocks(open_segment.content) for byte in range(3)} | {*range(HEADER_BYTES)}
    for offset, found in flips(open_segment):
        demand_prefix(found, open_segment)
        assert len(found.lines) >= open_segment.acked_at(offset), offset  # what stands before it is kept
        if len(found.lines) < len(open_segment.lines):
            assert found.broken_bytes > 0, offset
            is_clear = offset not in headers and offset < last
            assert found.ending in ((Ending.DAMAGED,) if is_clear else (Ending.DAMAGED, Ending.TORN)), offset


def test_row_07_a_flipped_bit_in_a_sealed_segment_is_found(sealed_segment: Made) -> None:
    """Some bits mean nothing to a decoder (reserved ones, padding): then every line is there as it was."""
    meaningless = 0
    for offset, found in flips(sealed_segment):
        demand_prefix(found, sealed_segment)
        if found.ending is Ending.SEALED:
            assert found.lines == sealed_segment.lines, offset
            meaningless += 1
        if len(found.lines) < len(sealed_segment.lines):
            assert found.broken_bytes > 0, offset
    assert meaningless < 8 * len(sealed_segment.content) / 50


def test_row_07_a_wrong_checksum_of_the_frame_is_damage(sealed_segment: Made) -> None:
    for offset in range(-4, 0):
        content = bytearray(sealed_segment.content)
        content[offset] ^= 1
        found = read(bytes(content))
        assert (found.lines, found.ending) == (sealed_segment.lines, Ending.DAMAGED)


@pytest.mark.parametrize("bit", [17, 18, 19, 20])
def test_row_07_a_block_larger_than_any_is_damage(bit: int, open_segment: Made) -> None:
    """No block holds more than 128 KiB: so large a size is no torn tail, though it reaches beyond the end."""
    for start, _ in blocks(open_segment.content):
        value = int.from_bytes(open_segment.content[start : start + 3], "little") | 1 << bit + 3
        content = open_segment.content[:start] + value.to_bytes(3, "little") + open_segment.content[start + 3 :]
        assert read(content).ending is Ending.DAMAGED


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_file_that_grows_is_read_on_where_it_ended(segment: Made, step: int) -> None:
    """As `tail -f` reads: whatever of a block, a line or the checksum is there already, nothing is lost or repeated."""
    fd = os.memfd_create("segment")
    try:
        reader = FrameReader(fd)
        found: list[bytes] = []
        for start in range(0, len(segment.content), step):
            assert reader.ending in (Ending.OPEN, Ending.TORN)
            os.pwrite(fd, segment.content[start : start + step], start)
            found += reader.lines()
            assert found == segment.lines[: len(found)]
            assert len(found) >= segment.acked_at(start + step)
        assert found == segment.lines
        assert (reader.ending is Ending.SEALED) == (len(segment.content) > segment.commits[-1][0])
    finally:
        os.close(fd)


def test_row_07_a_line_with_a_wrong_checksum_ends_the_reading() -> None:
    lines = made_lines(0, 5).splitlines(keepends=True)
    lines[2] = lines[2].replace(b"client-", b"Client-")
    found = read(make([b"".join(lines)]).content)
    assert found.lines == made_lines(0, 2).splitlines()
    assert found.ending is Ending.DAMAGED
    assert found.broken_bytes > 0


@pytest.mark.parametrize("foreign", [b"", b"{}", b"not JSON at all", made_line(3).strip()[1:]])
def test_row_07_what_is_no_line_of_ours_is_damage(foreign: bytes) -> None:
    found = read(make([made_line(0) + foreign + b"\n" + made_line(1)]).content)
    assert found.lines == [made_line(0).strip()]
    assert found.ending is Ending.DAMAGED


def test_a_line_without_its_end_in_a_sealed_segment_is_damage() -> None:
    found = read(make([made_line(0), made_line(1)[:-1]], is_sealed=True).content)
    assert found.lines == [made_line(0).strip()]
    assert found.ending is Ending.DAMAGED
    assert found.broken_bytes > 0


@pytest.mark.parametrize("behind", [b"\0", b"x", b"(\xb5/\xfd"])
def test_what_follows_a_sealed_frame_is_damage(behind: bytes, sealed_segment: Made) -> None:
    found = read(sealed_segment.content + behind)
    assert found == Read(sealed_segment.lines, Ending.DAMAGED, len(behind))


def test_a_second_frame_is_damage(sealed_segment: Made) -> None:
    found = read(sealed_segment.content * 2)
    assert found == Read(sealed_segment.lines, Ending.DAMAGED, len(sealed_segment.content))


@pytest.mark.parametrize("content", [b"x", b"x" * 17, b"x" * 18, b"x" * 5000, bytes(18), bytes(5000)])
def test_what_is_no_frame_has_no_lines(content: bytes) -> None:
    found = read(content)
    assert found.lines == []
    assert found.ending in (Ending.TORN, Ending.DAMAGED)
    assert found.broken_bytes == len(content)


def test_a_window_that_costs_memory_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_checksum=True)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    found = read(frame.compress(made_line(0)) + frame.flush())
    assert (found.lines, found.ending) == ([], Ending.DAMAGED)


@pytest.mark.parametrize("level", [1, 3, 10, 19])
def test_every_level_that_can_be_set_is_read(level: int) -> None:
    frame = zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()
    lines = made_lines(0, 2000, filling=500)
    assert read(frame.compress(lines) + frame.flush()) == Read(lines.splitlines(), Ending.SEALED, 0)


def test_a_file_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="directory"):
            os.read(fd, 1)
        with pytest.raises(OSError, match="directory"):
            FrameReader(fd)
    finally:
        os.close(fd)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_several_broken_places_never_alter_a_line(data: st.DataObject) -> None:
    made = _SMALL
    content = bytearray(made.content)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        noise = data.draw(st.binary(min_size=1, max_size=40))
        content[start : start + len(noise)] = noise
    found = read(bytes(content))
    demand_prefix(found, made)
    if len(found.lines) < len(made.lines):
        assert found.broken_bytes > 0


_SMALL = make([made_line(0), made_lines(1, 9, filling=40), made_lines(10, 3, filling=400)])
