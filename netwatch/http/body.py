"""Reads a request's body under limits and takes it apart into reports.

Invariants: a body that was cut short is never taken for a whole one, and the bytes of all bodies being worked on are
bounded before they are read.
"""

from __future__ import annotations

from typing import Final

import msgspec
from falcon.asgi import Request

from netwatch.errors import Overloaded, Refused

TAKEN: Final = ("application/json", "application/x-ndjson", "application/ndjson", "application/jsonl", "text/plain")
_NDJSON: Final = frozenset(TAKEN[1:4])
_WHITE: Final = b" \t\r\n"

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
    """The whole body of a chunked request; what it takes in flight is added to ``taken``.

    The server's protocol says in the ASGI state whether the last chunk came: without it, a body that was cut off would
    look like a whole one.
    """
    body = bytearray()
    async for chunk in req.stream:
        if len(body) + len(chunk) > max_body_bytes:
            raise too_large(max_body_bytes)
        in_flight.take(len(chunk))
        taken.append(len(chunk))
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


def split(body: bytes, kind: str) -> list[bytes] | list[msgspec.Raw]:
    """The reports of a body, each still undecoded. Raises :class:`Refused` if there is none or the array is broken."""
    if kind in _NDJSON:
        lines = [line for line in body.split(b"\n") if line and not line.isspace()]
        if not lines:
            raise Refused("empty_body", "Send at least one report.")
        return lines
    start = body[:64].lstrip(_WHITE) or body.lstrip(_WHITE)
    if not start:
        raise Refused("empty_body", "Send at least one report.")
    if start[:1] != b"[":
        return [body]
    try:
        return _decode_array(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused("invalid_json", f"Send valid JSON: {error}.") from None
    except RecursionError:
        raise Refused("too_deep", "The body is nested too deeply.") from None
