"""Decompresses bodies (Content-Encoding) under bounds on the decoded size, the ratio and zstd's window.

Nothing is taken from a stream that is broken, cut short or followed by anything: half a body is no body.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterator
from typing import Final

import zstandard

from netwatch.errors import Refused

TAKEN: Final = ("gzip", "zstd", "deflate", "identity")
MAX_RATIO: Final = 250
"""More decoded bytes than this for each encoded one are refused (honest telemetry reaches some 60) …"""
RATIO_FREE_BYTES: Final = 1024 * 1024
"""… once this much has been decoded."""
MAX_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""The window that RFC 8878 recommends every decoder to take, and RFC 9659 demands for this use."""
_PIECE_BYTES: Final = 256 * 1024
_STEP_BYTES: Final = 256
"""zstd is fed so little at a time because 4 bytes can ask for a block of 128 KiB."""
_GZIP_BITS: Final = 16 + zlib.MAX_WBITS


def taken(header: str | None) -> str:
    """The one encoding of a body by its Content-Encoding; raises :class:`Refused` if it is not taken."""
    encoding = (header or "identity").strip().lower().removeprefix("x-")
    if encoding not in TAKEN:
        raise Refused("unsupported_encoding", f"Send one of {', '.join(TAKEN)}.", members={"taken": list(TAKEN)})
    return encoding


async def decode(body: bytes, encoding: str, max_body_bytes: int, take: Callable[[int], None]) -> bytes:
    """The body decompressed; ``take`` is told of each further number of bytes before they are made, and may refuse."""
    if encoding == "identity":
        return body
    pieces: list[bytes] = []
    size = 0
    try:
        for piece in _inflate(body, encoding) if encoding != "zstd" else _decompress(body):
            size += len(piece)
            if size > max_body_bytes:
                raise Refused(
                    "body_too_large",
                    f"Send at most {max_body_bytes} bytes in a body, decoded; split the request.",
                    members={"limit": max_body_bytes},
                )
            if size > RATIO_FREE_BYTES and size > MAX_RATIO * len(body):
                raise Refused(
                    "body_too_large",
                    f"This body grows more than {MAX_RATIO}-fold when it is decoded.",
                    members={"limit": MAX_RATIO},
                )
            take(len(piece))
            pieces.append(piece)
            await asyncio.sleep(0)
    except (zlib.error, zstandard.ZstdError, EOFError):
        raise Refused("invalid_encoding", f"The body is no whole {encoding} stream.") from None
    return b"".join(pieces)


def _inflate(body: bytes, encoding: str) -> Iterator[bytes]:
    """gzip, of one or more members, or deflate: zlib's format by RFC 9110, a bare stream from some senders."""
    bits = _GZIP_BITS if encoding == "gzip" else zlib.MAX_WBITS if _is_zlib(body) else -zlib.MAX_WBITS
    rest = body
    while rest:
        stream = zlib.decompressobj(bits)
        while not stream.eof:
            piece = stream.decompress(rest, _PIECE_BYTES)
            rest = stream.unconsumed_tail
            if piece:
                yield piece
            elif not rest and not stream.eof:
                raise EOFError
        rest = stream.unused_data
        if rest and encoding != "gzip":
            raise EOFError


def _is_zlib(body: bytes) -> bool:
    return len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0


def _decompress(body: bytes) -> Iterator[bytes]:
    """zstd, of one or more frames."""
    rest = body
    while rest:
        frame = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()
        position = 0
        while not frame.eof:
            if position >= len(rest):
                raise EOFError
            piece = frame.decompress(rest[position : position + _STEP_BYTES])
            position += _STEP_BYTES
            if piece:
                yield piece
        rest = frame.unused_data + rest[position:]
