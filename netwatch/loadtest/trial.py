"""One load test from start to end: load, kills meanwhile, the audit, the summary."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from netwatch.loadtest import progress
from netwatch.loadtest.audit import audit, digest, files_below
from netwatch.loadtest.chaos import Server, Storm
from netwatch.loadtest.client import Load
from netwatch.loadtest.ledger import Ledger
from netwatch.loadtest.reports import Reports
from netwatch.loadtest.requests import Requests, address
from netwatch.loadtest.summary import summarize, table
from netwatch.loadtest.tally import Tally

new_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    import uvloop

    new_loop = uvloop.new_event_loop
except ImportError:
    new_loop = asyncio.new_event_loop


def run_here(args: argparse.Namespace) -> int:
    """Run it in this process, which has nothing else to do; the exit code."""
    # TERM ends it as Ctrl-C does, by way of every `finally`: its server must not stay behind.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return run_trial(args, [sys.executable, "-m", "netwatch", "serve"])
    except OSError as error:  # a file that cannot be written, a server that cannot be started
        print(f"netwatch loadtest: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("netwatch loadtest: interrupted", file=sys.stderr)
    return 1


def run_trial(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Run what `netwatch.loadtest.command` took, with `command` for a server; the exit code."""
    failures: list[str] = []
    with _data_dir(args, failures) as data_dir, ExitStack() as stack:
        log = stack.enter_context(args.log.open("w", buffering=1 << 20)) if args.log else None
        server = storm = None
        if args.serve:
            assert data_dir is not None
            server_log = stack.enter_context(args.server_log.open("ab")) if args.server_log else None
            workers = ["--workers", str(args.workers)] if args.workers else []
            server = Server([*command, *workers, *args.arguments], data_dir, failures, server_log)
            stack.callback(server.kill_all)
            server.start()
            if not server.wait_ready():
                print("\n".join(failures), file=sys.stderr)
                return 1
            if args.kill:
                storm = Storm(server, args.kill, args.every, args.seed, kills_total=args.kills)
        quarantined = len(files_below(data_dir / "quarantine")) if data_dir else 0
        ledger = Ledger(secrets.token_hex(4), args.clients)
        reports = Reports(args.seed, args.mix, args.bad)
        target = address(server.url if server else args.arguments[0])
        requests = Requests(
            target, reports, ledger, batch=args.batch, encoding=args.encoding, keys=args.keys, token=args.token
        )
        load = Load(
            target, requests, ledger, rate=args.rate, keys=args.keys, new_connections=args.new_connections, log=log
        )
        interrupted: list[str] = []
        try:
            run_load(load, storm, args.duration)
        except KeyboardInterrupt:
            interrupted = ["interrupted: nothing was audited"]
            data_dir = server = None
        if server:
            server.stop()
        # A request whose answer a kill took may be sent again to a server that a restart made forget its key.
        forgotten = args.keys and storm is not None and bool(storm.kills.keys() & {"stop", "supervisor", "all"})
        result = None
        if data_dir:
            result = audit(data_dir, ledger, reports, live=server is None, keys_forgotten=forgotten)
        if result and result.quarantined > quarantined:
            failures.append(f"quarantine: {result.quarantined - quarantined} files, and nothing here damages one")
        if result and result.found["missing"] and not result.of_this_run:
            failures.append(f"audit: no report of this run is in {data_dir}: is it the server's data directory?")
        if server and result:
            recover_again(server)
        failures += expectations(args, load.tally)
        failures += result.failures() if result else []
        kills = storm.kills if storm else None
        failed = [*interrupted, *failures]
        summary = summarize(ledger.run, asked(args), load.tally, load.duration_s, kills, result, failed)
        print(*table(summary), sep="\n")
        if args.json:
            args.json.write_text(json.dumps(summary, indent=1) + "\n")
        if args.plot:
            from netwatch.loadtest.plot import draw

            draw(summary, args.plot)
    return 1 if failed else 0


@contextmanager
def _data_dir(args: argparse.Namespace, failures: list[str]) -> Iterator[Path | None]:
    """The directory to audit, if any; one of our own is kept only if there are failures to look into."""
    if not args.serve:
        yield args.audit
    elif args.data_dir:
        yield args.data_dir.absolute()
    else:
        temporary = Path(tempfile.mkdtemp(prefix="netwatch-loadtest-"))
        data_dir = temporary / "data"
        try:
            yield data_dir
        finally:
            if failures and data_dir.exists():
                print(f"the data is kept in {data_dir}")
            else:
                shutil.rmtree(temporary)


def run_load(load: Load, storm: Storm | None, duration_s: float) -> None:
    """The load in this thread and the storm in another, whose end is the load's; returns when both have ended."""

    async def run() -> None:
        shown = None
        if sys.stderr.isatty():
            shown = asyncio.create_task(progress.show(load, duration_s, sys.stderr))
        try:
            await load.run(duration_s)
        finally:
            if shown:
                shown.cancel()

    with asyncio.Runner(loop_factory=new_loop) as runner, ThreadPoolExecutor(1) as thread:
        kills = thread.submit(storm.run) if storm else None
        if kills:
            kills.add_done_callback(lambda _: load.end())
        try:
            runner.run(run())
        finally:
            if storm:
                storm.end()
        if kills:
            kills.result()


def recover_again(server: Server) -> None:
    """Start and stop a server over what is finished: no file may change."""
    before = digest(server.data_dir)
    server.start()
    if server.wait_ready():
        server.stop()
    after = digest(server.data_dir)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        server.failures.append(f"recovery: a second one changed {len(changed)} files, e.g. {', '.join(changed[:3])}")


def expectations(args: argparse.Namespace, tally: Tally) -> list[str]:
    """What the clients saw and the options do not allow, one line each."""
    failures = []
    slowest_s = max(tally.latencies_s, default=0.0)
    others = {str(outcome): count for outcome, count in tally.requests.items() if outcome != 200}
    if tally.bad_requests_total and others.get("400") == tally.bad_requests_total:
        del others["400"]
    if tally.anomalies_total:
        failures.append(f"anomaly: {tally.anomalies_total} answers broke the interface, e.g. {tally.anomalies[0]}")
    if not (tally.requests[200] or tally.bad_requests_total):
        failures.append(f"nothing: no request was answered 200, but {others or 'none was sent'}")
    if tally.unsent_total:
        others["not sent"] = tally.unsent_total
    if args.expect_only_200 and others:
        failures.append(f"expected only 200: {others}")
    cut_total = tally.requests["cut"] + tally.retried["cut"]
    if args.expect_no_cut and (cut_total or tally.dropped_total):
        failures.append(f"expected no cut: {cut_total} answers, {tally.dropped_total} kept-alive connections")
    timeouts_total = tally.requests["timeout"] + tally.retried["timeout"]
    if args.max_latency_s is not None and (slowest_s > args.max_latency_s or timeouts_total):
        failures.append(f"latency: an answer took {slowest_s:.3f} s, {timeouts_total} timed out")
    return failures


def asked(args: argparse.Namespace) -> dict[str, Any]:
    """What the load was asked to be."""
    names = ("clients", "duration", "rate", "batch", "encoding", "keys", "bad", "new_connections", "seed", "kill")
    sizes = ",".join(f"{size}={weight}" for size, weight in args.mix.items()) if len(args.mix) > 1 else min(args.mix)
    return {"size": sizes} | {name: getattr(args, name) for name in names}
