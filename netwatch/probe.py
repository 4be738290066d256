"""`netwatch probe URL…` measures each URL, in parallel, and posts what it saw to a server as one report.

asyncio, anyio and httpx are imported where they are used, so that the other commands start quickly.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netwatch.errors import StartError
from netwatch.measurement import USER_AGENT, kind_of, measure, new_loop

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    import httpx

REPORTS_PATH = "/api/v1/reports"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `run` reads."""
    parser.add_argument("urls", nargs="+", metavar="URL", help="what to measure, http:// or https://")
    parser.add_argument("--server", default="http://127.0.0.1:8080", metavar="URL", help="where to post (%(default)s)")
    parser.add_argument(
        "--print", action="store_true", dest="print_only", help="print the report instead of posting it"
    )
    parser.add_argument("--client-id", default=socket.gethostname(), help="who reports (the host's name: %(default)s)")
    parser.add_argument("--timeout-s", type=_seconds, default=5.0, metavar="S", help="for each sample (%(default)s)")
    parser.add_argument("--count", type=_count, default=1, metavar="N", help="samples of each URL (%(default)s)")
    parser.add_argument(
        "--interval-s",
        type=_seconds,
        default=1.0,
        metavar="S",
        help="from one sample's start to the next (%(default)s)",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="the server's token for us, alone in a file; by default the systemd credential `token`, if there is one",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, then post or print; return the exit code: 0 stored or printed, 1 not stored, 2 wrong usage."""
    import asyncio

    try:
        urls = [_parse_url(text) for text in args.urls]
        server = _parse_url(args.server)
    except ValueError as error:
        print(f"netwatch probe: {error}", file=sys.stderr)
        return 2
    token = _token(args.token_file, os.environ)
    timestamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    with asyncio.Runner(loop_factory=new_loop) as runner:
        hosts = runner.run(_measure_all(urls, args.timeout_s, args.count, args.interval_s))
        report = {"clientId": args.client_id, "timestamp": timestamp, "hosts": hosts}
        if args.print_only:
            print(json.dumps(report, indent=2))
            return 0
        return runner.run(_post(server, json.dumps(report), token, args.timeout_s))


def _count(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"not a number from 1 to 1000: {text}")
    return int(text)


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


def _token(path: Path | None, environ: Mapping[str, str]) -> str:
    """The token in the file, or in systemd's credential (systemd.exec(5), LoadCredential=), or no text."""
    if path is None:
        path = Path(environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), "token")
        if not path.exists():
            return ""
    try:
        token = path.read_text("ascii").strip()
    except OSError as error:
        raise StartError(f"Cannot read the token in {path}: {error.strerror}.", 2) from None
    except UnicodeDecodeError:
        token = " "
    if not token.isprintable() or " " in token:
        raise StartError(f"{path} must hold one token and nothing else.", 2)
    return token


async def _measure_all(urls: list[httpx.URL], timeout_s: float, count: int, interval_s: float) -> list[dict[str, Any]]:
    import asyncio

    import httpx
    from anyio.lowlevel import checkpoint

    await checkpoint()  # its first use loads modules for 30 ms, which no server should be blamed for
    context = httpx.create_ssl_context()  # so does this
    hosts = [_measure_host(url, context, timeout_s, count, interval_s) for url in urls]
    return await asyncio.gather(*hosts)


async def _measure_host(
    url: httpx.URL, context: ssl.SSLContext, timeout_s: float, count: int, interval_s: float
) -> dict[str, Any]:
    """One host of a report, with `count` samples; a sample that took longer than the interval delays the next."""
    import asyncio

    history = []
    next_s = time.monotonic()
    for _ in range(count):
        await asyncio.sleep(next_s - time.monotonic())
        next_s = time.monotonic() + interval_s
        history.append(await measure(url, context, timeout_s))
    return {
        "name": url.netloc.decode("ascii"),
        "url": str(url.copy_with(userinfo=b"") if url.userinfo else url),  # no report may carry a password
        "status": "error" if history[-1]["error"] else "online",
        "history": history,
    }


async def _post(server: httpx.URL, body: str, token: str, timeout_s: float) -> int:
    import asyncio

    import httpx

    url = server.copy_with(path=server.path.rstrip("/") + REPORTS_PATH)
    headers = {"user-agent": USER_AGENT, "content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    try:
        async with asyncio.timeout(timeout_s), httpx.AsyncClient(timeout=None, headers=headers) as client:
            response = await client.post(url, content=body)
    except (httpx.HTTPError, OSError) as exception:
        named = server.copy_with(userinfo=b"")  # where a token can stand
        print(f"netwatch probe: no answer from the server {named}: {kind_of(exception)}", file=sys.stderr)
        return 1
    print(response.status_code, " ".join(response.text.splitlines()))
    return 0 if response.status_code == 200 else 1
