"""`netwatch probe URL…` measures each URL once, in parallel, and posts what it saw to a server as one report.

Every measurement is exactly one sample and takes at most the timeout, whatever the other side does (only a resolver
that hangs can hold up the exit). What fails to answer is a result, whose `error` says how, and never an exception.
asyncio, anyio and httpx are imported where they are used, so that the other commands start quickly.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import socket
import ssl
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from netwatch import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

REPORTS_PATH = "/api/v1/reports"
REDIRECTS_TOTAL = 5
USER_AGENT = f"netwatch-probe/{__version__}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `run` reads."""
    parser.add_argument("urls", nargs="+", metavar="URL", help="what to measure, http:// or https://")
    parser.add_argument("--server", default="http://127.0.0.1:8080", metavar="URL", help="where to post (%(default)s)")
    parser.add_argument(
        "--print", action="store_true", dest="print_only", help="print the report instead of posting it"
    )
    parser.add_argument("--client-id", default=socket.gethostname(), help="who reports (the host's name: %(default)s)")
    parser.add_argument("--timeout-s", type=_seconds, default=5.0, metavar="S", help="for each URL (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Measure, then post or print; return the exit code: 0 stored or printed, 1 not stored, 2 not a URL."""
    import asyncio

    try:
        urls = [_parse_url(text) for text in args.urls]
        server = _parse_url(args.server)
    except ValueError as error:
        print(f"netwatch probe: {error}", file=sys.stderr)
        return 2
    timestamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    hosts = asyncio.run(_measure_all(urls, args.timeout_s))
    report = {"clientId": args.client_id, "timestamp": timestamp, "hosts": hosts}
    if args.print_only:
        print(json.dumps(report, indent=2))
        return 0
    return asyncio.run(_post(server, json.dumps(report), args.timeout_s))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError(f"not a positive number of seconds: {text}")
    return seconds


def _parse_url(text: str) -> httpx.URL:
    """The URL, with a host and a possible port; ValueError with a sentence when it is none."""
    import httpx

    try:
        url = httpx.URL(text)
        is_ours = url.scheme in ("http", "https") and bool(url.host) and (url.port is None or 0 < url.port < 65536)
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError(f"not a URL: {text!r}: {error}") from error
    if not is_ours:
        raise ValueError(f"not an http:// or https:// URL with a host: {text!r}")
    return url


async def _measure_all(urls: list[httpx.URL], timeout_s: float) -> list[dict[str, Any]]:
    import asyncio

    import httpx
    from anyio.lowlevel import checkpoint

    await checkpoint()  # its first use loads modules for 30 ms, which no server should be blamed for
    limits = httpx.Limits(max_connections=None)  # a wait for a free connection would be measured too
    async with httpx.AsyncClient(
        follow_redirects=True,
        max_redirects=REDIRECTS_TOTAL,
        timeout=None,  # ours bounds the whole, httpx's each single read
        limits=limits,
        headers={"user-agent": USER_AGENT},
    ) as client:
        return await asyncio.gather(*(_measure(client, url, timeout_s) for url in urls))


async def _measure(client: httpx.AsyncClient, url: httpx.URL, timeout_s: float) -> dict[str, Any]:
    """One host of a report, with one sample; the latency lasts to the end of the answer's body, redirects included."""
    import asyncio

    latency_ms = error = None
    started_ms = time.time_ns() // 1_000_000
    started_ns = time.perf_counter_ns()
    try:
        async with asyncio.timeout(timeout_s), client.stream("GET", url) as response:
            async for _ in response.aiter_raw():
                pass  # thrown away: a body has no bound
        latency_ms = round((time.perf_counter_ns() - started_ns) / 1e6, 3)
        error = f"http {response.status_code}" if response.status_code >= 500 else None
    except Exception as exception:  # a redirect to a port that cannot be is an OverflowError, and so on
        error = kind_of(exception)
    return {
        "name": url.netloc.decode("ascii"),
        "url": str(url.copy_with(userinfo=b"") if url.userinfo else url),  # no report may carry a password
        "status": "error" if error else "online",
        "history": [{"t": started_ms, "latency": latency_ms, "error": error}],
    }


async def _post(server: httpx.URL, body: str, timeout_s: float) -> int:
    import asyncio

    import httpx

    url = server.copy_with(path=server.path.rstrip("/") + REPORTS_PATH)
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpx.AsyncClient(timeout=None, headers={"user-agent": USER_AGENT}) as client,
        ):
            response = await client.post(url, content=body, headers={"content-type": "application/json"})
    except (httpx.HTTPError, OSError) as exception:
        print(f"netwatch probe: no answer from the server {server}: {kind_of(exception)}", file=sys.stderr)
        return 1
    print(response.status_code, " ".join(response.text.splitlines()))
    return 0 if response.status_code == 200 else 1


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
