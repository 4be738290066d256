"""Reads a request's body under limits and takes it apart into reports.

Invariants: a body that was cut short is never taken for a whole one, and the bytes of all bodies being worked on are
bounded before they are read.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec
from falcon.asgi import Request

from netwatch.errors import Overloaded, Refused

TAKEN: Final = ("application/json", "application/x-ndjson", "application/ndjson", "application/jsonl", "text/plain")
_NDJSON: Final = frozenset(TAKEN[1:4])
_WHITE: Final = b" \t\r\n"

_LINES: Final = re.compile(rb"[^\s][^\n]*")
"""Each line that is not blank, from its first character."""

_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


class InFlight:
    """The bytes of the requests that one worker works on, from their Content-Length to their answer."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0

    def take(self, size: int) -> None:
        """Count ``size`` more bytes, or raise :class:`Overloaded` at once."""
        if self.bytes + size > self.limit_bytes:
            raise Overloaded("overloaded", f"More than {self.limit_bytes} bytes would be in flight; try again later.")
        self.bytes += size

    def give(self, size: int) -> None:
        """The answer is made: ``size`` bytes less."""
        self.bytes -= size


def declared_size(req: Request, max_body_bytes: int) -> int | None:
    """The body's Content-Length, None if it is chunked; raises :class:`Refused` when it is too large."""
    size: int | None = req.content_length
    if size is None:
        return None if req.get_header("transfer-encoding") else 0
    if size > max_body_bytes:
        raise too_large(max_body_bytes)
    return size


def too_large(max_body_bytes: int) -> Refused:
    """The refusal of a body that is over the limit."""
    return Refused(
        "body_too_large",
        f"Send at most {max_body_bytes} bytes in a body; split the request.",
        members={"limit": max_body_bytes},
    )


async def read(req: Request, size: int) -> bytes:
    """The whole body, whose Content-Length is ``size``."""
    body: bytes = await req.stream.read()
    if len(body) != size:
        raise _incomplete()
    return body


async def read_chunked(req: Request, in_flight: InFlight, taken: list[int], max_body_bytes: int) -> bytes:
    """The whole body of a chunked request; what it takes in flight is added to ``taken[0]``.

    The server's protocol says in the ASGI state whether the last chunk came: without it, a body that was cut off would
    look like a whole one.
    """
    body = bytearray()
    async for chunk in req.stream:
        if len(body) + len(chunk) > max_body_bytes:
            raise too_large(max_body_bytes)
        in_flight.take(len(chunk))
        taken[0] += len(chunk)
        body += chunk
    if not req.scope["state"].get("body_complete"):
        raise _incomplete()
    return bytes(body)


def _incomplete() -> Refused:
    return Refused("incomplete_body", "The connection ended before the body did; nothing was stored.")


def media_type(req: Request) -> str:
    """The request's media type without parameters; raises :class:`Refused` if it is not taken. None given: JSON."""
    header: str = req.content_type or "application/json"
    kind = header.partition(";")[0].strip().lower()
    if kind not in TAKEN:
        raise Refused("unsupported_media_type", f"Send one of {', '.join(TAKEN)}.", members={"taken": list(TAKEN)})
    return kind


def split(body: bytes, kind: str, max_reports: int) -> list[bytes] | list[msgspec.Raw]:
    """The reports of a body, each still undecoded, at most ``max_reports``.

    Raises :class:`Refused` if there is none, if there are more, or if the array is broken. A body of millions of tiny
    reports is refused before it is taken apart: each would need many times its size.
    """
    if kind in _NDJSON:
        return _split_lines(body, max_reports)
    start = body[:64].lstrip(_WHITE) or body.lstrip(_WHITE)
    if not start:
        raise _empty()
    if start[:1] != b"[":
        return [body]
    try:
        if body.count(b",") >= max_reports:
            _demand_at_most(max_reports, body)
        return _decode_array(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused("invalid_json", f"Send valid JSON: {error}.") from None
    except RecursionError:
        raise Refused("too_deep", "The body is nested too deeply.") from None


def _split_lines(body: bytes, max_reports: int) -> list[bytes]:
    if body.count(b"\n") < max_reports:
        lines = [line for line in body.split(b"\n") if line and not line.isspace()]
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
