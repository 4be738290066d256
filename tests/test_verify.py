"""`netwatch verify`: every file that is not as it was written is found, and what is good in it can be saved."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from netwatch.cli import main
from netwatch.storage import recovery, verification
from netwatch.storage.files import Files
from netwatch.storage.layout import SegmentId
from netwatch.storage.verification import Finding, Kind
from tests.doubles import RECEIVED_AT, blocks, made_line, made_lines, made_store, sealed_files

GROUPS = [made_line(0), made_lines(1, 9, filling=40), made_lines(10, 2, filling=70_000), made_line(12)]
LINES = b"".join(GROUPS).splitlines()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with one sealed file, of 13 lines."""
    path = tmp_path / "data"
    path.mkdir()
    root = os.open(path, os.O_RDONLY)
    store = made_store(Files(root), seal_bytes=10**9)
    store.start(0.0)
    for group in GROUPS:
        store.commit([group], 0.0)
    assert store.close(0.0)
    os.close(root)
    return path


@pytest.fixture
def sealed(data: Path) -> Path:
    (path,) = sealed_files(data)
    return path


def found(data: Path) -> list[Finding]:
    root = os.open(data, os.O_RDONLY)
    try:
        files = Files(root)
        findings = [verification.verify(files, path) for path, _ in verification.stored_files(files)]
    finally:
        os.close(root)
    return [finding for finding in findings if finding]


