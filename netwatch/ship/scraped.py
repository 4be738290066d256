"""Answers ``GET /metrics`` on an address of its own: the shipper serves nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from netwatch.metrics import text

_TIMEOUT_S = 5.0
_MAX_HEADER_BYTES = 8192


async def serve(host: str, port: int, page: Callable[[], bytes]) -> asyncio.Server:
    """Answer each scrape there with what ``page`` returns then, until it is closed. Raises OSError."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_TIMEOUT_S):
                request = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
                is_ours = request[0] == b"GET" and request[1].partition(b"?")[0] == b"/metrics"
                status, body = (b"200 OK", page()) if is_ours else (b"404 Not Found", b"GET /metrics\n")
                writer.write(
                    b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
                    % (status, text.CONTENT_TYPE.encode(), len(body), body)
                )
                await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, host, port, limit=_MAX_HEADER_BYTES)
