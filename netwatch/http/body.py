"""Reads a request's body under limits and takes it apart into reports.

Invariants: a body that was cut short is never taken for a whole one, and the bytes of all bodies being worked on are
counted before they are read.
"""

from __future__ import annotations

import functools
import io
import itertools
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec
from falcon.asgi import Request

from netwatch.errors import Refused
from netwatch.http import encoding
from netwatch.http.headers import header
from netwatch.http.turn import Turn

JSON: Final = frozenset(("application/json", "text/plain"))
NDJSON: Final = frozenset(("application/x-ndjson", "application/ndjson", "application/jsonl"))
REPORTS: Final = JSON | NDJSON
BROWSER: Final = frozenset(("application/reports+json", "application/report", "application/csp-report"))
_WHITE: Final = b" \t\r\n"
_BRACE: Final = ord("{")
_BOUNDARY: Final = re.compile(rb"\}[ \t\r\n]*+\{")
_INSIDE: Final = re.compile(rb'(?:[^"}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"?|\}(?![ \t\r\n]*+\{)){1,1000}', re.DOTALL)
"""What stands before a boundary, or a part of it: outside of strings, JSON has no boundary but between two values."""

_LINES: Final = re.compile(rb"[^ \t\r\n][^\n]*")
"""Each line that is not blank, from its first character."""

Raws = list[bytes] | list[msgspec.Raw]
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


def media_type(req: Request, taken: frozenset[str]) -> str:
    """The request's media type without parameters; raises :class:`Refused` if it is not taken. None given: JSON."""
    header: str = req.content_type or "application/json"
    if header in taken:
        return header
    kind = header.partition(";")[0].strip().lower()
    if kind not in taken:
        names = sorted(taken)
        raise Refused("unsupported_media_type", f"Send one of {', '.join(names)}.", members={"taken": names})
    return kind


def declared_size(req: Request, max_body_bytes: int) -> int | None:
    """The body's Content-Length, None if it is chunked; raises :class:`Refused` when it is too large."""
    size: int | None = req.content_length
    if size is None:
        return None if req.get_header("transfer-encoding") else 0
    if size > max_body_bytes:
        raise _too_large(max_body_bytes)
    return size


async def read(req: Request, size: int | None, max_body_bytes: int, take: Callable[[int], None]) -> bytes:
    """The whole body, decoded; ``size`` is its Content-Length, which was taken before, None if it is chunked.

    ``take`` is told of each further number of bytes, and may refuse. The server's protocol says in the ASGI state
    whether the last chunk came: without it, a body that was cut off would look like a whole one; and it has the body
    there, if that came with the header: Falcon's stream would cost as much as its decoding.
    """
    content_encoding = encoding.taken(header(req, b"content-encoding"))
    if size is None:
        chunks = bytearray()
        async for chunk in req.stream:
            if len(chunks) + len(chunk) > max_body_bytes:
                raise _too_large(max_body_bytes)
            take(len(chunk))
            chunks += chunk
        body = bytes(chunks)
        is_whole = req.scope["state"].get("body_complete", False)
    else:
        body = req.scope["state"].pop("body", None) or await req.stream.read()
        is_whole = len(body) == size
    if not is_whole:
        raise Refused("incomplete_body", "The connection ended before the body did; nothing was stored.")
    return await encoding.decode(body, content_encoding, max_body_bytes, take)


async def split(body: bytes, kind: str, max_reports: int) -> Raws:
    """The reports of a body, each still undecoded, at most ``max_reports``.

    Raises :class:`Refused` if there is none, if there are more, or if the JSON is broken. A body of millions of tiny
    reports is refused before it is taken apart: each would need many times its size.
    """
    if kind in NDJSON:
        return _split_lines(body, max_reports)
    start = body[:64].lstrip(_WHITE) or body.lstrip(_WHITE)
    if not start:
        raise _empty()
    if start[:1] not in (b"[", b"{"):
        raise Refused("invalid_json", "Send a JSON object, or an array of objects.")
    if start[:1] == b"{":
        return await _concatenated(body, max_reports)
    try:
        if len(body) > 2 * max_reports and body.count(b",") >= max_reports:
            _demand_at_most(max_reports, body)
        return _decode_array(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused("invalid_json", f"Send valid JSON: {error}.") from None
    except RecursionError:
        raise Refused("too_deep", "The body is nested too deeply.") from None


async def _concatenated(body: bytes, max_reports: int) -> list[bytes]:
    """One JSON object, or several one after the other, which older Fluent Bit sends as application/json.

    Where one ends is seen from the outside, and its inside only checked: decoded, it would need many times its size.
    """
    if not _BOUNDARY.search(body):
        return [body]
    values: list[bytes] = []
    turn = Turn()
    start = position = 0
    try:
        while position < len(body):
            if match := _INSIDE.match(body, position):
                position = match.end()
            match = _BOUNDARY.match(body, position)
            if match or position == len(body):
                end = position + 1
                if len(values) == max_reports:
                    raise _too_many(max_reports)
                values.append(body[start:end])
                _demand_json(values[-1])
                start = position = match.end() - 1 if match else end
            if turn.is_over:
                await turn.give_way()
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused("invalid_json", f"Send valid JSON: {error}.") from None
    except RecursionError:
        raise Refused("too_deep", "The body is nested too deeply.") from None
    return values


class _Anything(msgspec.Struct):
    """An object whose members are skipped."""


_demand_json = msgspec.json.Decoder(_Anything).decode


def _too_large(max_body_bytes: int) -> Refused:
    return Refused(
        "body_too_large",
        f"Send at most {max_body_bytes} bytes in a body; split the request.",
        members={"limit": max_body_bytes},
    )


def _split_lines(body: bytes, max_reports: int) -> list[bytes]:
    # a file's lines are found five times as fast as those of bytes.split
    lines = list(itertools.islice(io.BytesIO(body), max_reports + 1))
    if len(lines) <= max_reports:
        lines = [line for line in lines if line[0] == _BRACE or line.strip(_WHITE)]
    else:
        lines = [match[0] for match in itertools.islice(_LINES.finditer(body), max_reports + 1)]
        if len(lines) > max_reports:
            raise _too_many(max_reports)
    if not lines:
        raise _empty()
    return lines


def _demand_at_most(count: int, array: bytes) -> None:
    if _decode_first(count + 1)(array).last is not None:
        raise _too_many(count)


@functools.lru_cache(maxsize=1)
def _decode_first(count: int) -> Callable[[bytes], Any]:
    """Decodes the first ``count`` elements of an array, and skips the others, which then take no memory."""
    members = [*(f"_{number}" for number in range(count - 1)), "last"]
    first = msgspec.defstruct("First", [(member, msgspec.Raw, None) for member in members], array_like=True)
    return msgspec.json.Decoder(first).decode


def _empty() -> Refused:
    return Refused("empty_body", "Send at least one report.")


def _too_many(max_reports: int) -> Refused:
    return Refused(
        "too_many_reports",
        f"Send at most {max_reports} reports in a request; split it.",
        members={"limit": max_reports},
    )
