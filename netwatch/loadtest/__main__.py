"""The load test's command line: load, kills meanwhile, the audit, a table, and exit 0 only when all is well."""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from netwatch.loadtest.audit import FAILURES, Audit, audit, digest, files_below
from netwatch.loadtest.chaos import TARGETS, Server, Storm
from netwatch.loadtest.client import Load, Tally
from netwatch.loadtest.ledger import Ledger
from netwatch.loadtest.reports import SHAPES, Reports

new_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    import uvloop

    new_loop = uvloop.new_event_loop
except ImportError:
    new_loop = asyncio.new_event_loop


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and what stands after `--` for the server."""
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="loadtest",
        description="Posts reports from many clients, and audits what is stored.",
        epilog="Arguments after -- go to `netwatch serve`. The log has a line for each request: the id of its first "
        "report and the number of reports (their last figures count up), the outcome (a status; closed or cut: the "
        "connection ended before or in the answer; timeout; refused: not sent; garbage), and how many answers the "
        "connection had carried before.",
    )
    add = parser.add_argument
    add("url", nargs="?", help="a running server, e.g. http://127.0.0.1:8080")
    add("--serve", action="store_true", help="start a server, and stop it at the end")
    add("--workers", type=int, help="for the server started by --serve")
    add("--data-dir", type=Path, help="for the server started by --serve (default: a temporary one, kept on failure)")
    add("--server-log", type=Path, help="append the stderr of the server started by --serve to this file")
    add("--audit", type=Path, metavar="DATA_DIR", help="audit this directory at the end (with --serve always its own)")
    add("--clients", type=int, default=32)
    add("--duration", type=float, default=10.0, metavar="S")
    add("--size", choices=SHAPES, default="small")
    add("--batch", type=int, default=0, metavar="N", help="send NDJSON of N reports instead of single objects")
    add("--kill", choices=(*TARGETS, "mix"), help="SIGKILL this (stop: TERM to the supervisor) in the server's tree")
    add("--every", type=float, default=2.0, metavar="S", help="seconds between kills")
    add("--kills", type=int, metavar="N", help="end the load after so many kills, at the latest after --duration")
    add("--seed", type=int, default=1, help="of the reports and of the choice of kills")
    add("--json", type=Path, metavar="FILE", help="write the summary as JSON")
    add("--log", type=Path, metavar="FILE", help="write every request's outcome as JSON lines")
    add("--expect-only-200", action="store_true", help="fail on any other outcome")
    add("--expect-no-cut", action="store_true", help="fail if an answer is cut, or never comes where others did")
    add("--max-latency-s", type=float, metavar="X", help="fail if an answer took longer")
    options = parser.parse_args(argv[:cut])
    if options.serve == bool(options.url):
        parser.error("give either the address of a running server or --serve")
    if not options.serve and (options.kill or options.workers or options.data_dir or argv[cut:]):
        parser.error("--kill, --workers, --data-dir and server arguments need --serve")
    return options, list(argv[cut + 1 :])


def serve_command(options: argparse.Namespace, server_arguments: list[str]) -> list[str]:
    workers = ["--workers", str(options.workers)] if options.workers else []
    return [sys.executable, "-m", "netwatch", "serve", *workers, *server_arguments]


def main(argv: Sequence[str], command: Sequence[str] | None = None) -> int:
    """Run it; `command` stands in for `netwatch serve`."""
    options, server_arguments = parse(argv)
    failures: list[str] = []
    temporary: Path | None = None
    quarantined = 0
    data_dir: Path | None = options.audit
    if options.serve:
        if options.data_dir is None:
            temporary = Path(tempfile.mkdtemp(prefix="netwatch-loadtest-"))
        data_dir = (temporary / "data" if temporary else options.data_dir).absolute()
    ledger = Ledger(secrets.token_hex(4), options.clients)
    reports = Reports(options.seed, options.size)
    server: Server | None = None
    storm: Storm | None = None
    with ExitStack() as stack:
        log = stack.enter_context(options.log.open("w", buffering=1 << 20)) if options.log else None
        if data_dir is not None and options.serve:
            quarantined = len(files_below(data_dir / "quarantine"))
            server_log = stack.enter_context(options.server_log.open("ab")) if options.server_log else None
            server = Server(command or serve_command(options, server_arguments), data_dir, failures, server_log)
            stack.callback(server.kill_all)
            server.start()
            if not server.wait_ready():
                print("\n".join(failures), file=sys.stderr)
                if temporary:
                    shutil.rmtree(temporary)
                return 1
            if options.kill:
                storm = Storm(server, options.kill, options.every, options.seed, kills_total=options.kills)
        load = Load(server.url if server else options.url, reports, ledger, batch=options.batch, log=log)
        run_load(load, storm, options.duration)
        if server:
            server.stop()
        result = audit(data_dir, ledger, reports, live=server is None) if data_dir else None
        if server and result:
            if result.quarantined > quarantined:
                failures.append(f"quarantine: {result.quarantined - quarantined} files, and nothing here damages one")
            recover_again(server)
    failures += expectations(options, load.tally)
    failures += result.failures() if result else []
    summary = summarize(options, ledger.run, load, storm, result, failures)
    if options.json:
        options.json.write_text(json.dumps(summary, indent=1) + "\n")
    print_table(summary)
    if temporary and failures:
        print(f"the data is kept in {data_dir}")
    elif temporary:
        shutil.rmtree(temporary)
    return 1 if failures else 0


def run_load(load: Load, storm: Storm | None, duration_s: float) -> None:
    """The load in this thread and the storm in another, whose end is the load's; returns when both have ended."""
    with asyncio.Runner(loop_factory=new_loop) as runner, ThreadPoolExecutor(1) as thread:
        kills = thread.submit(storm.run) if storm else None
        if kills:
            kills.add_done_callback(lambda _: load.end())
        try:
            runner.run(load.run(duration_s))
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


