"""Verifies sealed files as no reader does: the frame's end and checksum, each line's checksum, strict JSON, envelope.

What is still good in a broken file, every line whose own checksum is right, can be written as a sealed file elsewhere.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final

import msgspec

from netwatch.reports import ID, is_whole
from netwatch.storage import layout, recovery
from netwatch.storage.files import Files
from netwatch.storage.frame import Ending, FrameReader
from netwatch.storage.reader import Since
from netwatch.storage.segment import RECEIVED_AT

_LEVEL: Final = 1
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_UUID = Annotated[
    str, msgspec.Meta(pattern=r"\A[0-9a-f]{8}-[0-9a-f]{4}-[78][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")
]
_Time = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z\Z")]


class _Envelope(msgspec.Struct):
    """What a line must have; members may have been added."""

    id: _UUID
    receivedAt: _Time  # noqa: N815 - the name in the line
    kind: Annotated[str, msgspec.Meta(min_length=1)]
    server: str
    report: dict[str, Any]
    crc: str
    generatedAt: _Time | msgspec.UnsetType = msgspec.UNSET  # noqa: N815 - the name in the line
    address: str | msgspec.UnsetType = msgspec.UNSET


class Kind(enum.Enum):
    """What a file is found to be."""

    GOOD = "good"
    TRUNCATED = "truncated"
    """Its end is missing."""
    DAMAGED = "damaged"
    """Something in it is not as it was written."""
    FOREIGN = "foreign"
    """It is none of ours, but stands where readers look."""
    UNREADABLE = "unreadable"


@dataclasses.dataclass
class Finding:
    """What was found in the file ``path``: how many good lines, and what is wrong in a sentence."""

    path: str
    kind: Kind = Kind.GOOD
    detail: str = ""
    lines: int = 0
    bad_lines: int = 0


def stored_files(files: Files, since: Since | None = None) -> Iterator[tuple[str, int]]:
    """Everything that stands where readers look, by name, and its size in bytes; only what may hold lines ``since``."""
    for day in sorted(_entries(files, layout.REPORTS, since)):
        directory = f"{layout.REPORTS}/{day[0]}"
        try:
            found = sorted(_entries(files, directory, since))
        except NotADirectoryError:
            yield directory, day[1]
            continue
        except FileNotFoundError:  # pruned, and empty then
            continue
        for name, size in found:
            yield f"{directory}/{name}", size


def _entries(files: Files, directory: str, since: Since | None) -> Iterator[tuple[str, int]]:
    for entry in files.entries(directory):
        time_in_name = entry.name.removeprefix("date=").removeprefix("reports-")[:24]
        if since is None or since.may_be_in(time_in_name, entry):
            try:
                yield entry.name, entry.stat().st_size
            except FileNotFoundError:  # pruned meanwhile, or a link that leads nowhere
                continue


def verify(files: Files, path: str, on_read: Callable[[int], None] = lambda _bytes: None) -> Finding | None:
    """What is to say of the file; None if it is gone. ``on_read`` hears how many of its bytes are verified."""
    finding = Finding(path)
    segment_id = layout.sealed_segment(path.rpartition("/")[2])
    if segment_id is None:
        finding.kind, finding.detail = Kind.FOREIGN, "netwatch gives no such name"
        return finding
    try:
        fd = files.open_for_reading(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        finding.kind, finding.detail = Kind.UNREADABLE, error.strerror or str(error)
        return finding
    try:
        frame = FrameReader(fd)
        due_path = ""
        for lines in frame.line_lists(is_checked=False):
            for line in lines:
                fault = fault_of(line)
                if fault:
                    finding.bad_lines += 1
                    finding.detail = finding.detail or f"line {finding.lines + finding.bad_lines}: {fault}"
                else:
                    finding.lines += 1
                    due_path = due_path or segment_id.sealed_path(line[RECEIVED_AT].decode())
            on_read(frame.position_bytes)
        is_empty = os.fstat(fd).st_size == 0
    except OSError as error:  # a directory, say
        finding.kind, finding.detail = Kind.UNREADABLE, error.strerror or str(error)
        return finding
    finally:
        files.close(fd)
    if finding.bad_lines:
        finding.kind = Kind.DAMAGED
    elif is_empty or frame.ending in (Ending.OPEN, Ending.TORN):
        finding.kind, finding.detail = Kind.TRUNCATED, "its end is missing"
    elif frame.ending is Ending.DAMAGED:
        finding.kind, finding.detail = Kind.DAMAGED, f"its last {frame.broken_bytes} bytes are not what was written"
    elif not finding.lines:
        finding.kind, finding.detail = Kind.FOREIGN, "there is no line in it"
    elif due_path != path:
        finding.kind, finding.detail = Kind.FOREIGN, f"by its first line it would stand at {due_path}"
    return finding


def fault_of(line: bytes) -> str:
    """Why ``line`` (without its line feed) is not as it was written, or not readable by every reader; "" if it is."""
    if not is_whole(line):
        return "its checksum is wrong"
    try:
        text = line.decode()
        members = _decode(line)
        if _encode(members) != line:  # then it was not encoded as we do it, and has to be looked at closely
            json.loads(text, object_pairs_hook=_no_repetition, parse_constant=_refused, parse_float=_double)
        envelope = msgspec.convert(members, _Envelope)
    except UnicodeDecodeError:
        return "it is not valid UTF-8"
    except msgspec.ValidationError as error:
        return f"{error}"
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return f"it is not strict JSON: {error}"
    if line[ID] != envelope.id.encode() or line[RECEIVED_AT] != envelope.receivedAt.encode():
        return "its id and receivedAt do not stand in their places"
    return ""


def _no_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _double(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text} is beyond a double")
    return number


def salvage(files: Files, path: str, target: Files) -> str:
    """Write the good lines of the broken file ``path`` below ``target``, as a sealed file; its path there, "" if none.

    Raises OSError; FileExistsError when it stands there already.
    """
    segment_id = layout.sealed_segment(path.rpartition("/")[2])
    assert segment_id
    fd = files.open_for_reading(path)
    try:
        good_lists = (
            good
            for lines in FrameReader(fd).line_lists(is_checked=False)
            if (good := [line for line in lines if not fault_of(line)])
        )
        first = next(good_lists, None)
        if first is None:
            return ""
        salvaged = segment_id.sealed_path(first[0][RECEIVED_AT].decode())
        if target.exists(salvaged):
            raise FileExistsError(f"{salvaged} stands there already")
        target.make_directory(layout.REPORTS)
        unfinished = f"{segment_id}.salvaging"
        recovery.write_segment(target, unfinished, itertools.chain([first], good_lists), _LEVEL)
        target.publish(unfinished, salvaged)
        return salvaged
    finally:
        files.close(fd)
