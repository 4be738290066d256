"""The audit of a data directory: are the lines that it holds exactly those that were promised to the clients?

It reads with the stock `zstd` tool and Python's own json, none of the server's code, one line in memory at a time.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import IO, Final

from netwatch.loadtest.ledger import Fate, Ledger, mark_of
from netwatch.loadtest.lines import Lines
from netwatch.loadtest.reports import Reports

FAILURES = {
    "leftover": "files in open/ after the last stop",
    "stray": "things under reports/ that are no sealed segment by their name, their place and their kind",
    "broken_file": "files that fail `zstd -t`, or are not one zstd frame with a checksum",
    "bad_line": "lines that are no strict JSON in the right envelope",
    "bad_crc": "lines whose crc is wrong",
    "missing": "reports answered 200 that are in no line",
    "doubled": "reports that are in more than one line",
    "wrong_id": "reports stored under another id than they were answered with",
    "shared_id": "lines that have their id in common with the line of another report",
    "altered": "reports stored with another value than was sent",
    "unexpected": "lines of reports that were rejected or never sent, or, where nobody else sends, that nobody knows",
}

_CRC = re.compile(rb',"crc":"([0-9a-f]{8})"\}\n\Z')
_RUN_ID = re.compile(r"[0-9a-f]{8}-\d+-\d+\Z")
_OPEN = re.compile(r"open/([0-9a-f]+-\d+)\.jsonl\.zst\.open\Z")  # <instance>-<number>, the same when it is sealed
_SEALED = re.compile(r"reports/date=(\d{4}-\d\d-\d\d)/reports-\1T[^/]*Z-([0-9a-f]+-\d+)\.jsonl\.zst\Z")
_ONE_FRAME = re.compile(r" *1 +0 .* XXH64  ")
"""A row of `zstd -l` about such a file: one frame, none to skip."""


@dataclass
class Audit:
    """What was found; all is well when `found` is empty."""

    keys_forgotten: bool = False
    is_live: bool = False
    files: int = 0
    stored_bytes: int = 0
    lines: int = 0
    of_this_run: int = 0
    of_others: int = 0  # other runs' lines, and with a running server any other sender's
    unknown_stored: int = 0  # reports whose client cannot know, and which are stored
    repeated: int = 0  # lines that stand twice under one id, where the server may have forgotten the key
    quarantined: int = 0
    ids: array[int] = field(default_factory=lambda: array("Q"))  # 64 bits of a hash of each line's
    found: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, failure: str, example: str) -> None:
        self.found[failure] += 1
        examples = self.examples.setdefault(failure, [])
        if len(examples) < 3:
            examples.append(example)

    def failures(self) -> list[str]:
        """One line for each kind of failure."""
        return [
            f"{name}: {self.found[name]} {meaning}, e.g. {'; '.join(self.examples[name])}"
            for name, meaning in FAILURES.items()
            if self.found[name]
        ]


_FRAME_END: Final = b"\x01\x00\x00" + bytes(4)
"""An empty last block and a checksum, which is wrong (RFC 8878)."""


def audit(
    data_dir: Path, ledger: Ledger, reports: Reports, *, live: bool = False, keys_forgotten: bool = False
) -> Audit:
    """Compare all that `data_dir` holds with what the run sent; `live`: a server still runs, with segments open;
    `keys_forgotten`: it was started afresh, and what was sent again after that may stand twice, under the same id."""
    with ExitStack() as stack:
        growing: dict[Path, IO[bytes]] = {}
        if live:  # opened before reports/ is looked at, and kept: each may be sealed, and so renamed, at any moment
            for path in files_below(data_dir / "open"):
                with suppress(FileNotFoundError):
                    growing[path] = stack.enter_context(path.open("rb"))
        return _audit(data_dir, growing, ledger, reports, Audit(keys_forgotten, live))


def _audit(data_dir: Path, growing: dict[Path, IO[bytes]], ledger: Ledger, reports: Reports, result: Audit) -> Audit:
    sealed: list[Path] = []
    if not result.is_live:
        for path in files_below(data_dir / "open"):
            result.add("leftover", path.name)
    taken = {match[1] for path in growing if (match := _OPEN.search(str(path)))}
    for path in files_below(data_dir / "reports"):
        match = _SEALED.search(str(path))
        if match is None or path.is_symlink() or not path.is_file():
            result.add("stray", path.name)
        elif match[2] not in taken:  # else it was sealed since we looked into open/
            sealed.append(path)
    result.quarantined = len(files_below(data_dir / "quarantine"))
    result.files = len(sealed)
    result.stored_bytes = sum(path.stat().st_size for path in sealed)
    for path in broken_files(sealed):
        result.add("broken_file", path.name)
    lines = Lines(reports)
    seen = [array("I", bytes(4 * len(fates))) for fates in ledger.fates]
    for path in [*sealed, *growing]:
        for number, raw in enumerate(read_lines(path, growing.get(path)), 1):
            result.lines += 1
            _look_at(result, f"{path.name}:{number}", raw, ledger, lines, seen)
    for client, fates in enumerate(ledger.fates):
        for number, fate in enumerate(fates):
            if fate == Fate.ACKED and not seen[client][number]:
                result.add("missing", ledger.report_id(client, number))
    for one, next_one in pairwise(sorted(result.ids)):
        if one == next_one:
            result.add("shared_id", f"an id whose hash is {one:016x}")
    return result


def _look_at(result: Audit, where: str, raw: bytes, ledger: Ledger, lines: Lines, seen: list[array[int]]) -> None:
    crc = _CRC.search(raw, max(0, len(raw) - 32))
    if crc is None:
        result.add("bad_line", f"{where}: does not end with a crc")
    elif f"{zlib.crc32(raw[: crc.start()]):08x}" != crc[1].decode():
        result.add("bad_crc", where)
    try:
        line = lines.decode(raw)
    except ValueError as error:  # UnicodeDecodeError is one
        if crc is not None:
            result.add("bad_line", f"{where}: {error}")
        return
    report_id = line["report"].get("clientId")
    place = ledger.find(report_id) if isinstance(report_id, str) and line["kind"] == "report" else None
    if place is None:
        is_known = isinstance(report_id, str) and report_id.startswith(f"{ledger.run}-")
        if not is_known and (result.is_live or (isinstance(report_id, str) and _RUN_ID.match(report_id))):
            result.of_others += 1
        else:
            result.add("unexpected", f"{where}: clientId {report_id!r}")
        return
    client, number = place
    result.of_this_run += 1
    mark = mark_of(line["id"])
    if ledger.marks[client][number] not in (0, mark):
        result.add("wrong_id", f"{report_id} as {line['id']} in {where}")
    if seen[client][number] == mark and result.keys_forgotten:
        result.repeated += 1
    elif seen[client][number]:
        result.add("doubled", f"{report_id} in {where}")
    else:
        result.ids.append(int.from_bytes(hashlib.blake2b(line["id"].encode(), digest_size=8).digest()))
    seen[client][number] = mark
    fate = ledger.fates[client][number]
    if fate == Fate.UNKNOWN:
        result.unknown_stored += 1
    elif fate != Fate.ACKED:
        result.add("unexpected", f"{report_id} ({Fate(fate).name.lower()}) in {where}")
    if differs := lines.differs(report_id, line["report"]):
        result.add("altered", f"{report_id}: {differs} in {where}")


def read_lines(path: Path, growing: IO[bytes] | None = None) -> Iterator[bytes]:
    """The lines of a file as far as it decodes; of one that still grows, and is open, without a last one half there."""
    with subprocess.Popen(
        ["zstd", "-dcq", *(["--no-check"] if growing else ["--", str(path)])],
        stdin=subprocess.PIPE if growing else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=1 << 20,
    ) as zstd:
        assert zstd.stdout is not None
        if growing and zstd.stdin:
            Thread(target=_feed, args=(growing, zstd.stdin)).start()
        for line in zstd.stdout:
            if line.endswith(b"\n") or not growing:
                yield line


def _feed(growing: IO[bytes], stdin: IO[bytes]) -> None:
    """What is there, and an end: of a frame without one, zstd 1.5.4 sometimes keeps the last lines to itself."""
    with suppress(BrokenPipeError), stdin:
        shutil.copyfileobj(growing, stdin)
        stdin.write(_FRAME_END)


def broken_files(paths: list[Path]) -> list[Path]:
    """Those that `zstd -t` does not accept, or that are not one frame with a checksum."""
    broken: list[Path] = []
    for start in range(0, len(paths), 200):
        group = paths[start : start + 200]
        if not _passes(group):
            broken += [path for path in group if not _passes([path])]
    return broken


def _passes(paths: list[Path]) -> bool:
    names = list(map(str, paths))
    if subprocess.run(["zstd", "-tq", "--", *names], capture_output=True, check=False).returncode:
        return False
    listed = subprocess.run(["zstd", "-l", "--", *names], capture_output=True, text=True, check=False).stdout
    _, *rows = listed.splitlines()
    return len(rows) >= len(paths) and all(map(_ONE_FRAME.match, rows[: len(paths)]))


def digest(data_dir: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file below the data directory, by its relative name."""
    found = {}
    for path in files_below(data_dir):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found[str(path.relative_to(data_dir))] = path.stat().st_size, sha256
    return found


def files_below(directory: Path) -> list[Path]:
    """Every file, at any depth, by name."""
    return sorted(path for path in directory.rglob("*") if not path.is_dir())
