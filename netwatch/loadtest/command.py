"""`netwatch loadtest`: its options, and which of them go together; what runs it is imported when it is asked for."""

from __future__ import annotations

import argparse
import math
import os
import resource
import socket
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import NoReturn

SIZES = ("small", "medium", "large")
DEADLY = ("worker", "writer", "gunicorn", "supervisor", "all", "stop")
TARGETS = (*DEADLY, "reload")
PLOTS = (".png", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `run` reads."""
    parser.usage = "%(prog)s [OPTION ...] URL\n       %(prog)s [OPTION ...] --serve [-- OPTION OF SERVE ...]"
    parser.description = "Posts reports from many clients, kills what it is told to, and audits what is stored."
    parser.epilog = "It exits with 0 when all is well, with 1 when something failed, and names it."
    parser.set_defaults(usage_error=parser.error)
    parser.add_argument("arguments", nargs="*", metavar="URL", help="a running server, e.g. http://127.0.0.1:8080")

    add = parser.add_argument_group("the load").add_argument
    add("--clients", type=_count, default=32, metavar="N", help="each with one request at a time (%(default)s)")
    add("--duration", type=_positive, default=10.0, metavar="S", help="seconds (%(default)s)")
    add(
        "--rate",
        type=_positive,
        default=0.0,
        metavar="R",
        help="requests a second of all clients together, evenly, however long the server takes; a latency then counts "
        "from the time the request was due (default: each client as fast as it can)",
    )
    add("--size", choices=SIZES, help="of the reports: 0.7, 6 or 30 KB (small)")
    add("--mix", type=_mix, metavar="SIZE=N,…", help="sizes by their weights instead: small=8,medium=3,large=1")
    add("--batch", type=_count, default=0, metavar="N", help="send NDJSON of N reports instead of single objects")
    add("--encoding", choices=("gzip", "zstd"), default="", help="compress the bodies")
    add("--bad", type=_share, default=0.0, metavar="SHARE", help="of reports that must be rejected, and not be stored")
    add(
        "--keys",
        action="store_true",
        help="an Idempotency-Key on each request; one whose answer is lost, or 429 or 503, is sent again under its "
        "key, also for 10 s after the end, and must be stored once",
    )
    add("--token", default="", help="send it as Authorization: Bearer")
    add(
        "--new-connections",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="of the clients that open a connection for each request; the others keep theirs",
    )
    add("--seed", type=int, default=1, metavar="N", help="of the reports and of the choice of kills (%(default)s)")

    add = parser.add_argument_group("the server").add_argument
    add("--serve", action="store_true", help="start one, and stop it at the end; what follows -- goes to it")
    add("--workers", type=_count, metavar="N", help="its workers")
    add("--data-dir", type=Path, metavar="DIR", help="its data (default: a temporary directory, kept on failure)")
    add("--server-log", type=Path, metavar="FILE", help="append its stderr to this file")
    add(
        "--kill",
        choices=(*TARGETS, "mix"),
        help="SIGKILL to this of its processes, again and again (stop: TERM to the supervisor; reload: HUP to it; mix: "
        "any but reload); what systemd would start again is",
    )
    add("--every", type=_positive, default=2.0, metavar="S", help="seconds between kills (%(default)s)")
    add("--kills", type=_count, metavar="N", help="end the load after so many kills, at the latest after --duration")

    add = parser.add_argument_group("the judgement").add_argument
    add(
        "--audit",
        type=Path,
        metavar="DATA_DIR",
        help="look at the end whether this directory holds exactly what was answered 200 (with --serve always its own)",
    )
    add("--expect-only-200", action="store_true", help="fail if a request has another outcome in the end")
    add("--expect-no-cut", action="store_true", help="fail if an answer is cut, or never comes where others did")
    add("--max-latency-s", type=_positive, metavar="S", help="fail if an answer took longer")
    add("--json", type=Path, metavar="FILE", help="write the summary, a histogram and each second's numbers as JSON")
    add("--plot", type=_plot, metavar="FILE", help="draw latencies and throughput (.png, .svg; needs netwatch[plot])")
    add(
        "--log",
        type=Path,
        metavar="FILE",
        help="write a line of JSON for each request sent: the id of its first report and the number of reports (their "
        "last figures count up), the outcome (a status; closed or cut: the connection ended before or in the answer; "
        "timeout; refused: not sent; garbage), and how many answers the connection had carried before",
    )


def run(args: argparse.Namespace) -> int:
    """Check that the options go together, and run the test; the exit code."""
    if args.serve:
        if args.audit:
            _refuse(args, "--serve audits the server's own directory: choose it with --data-dir")
        if args.arguments and not args.arguments[0].startswith("-"):
            _refuse(args, f"give either the address of a running server or --serve, not both: {args.arguments[0]}")
    else:
        if len(args.arguments) != 1:
            _refuse(args, "give the address of a running server, or --serve")
        if args.kill or args.workers or args.data_dir or args.server_log:
            _refuse(args, "--kill, --workers, --data-dir and --server-log need --serve")
    ours = [word for word in args.arguments if word.partition("=")[0] in ("--bind", "--data-dir")]
    if ours:
        _refuse(args, f"{ours[0]} after -- is the load test's to choose: it has --data-dir, and takes a free port")
    if args.mix and args.size:
        _refuse(args, "give --size or --mix, not both")
    args.mix = args.mix or {args.size or "small": 1}
    if args.kills and not args.kill:
        _refuse(args, "--kills needs --kill")
    if args.audit and not args.audit.is_dir():
        _refuse(args, f"there is no data directory {args.audit}")
    if (args.audit or args.serve) and which("zstd") is None:
        _refuse(args, "the audit needs the zstd tool: apt install zstd")
    for file in (args.json, args.plot, args.log, args.server_log):
        if file and (file.is_dir() or not os.access(file.parent, os.W_OK)):
            _refuse(args, f"{file} cannot be written")
    if args.plot and find_spec("matplotlib") is None:
        _refuse(args, "--plot needs matplotlib: pip install 'netwatch[plot]'")

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and args.clients + 100 > hard:
        _refuse(args, f"--clients {args.clients} needs more than the {hard} open files that are allowed: ulimit -Hn")

    from netwatch.loadtest.requests import address
    from netwatch.loadtest.trial import run_here

    try:
        target = address("http://127.0.0.1" if args.serve else args.arguments[0])
        socket.getaddrinfo(target.host, target.port)
    except ValueError as error:
        _refuse(args, str(error))
    except OSError as error:
        _refuse(args, f"no address is known of {target.host}: {error.strerror}")
    return run_here(args)


def _refuse(args: argparse.Namespace, sentence: str) -> NoReturn:
    args.usage_error(sentence)
    raise AssertionError("argparse's error exits")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a number from 1 on: {text}")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"not a positive number: {text}")
    return number


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"not a share from 0 to 1: {text}")
    return share


def _mix(text: str) -> dict[str, int]:
    mix: dict[str, int] = {}
    for part in text.split(","):
        size, _, weight = part.strip().partition("=")
        if size not in SIZES or size in mix or not weight.isdecimal() or not 1 <= int(weight) <= 1000:
            raise argparse.ArgumentTypeError(f"not sizes ({', '.join(SIZES)}) with weights from 1 to 1000: {text}")
        mix[size] = int(weight)
    return mix


def _plot(text: str) -> Path:
    if not text.endswith(PLOTS):
        raise argparse.ArgumentTypeError(f"not a file that ends in {' or '.join(PLOTS)}: {text}")
    return Path(text)
