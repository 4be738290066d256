"""`netwatch status` shows how a running server is: ready or why not, its rates, what it holds, its disk, its errors.

It asks what monitoring asks, /readyz and /metrics, so it says the same; `--watch` goes on, through restarts too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netwatch.errors import StartError

if TYPE_CHECKING:
    from netwatch.commands.scrape import Look

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `run` reads."""
    parser.add_argument(
        "--server", default="http://127.0.0.1:8080", metavar="URL", help="the running server (%(default)s)"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="the server's token for us, alone in a file")
    parser.add_argument("--interval-s", type=_seconds, default=1.0, metavar="S", help="rates are over S (%(default)s)")
    parser.add_argument("-w", "--watch", action="store_true", help="go on, and show it anew after each interval")


def run(args: argparse.Namespace) -> int:
    """Show it; 1 if the server is not ready."""
    from netwatch.commands.pretty import is_coloured
    from netwatch.commands.scrape import Server

    server = Server(args.server, args.token_file)
    is_terminal = sys.stdout.isatty()
    before = server.look()
    while True:
        time.sleep(args.interval_s)
        try:
            now = server.look()
        except StartError as error:
            if not args.watch:
                raise
            text = str(error)
        else:
            text = "\n".join(_rows(args.server, before, now, is_coloured=is_coloured(sys.stdout)))
            before = now
        print(f"\x1b[H\x1b[2J{text}" if args.watch and is_terminal else text, flush=True)
        if not args.watch:
            return 0 if before.is_ready else 1


def _rows(server: str, before: Look, now: Look, *, is_coloured: bool) -> Iterator[str]:
    from netwatch.commands.pretty import RED, coloured

    def rate(name: str) -> str:
        """How fast it grows; what a restart began anew counts from zero."""
        grown = now.total(name) - before.total(name)
        grown = now.total(name) if grown < 0 else grown
        return f"{grown / (now.at_s - before.at_s):,.1f}/s"

    def row(name: str, text: str, *, is_bad: bool = False) -> str:
        return f"{name:<12}{coloured(RED, text) if is_bad and is_coloured else text}"

    wall_s = time.time()
    total = now.total
    reasons = ", ".join(f"{reason['code']}: {reason['detail']}" for reason in now.readiness.get("reasons", []))
    started_at = total("start_time_seconds")
    version = next((labels.get("version", "") for name, labels, _ in now.samples if name == "netwatch_build_info"), "")
    yield row(
        "server",
        f"{server}, netwatch {version}, " + (f"NOT READY: {reasons}" if reasons else "ready"),
        is_bad=bool(reasons),
    )
    deaths = sum(now.by("child_deaths_total", "child").values())
    yield row(
        "processes",
        f"{total('workers'):.0f} workers, up {_ago(wall_s - started_at)}, "
        f"{deaths:.0f} deaths of the writer or Gunicorn, the writer's last sign of life "
        f"{_age(wall_s, total('writer_sign_of_life_time_seconds'))}",
        is_bad=deaths > 0,
    )
    terms = ("received", "stored", "duplicate", "rejected", "shed", "unknown")
    yield row("reports/s", ", ".join(f"{rate(f'reports_{term}_total')[:-2]} {term}" for term in terms))
    yield row("reports", ", ".join(f"{total(f'reports_{term}_total'):,.0f} {term}" for term in terms))
    yield row("requests", f"{rate('requests_total')}, {total('connections_open'):,.0f} connections open")
    yield row(
        "in flight",
        f"{total('reports_in_flight'):,.0f} reports; {_mib(total('in_flight_bytes'))} of "
        f"{_mib(total('in_flight_limit_bytes'))} of bodies",
    )
    syncs = total("fdatasync_seconds_count") - before.total("fdatasync_seconds_count")
    mean_ms = (
        1000 * (total("fdatasync_seconds_sum") - before.total("fdatasync_seconds_sum")) / syncs if syncs > 0 else None
    )
    yield row(
        "commits",
        f"{rate('commits_total')}, last {_age(wall_s, total('last_commit_time_seconds'))}; fdatasync "
        + (f"{mean_ms:.2f} ms on average, " if mean_ms is not None else "")
        + f"the last {1000 * total('last_fdatasync_seconds'):.2f} ms",
    )
    lines_bytes, file_bytes = total("sealed_lines_bytes_total"), total("sealed_file_bytes_total")
    yield row(
        "segments",
        f"{total('segments_open'):.0f} open, {total('leftovers'):.0f} leftovers, {total('segments_sealed_total'):,.0f} "
        f"sealed, the last {_age(wall_s, total('last_seal_time_seconds'))}"
        + (f"; compressed {lines_bytes / file_bytes:.1f} times" if file_bytes else ""),
    )
    free_bytes, reserve_bytes = total("disk_free_bytes"), total("disk_reserve_bytes")
    yield row(
        "disk",
        f"{free_bytes / GIB:,.1f} GiB free, reserve {reserve_bytes / GIB:,.1f} GiB",
        is_bad=free_bytes < reserve_bytes,
    )
    quarantine = total("quarantine_files")
    yield row("quarantine", f"{quarantine:.0f} files", is_bad=quarantine > 0)
    errors = {key: count for key, count in now.by("requests_total", "status", "code").items() if key[0][:1] in "45"}
    newest = {key for key, count in errors.items() if count > before.by("requests_total", "status", "code").get(key, 0)}
    listed = sorted(errors.items(), key=lambda item: -item[1])
    yield row(
        "errors",
        ", ".join(
            f"{status} {code} {count:,.0f}{' (now)' * ((status, code) in newest)}" for (status, code), count in listed
        )
        or "none",
        is_bad=any(status[0] == "5" for status, _ in newest),
    )


def _mib(count: float) -> str:
    return f"{count / MIB:,.1f} MiB"


def _age(wall_s: float, at_s: float) -> str:
    return f"{_ago(wall_s - at_s)} ago" if at_s else "never"


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0.0):.1f} s"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"give 0.1 to 3600 seconds: {text!r}")
    return seconds