def salvaged(data: Path, target: Path) -> list[bytes]:
    """The lines that are salvaged of the only file there, once that is verified too and passes `zstd -t`."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    root, other = os.open(data, os.O_RDONLY), os.open(target, os.O_RDONLY)
    try:
        path = verification.salvage(Files(root), sealed_files(data)[0].relative_to(data).as_posix(), Files(other))
    finally:
        os.close(root)
        os.close(other)
    if not path:
        assert sealed_files(target) == []
        return []
    assert [(finding.path, finding.kind) for finding in found(target)] == [(path, Kind.GOOD)]
    frame = zstandard.ZstdDecompressor().decompressobj()
    content = frame.decompress((target / path).read_bytes())
    assert frame.eof
    return content.splitlines()


def write(data: Path, *lines: bytes) -> Path:
    """A sealed file of these lines, whatever they are."""
    path = SegmentId("0a1b2c3d", 7).sealed_path(RECEIVED_AT)
    root = os.open(data, os.O_RDONLY)
    Files(root).make_directory(os.path.dirname(path))
    recovery.write_segment(Files(root), path, [list(lines)], 1)
    os.close(root)
    return data / path


def line_with(members: str) -> bytes:
    """A line of ours by its checksum, with these members in its report."""
    whole = json.loads(made_line(99))
    head = ",".join(f'"{name}":"{whole[name]}"' for name in ("id", "receivedAt", "kind", "server"))
    text = f'{{{head},"report":{members}'.encode()
    return b'%b,"crc":"%08x"}' % (text, zlib.crc32(text))


def test_a_file_as_it_was_sealed_is_good(data: Path) -> None:
    (finding,) = found(data)
    assert (finding.kind, finding.lines, finding.bad_lines) == (Kind.GOOD, 13, 0)


def test_a_file_cut_anywhere_is_truncated_and_what_was_whole_is_salvaged(
    data: Path, sealed: Path, tmp_path: Path, full_sweeps: bool, thinned: Callable[[int, int, str], None]
) -> None:
    content = sealed.read_bytes()
    ends = [end for _, end in blocks(content)]
    sizes = range(len(content))
    chosen = sizes if full_sweeps else sorted({*sizes[:: max(len(content) // 120, 1)], *sizes[:20], *sizes[-9:]})
    thinned(len(sizes), len(chosen), "cuts of a sealed file")
    for size in chosen:
        sealed.write_bytes(content[:size])
        (finding,) = found(data)
        assert finding.kind is Kind.TRUNCATED, size
        assert finding.bad_lines == 0
        lines = salvaged(data, tmp_path / "salvaged")
        assert lines == LINES[: len(lines)]
        assert len(lines) == finding.lines
        if size >= ends[-1]:
            assert len(lines) == len(LINES)


def test_a_file_with_a_flipped_bit_anywhere_is_found_and_no_altered_line_is_salvaged(
    data: Path, sealed: Path, tmp_path: Path, full_sweeps: bool, thinned: Callable[[int, int, str], None]
) -> None:
    content = sealed.read_bytes()
    cases = [(place, bit) for place in range(len(content)) for bit in range(8)]
    chosen = cases if full_sweeps else cases[:64] + cases[64 : -40 : len(cases) // 250] + cases[-40:]
    thinned(len(cases), len(chosen), "bits flipped in a sealed file")
    harmless = 0
    for place, bit in chosen:
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        sealed.write_bytes(flipped)
        (finding,) = found(data)
        if finding.kind is Kind.GOOD:
            harmless += 1
        lines = salvaged(data, tmp_path / "salvaged")
        assert set(lines) <= set(LINES), (place, bit)
        assert (lines == LINES) or finding.kind is not Kind.GOOD
        assert len(lines) == finding.lines
    assert harmless < len(chosen) / 20, "a few bits of a frame mean nothing; one that does must be found"


def test_a_line_is_lost_and_those_after_it_are_salvaged(data: Path, sealed: Path, tmp_path: Path) -> None:
    sealed.unlink()
    path = write(data, LINES[0], LINES[1].replace(b"client-", b"Client-"), LINES[2])
    path.rename(sealed)
    (finding,) = found(data)
    assert (finding.kind, finding.lines, finding.bad_lines) == (Kind.DAMAGED, 2, 1)
    assert finding.detail == "line 2: its checksum is wrong"
    assert salvaged(data, tmp_path / "salvaged") == [LINES[0], LINES[2]]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ('{"a":1,"a":2}', "twice"),
        ('{"a":1e999}', "Number out of range"),
        ('{"a":NaN}', "JSON"),
        ('{"a":"\udcff"}', "UTF-8"),
        ('{"a":1}x', "JSON"),
        ("[1]", "report"),
    ],
)
def test_what_some_readers_refuse_is_found_whatever_its_checksum_says(
    data: Path, sealed: Path, members: str, said: str
) -> None:
    sealed.unlink()
    text = line_with(members.replace("\udcff", "?")).replace(b"?", b"\xff")
    text = text[: text.rindex(b',"crc"')]
    write(data, LINES[0], b'%b,"crc":"%08x"}' % (text, zlib.crc32(text)))
    (finding,) = found(data)
    assert (finding.kind, finding.lines, finding.bad_lines) == (Kind.DAMAGED, 1, 1)
    assert said in finding.detail


def test_a_line_that_another_version_encoded_otherwise_is_good(data: Path, sealed: Path) -> None:
    sealed.unlink()
    write(data, line_with('{"a": 1.50, "b":"\\u00e9"}'))
    assert [(finding.kind, finding.lines) for finding in found(data)] == [(Kind.GOOD, 1)]


@pytest.mark.parametrize("missing", ["id", "receivedAt", "kind", "server"])
def test_an_envelope_without_a_member_is_found(data: Path, sealed: Path, missing: str) -> None:
    sealed.unlink()
    members = {name: value for name, value in json.loads(made_line(1)).items() if name not in (missing, "crc")}
    text = json.dumps(members, separators=(",", ":")).removesuffix("}").encode()
    write(data, b'%b,"crc":"%08x"}' % (text, zlib.crc32(text)))
    (finding,) = found(data)
    assert finding.kind is Kind.DAMAGED
    assert finding.lines == 0


def test_what_is_not_ours_is_foreign(data: Path, sealed: Path) -> None:
    shutil.copy(sealed, sealed.with_name("copy.jsonl.zst"))
    other_day = data / "reports" / "date=2026-11-23"
    other_day.mkdir()
    shutil.copy(sealed, other_day)
    (data / "reports" / "README").write_text("not ours")
    (data / "reports" / "date=2026-11-22" / sealed.name.replace("-000001", "-000002")).mkdir()
    os.mkfifo(sealed.with_name(sealed.name.replace("-000001", "-000003")))
    assert sorted((finding.path.rpartition("/")[2][:6], finding.kind.value) for finding in found(data)) == [
        ("README", "foreign"),
        ("copy.j", "foreign"),
        ("report", "foreign"),
        ("report", "good"),
        ("report", "unreadable"),
        ("report", "unreadable"),
    ]


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 5000, bytes(5000)])
def test_a_file_of_our_name_that_is_no_frame_is_found(data: Path, sealed: Path, content: bytes) -> None:
    sealed.write_bytes(content)
    (finding,) = found(data)
    assert finding.kind in (Kind.TRUNCATED, Kind.DAMAGED)


def test_the_command_names_what_is_wrong_and_ends_with_1(
    data: Path, sealed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "--data-dir", str(data)]) == 0
    assert capsys.readouterr().out == "1 files, 13 lines: all good\n"
    assert main(["verify", "--quiet", "--data-dir", str(data)]) == 0
    assert capsys.readouterr().out == ""
    sealed.write_bytes(sealed.read_bytes()[:-1])
    arguments = ["verify", "--data-dir", str(data), "--salvage", str(tmp_path / "salvaged")]
    name = sealed.relative_to(data).as_posix()
    wrong = f"{name}: truncated: its end is missing; 13 good lines\n"
    assert main(arguments) == 1
    assert capsys.readouterr().out == f"{wrong}  salvaged as {name}\n1 files, 13 lines: 1 truncated, the rest good\n"
    assert (tmp_path / "salvaged" / name).stat().st_mode & 0o777 == 0o640
    subprocess.run(["zstd", "-tq", str(tmp_path / "salvaged" / name)], check=True)
    assert main(arguments) == 1
    assert f"{wrong}  not salvaged: {name} stands there already\n" in capsys.readouterr().out
    for inside in (data, data / "reports", data / "new"):
        assert main([*arguments[:-1], str(inside)]) == 2
        assert "another directory" in capsys.readouterr().err
    assert not (data / "new").exists()


def test_a_name_cannot_command_the_terminal(data: Path, sealed: Path) -> None:
    for name in (b"red\x1b[31m\n", b"\xff"):
        Path(os.fsdecode(os.fsencode(sealed.parent) + b"/" + name)).touch()
    command = [sys.executable, "-m", "netwatch", "verify", "--data-dir", str(data)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, stdout=subprocess.PIPE, check=False
    )
    for escaped in (rb"/red\x1b[31m\n: foreign", rb"/\udcff: foreign"):
        assert escaped in done.stdout
    assert len(done.stdout.splitlines()) == 3


def test_only_what_may_hold_newer_lines_is_verified(
    data: Path, sealed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.utime(sealed, (0, 0))
    os.utime(sealed.parent, (0, 0))
    assert main(["verify", "--data-dir", str(data), "--since", "2026-11-22T10:25:14Z"]) == 0
    assert capsys.readouterr().out.startswith("1 files")
    assert main(["verify", "--data-dir", str(data), "--since", "2026-11-22T10:25:16Z"]) == 0
    assert capsys.readouterr().out.startswith("0 files")