def expectations(options: argparse.Namespace, tally: Tally) -> list[str]:
    """What the clients saw and the options do not allow, one line each."""
    failures = []
    slowest_s = max(tally.latencies_s, default=0.0)
    others = {str(outcome): count for outcome, count in tally.requests.items() if outcome != 200}
    if tally.anomalies_total:
        failures.append(f"anomaly: {tally.anomalies_total} answers broke the interface, e.g. {tally.anomalies[0]}")
    if options.expect_only_200 and (others or not tally.requests):
        failures.append(f"expected only 200: {others or 'no request was sent'}")
    if options.expect_no_cut and (tally.requests["cut"] or tally.dropped_total):
        cut_total = tally.requests["cut"]
        failures.append(f"expected no cut: {cut_total} answers, {tally.dropped_total} kept-alive connections")
    if options.max_latency_s is not None and (slowest_s > options.max_latency_s or tally.requests["timeout"]):
        failures.append(f"latency: an answer took {slowest_s:.3f} s, {tally.requests['timeout']} timed out")
    return failures


def summarize(
    options: argparse.Namespace, run: str, load: Load, storm: Storm | None, result: Audit | None, failures: list[str]
) -> dict[str, Any]:
    """All that is known at the end, as it is printed and written."""
    tally = load.tally
    latencies_ms = sorted(latency * 1000 for latency in tally.latencies_s)
    summary: dict[str, Any] = {
        "run": run,
        "load": f"{options.clients} clients, {options.size}, batch {options.batch or 'none'}, seed {options.seed}",
        "duration_s": round(load.duration_s, 3),
        "requests": {"sent": tally.requests.total(), **_by_outcome(tally.requests)},
        "reports": {"sent": tally.reports.total(), **_by_outcome(tally.reports)},
        "connections_dropped": tally.dropped_total,
        "anomalies": tally.anomalies_total,
        "reports_per_s": round(tally.reports[200] / load.duration_s, 1) if load.duration_s else 0.0,
        "latency_ms": {
            name: round(latencies_ms[min(int(share * len(latencies_ms)), len(latencies_ms) - 1)], 2)
            for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
            if latencies_ms
        },
    }
    if storm:
        summary["kills"] = dict(sorted(storm.kills.items()))
    if result:
        summary["audit"] = {
            "files": result.files,
            "bytes": result.stored_bytes,
            "lines": result.lines,
            "of_this_run": result.of_this_run,
            "of_other_runs": result.of_other_runs,
            "unknown_stored": result.unknown_stored,
            "quarantined": result.quarantined,
            **{name: result.found[name] for name in FAILURES},
        }
    return summary | {"failures": failures}


def _by_outcome(counts: dict[int | str, int]) -> dict[str, int]:
    return {str(outcome): count for outcome, count in sorted(counts.items(), key=lambda item: str(item[0]))}


def print_table(summary: dict[str, Any]) -> None:
    for name, value in summary.items():
        if isinstance(value, dict):
            value = "  ".join(f"{key} {count}" for key, count in value.items()) or "none"
        if name != "failures":
            print(f"{name:20} {value}")
    for failure in summary["failures"]:
        print(f"FAILED {failure}")
    if not summary["failures"]:
        print("all is well")


if __name__ == "__main__":
    # TERM ends it as Ctrl-C does, by way of every `finally`: its server must not stay behind.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("loadtest: interrupted")
