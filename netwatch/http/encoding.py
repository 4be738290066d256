"""Decompresses bodies (Content-Encoding) under bounds on the decoded size, the ratio and zstd's window.

Nothing is taken from a stream that is broken, cut short or followed by anything: half a body is no body.
"""

from __future__ import annotations

import asyncio
import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import zstandard

from netwatch.errors import Refused
from netwatch.http.turn import Turn

TAKEN: Final = ("gzip", "zstd", "deflate", "identity")
MAX_RATIO: Final = {"gzip": 250, "deflate": 250, "zstd": 4000}
"""More decoded bytes than this for each encoded one are refused: a quarter or an eighth of what the format can reach.
Equal reports in a row reach some 210 with gzip; agents that send histories in which nothing happens 900 with zstd …"""
RATIO_FREE_BYTES: Final = 256 * 1024
"""… beyond this many, which are free."""
MAX_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""The window that RFC 8878 recommends every decoder to take, and RFC 9659 demands for this use."""
MAX_STREAMS: Final = 10_000
"""More gzip members or zstd frames than this are refused: an empty one of 8 bytes costs as much time as a report."""
_PIECE_BYTES: Final = 256 * 1024
_ZLIB_STEP_BYTES: Final = 4096
_ZSTD_STEP_BYTES: Final = 256
"""zstd is fed so little at a time because 4 bytes can ask for a block of 128 KiB."""
_GZIP_BITS: Final = 16 + zlib.MAX_WBITS


def taken(header: str | None) -> str:
    """The one encoding of a body by its Content-Encoding; raises :class:`Refused` if it is not taken."""
    if not header:
        return "identity"
    encoding = header.strip().lower().removeprefix("x-")
    if encoding not in TAKEN:
        raise Refused("unsupported_encoding", f"Send one of {', '.join(TAKEN)}.", members={"taken": list(TAKEN)})
    return encoding


async def decode(body: bytes, encoding: str, max_body_bytes: int, take: Callable[[int], None]) -> bytes:
    """The body decompressed; ``take`` is told of each further number of bytes before they are made, and may refuse."""
    if encoding == "identity" or not body:
        return body
    pieces: list[bytes] = []
    size = 0
    try:
        turn = Turn()
        for piece, read_bytes in _pieces(body, encoding):
            if turn.is_over:
                await turn.give_way()
            if not piece:
                continue
            size += len(piece)
            if size > max_body_bytes:
                raise Refused(
                    "body_too_large",
                    f"Send at most {max_body_bytes} bytes in a body, decoded; split the request.",
                    members={"limit": max_body_bytes},
                )
            if size > RATIO_FREE_BYTES + MAX_RATIO[encoding] * read_bytes:  # so far: or a long bomb would cost more
                raise Refused(
                    "body_too_large",
                    f"This body grows more than {MAX_RATIO[encoding]}-fold when it is decoded.",
                    members={"limit": MAX_RATIO[encoding]},
                )
            take(len(piece))
            pieces.append(piece)
            await asyncio.sleep(0)  # a whole turn for each would be felt by everybody else
    except (zlib.error, zstandard.ZstdError, EOFError):
        raise Refused("invalid_encoding", f"The body is no whole {encoding} stream.") from None
    return b"".join(pieces)


def _pieces(body: bytes, encoding: str) -> Iterator[tuple[bytes, int]]:
    """What each step makes of a bounded part of the body, maybe nothing, and how much of the body is read by then.

    Members of gzip and frames of zstd may follow one another. What remains of the body is never copied for one of them:
    a frame takes 8 bytes, so millions fit.
    """
    make, step_bytes, limit = _streams(body, encoding)
    stream = make()
    streams_total = 1
    rest, position = b"", 0
    while True:
        if not rest:
            rest = body[position : position + step_bytes]
            position += step_bytes
        piece = stream.decompress(rest, *limit)
        if not (piece or rest or stream.eof):
            raise EOFError
        rest = stream.unused_data if stream.eof else stream.unconsumed_tail
        yield piece, min(position, len(body)) - len(rest)
        if not stream.eof:
            continue
        if not rest and position >= len(body):
            return
        if encoding == "deflate":
            raise EOFError
        if streams_total == MAX_STREAMS:
            raise Refused(
                "body_too_large",
                f"Send at most {MAX_STREAMS} {encoding} streams in a body.",
                members={"limit": MAX_STREAMS},
            )
        stream = make()
        streams_total += 1


def _streams(body: bytes, encoding: str) -> tuple[Callable[[], Any], int, tuple[int, ...]]:
    """What makes a decompressor, how many bytes it is fed at once, and what bounds the bytes it gives at once."""
    if encoding == "zstd":
        return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj, _ZSTD_STEP_BYTES, ()
    # deflate is zlib's format by RFC 9110, a bare stream from some senders
    bits = _GZIP_BITS if encoding == "gzip" else zlib.MAX_WBITS if _is_zlib(body) else -zlib.MAX_WBITS
    return functools.partial(zlib.decompressobj, bits), _ZLIB_STEP_BYTES, (_PIECE_BYTES,)


def _is_zlib(body: bytes) -> bool:
    return len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
