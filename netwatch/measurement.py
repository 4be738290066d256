"""One measurement of one URL: how long it took, in which parts, or why there was no answer.

It is exactly one sample, over a connection of its own, and takes at most the timeout, whatever the other side does
(only a resolver that hangs can hold up the exit). What fails to answer is a result, whose `error` says how, and never
an exception. asyncio and httpx are imported where they are used, so that the other commands start quickly.
"""

from __future__ import annotations

import errno
import socket
import ssl
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from netwatch import __version__

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    import httpx

REDIRECTS_TOTAL: Final = 5
USER_AGENT: Final = f"netwatch-probe/{__version__}"

# The parts of a sample by the events of httpcore that begin and end them.
_BEGINS: Final = {
    "connection.connect_tcp.started": "connectMs",
    "connection.start_tls.started": "tlsMs",
    "proxy.start_tls.started": "tlsMs",
    "http11.send_request_headers.started": "firstByteMs",
}
_ENDS: Final = {
    "connection.connect_tcp.complete": "connectMs",
    "connection.start_tls.complete": "tlsMs",
    "proxy.start_tls.complete": "tlsMs",
    "http11.receive_response_headers.complete": "firstByteMs",
}


class _Parts:
    """Where the time of a sample went: its members dnsMs, connectMs, tlsMs and firstByteMs, of the steps it finished.

    What is left of the latency is the rest of the body, and our own work. Redirects add up.
    """

    def __init__(self) -> None:
        self._took_ns: dict[str, int] = {}
        self._started_ns = 0

    async def trace(self, event: str, _info: object) -> None:
        """What httpcore calls at each step (its extension `trace`)."""
        now_ns = time.perf_counter_ns()
        if event in _BEGINS:
            self._started_ns = now_ns
        elif name := _ENDS.get(event):
            self._add(name, now_ns - self._started_ns)

    def looked_up(self, took_ns: int) -> None:
        """A name was looked up; httpcore takes that for a part of connecting."""
        self._add("dnsMs", took_ns)
        self._started_ns += took_ns

    def _add(self, name: str, took_ns: int) -> None:
        self._took_ns[name] = self._took_ns.get(name, 0) + took_ns

    def members(self) -> dict[str, float]:
        """In milliseconds, in the order of the steps."""
        return {name: round(took_ns / 1e6, 3) for name, took_ns in self._took_ns.items()}


_parts: ContextVar[_Parts] = ContextVar("_parts")
"""Those of the measurement at hand."""


def new_loop() -> asyncio.AbstractEventLoop:
    """The event loop to measure on: it tells how long each lookup of a name took, which anyio and httpx don't."""
    import asyncio

    class Loop(asyncio.SelectorEventLoop):
        async def getaddrinfo(self, *args: Any, **kwargs: Any) -> Any:
            started_ns = time.perf_counter_ns()
            found = await super().getaddrinfo(*args, **kwargs)
            if parts := _parts.get(None):
                parts.looked_up(time.perf_counter_ns() - started_ns)
            return found

    return Loop()


async def measure(url: httpx.URL, context: ssl.SSLContext, timeout_s: float) -> dict[str, Any]:
    """One sample; the latency lasts to the end of the answer's body, redirects included, and so do its parts."""
    import asyncio

    import httpx

    latency_ms = error = None
    parts = _Parts()
    _parts.set(parts)
    async with httpx.AsyncClient(
        verify=context,
        follow_redirects=True,
        max_redirects=REDIRECTS_TOTAL,
        timeout=None,  # ours bounds the whole, httpx's each single read
        headers={"user-agent": USER_AGENT},
    ) as client:
        started_ms = time.time_ns() // 1_000_000
        started_ns = time.perf_counter_ns()
        try:
            request = client.stream("GET", url, extensions={"trace": parts.trace})
            async with asyncio.timeout(timeout_s), request as response:
                async for _ in response.aiter_raw():
                    pass  # thrown away: a body has no bound
            latency_ms = round((time.perf_counter_ns() - started_ns) / 1e6, 3)
            error = f"http {response.status_code}" if response.status_code >= 500 else None
        except Exception as exception:  # a redirect to a port that cannot be is an OverflowError, and so on
            error = kind_of(exception)
    return {"t": started_ms, "latency": latency_ms, "error": error, **parts.members()}


def kind_of(exception: BaseException) -> str:
    """Why there was no answer: timeout, dns, tls, redirects, protocol, or connect: and read: with a reason."""
    import httpx

    causes = list(_causes(exception))
    if any(isinstance(cause, TimeoutError | httpx.TimeoutException) for cause in causes):
        return "timeout"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "dns"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return "tls"
    if isinstance(exception, httpx.TooManyRedirects):
        return "redirects"
    step = "connect" if isinstance(exception, httpx.ConnectError) else "read"
    numbers = {cause.errno for cause in causes if isinstance(cause, OSError)}
    for reason, meant in (
        ("refused", {errno.ECONNREFUSED}),
        ("reset", {errno.ECONNRESET, errno.EPIPE}),
        ("unreachable", {errno.ENETUNREACH, errno.EHOSTUNREACH}),
    ):
        if numbers & meant:
            return f"{step}: {reason}"
    return f"{step}: failed" if isinstance(exception, httpx.NetworkError) else "protocol"


def _causes(exception: BaseException) -> Iterator[BaseException]:
    """The exception and all that led to it: httpx wraps httpcore's, that anyio's, and that one for each address."""
    waiting: list[BaseException | None] = [exception]
    seen: set[int] = set()
    while waiting:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += [cause.__cause__, cause.__context__]
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
