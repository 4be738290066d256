"""The bench's command line: the axes, the rounds, and the report on standard output; its progress goes to stderr."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from netwatch.bench.bodies import SIZES
from netwatch.bench.loads import LoadFailed
from netwatch.bench.machine import about
from netwatch.bench.rounds import Bench, Cell, Lengths, Round, cells, say
from netwatch.bench.servers import NETWATCH_COMMAND, PEER_COMMAND, Contestant, Void
from netwatch.bench.stay import Minute, stay, stay_table
from netwatch.bench.table import in_order, medians, others_cpu_share, table

T = TypeVar("T")

FULL: dict[str, list[Any]] = {
    "sizes": list(SIZES),
    "durability": ["synced", "written"],
    "workers": [1, 2, 3, 4],
    "connections": [1, 8, 32, 128, 512, 1024],
}
DEFAULT: dict[str, list[Any]] = {
    "sizes": list(SIZES),
    "durability": ["synced"],
    "workers": [2],
    "connections": [32],
}
ALONE_CPU_SHARE = 0.1
"""Of one processor, that other programs may use before the report says so."""
OPEN_LOOP_CONNECTIONS = 1000
"""Its client waits in select(), which takes no descriptor from 1024 on."""
_AROUND_A_ROUND_S = 3.0  # starting, checking, stopping


def listed(kind: Callable[[str], T], allowed: Sequence[T] | None = None) -> Callable[[str], list[T]]:
    """A type for argparse: values with commas between."""

    def parse(text: str) -> list[T]:
        values = [kind(word.strip()) for word in text.split(",")]
        for value in values:
            if allowed and value not in allowed:
                raise argparse.ArgumentTypeError(f"{value} is none of {', '.join(map(str, allowed))}")
            if isinstance(value, int) and value < 1:
                raise argparse.ArgumentTypeError(f"{value} is less than 1")
        return values

    return parse


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[Contestant]]:
    """The options, and who takes part, netwatch first."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures netwatch, and a peer beside it, in alternating rounds. The report is reStructuredText.",
        epilog="A command is a template: {address}, {dir}, {workers}, {durability}, and {path}, the peer's, or "
        "{python}. A peer that takes no NDJSON is sent the same reports singly. Options that take several values take "
        "them with commas between; every combination is measured.",
    )
    add = parser.add_argument
    add("--peer", type=Path, metavar="PATH", help="the peer's program")
    add("--peer-command", default=PEER_COMMAND, metavar="X", help="how it is started (%(default)s)")
    add("--peer-ndjson", action="store_true", help="the peer takes NDJSON too")
    add("--netwatch-command", default=NETWATCH_COMMAND, metavar="X", help="how netwatch is started (%(default)s)")
    add("--sizes", type=listed(str, list(SIZES)), metavar="…", help=f"of {', '.join(SIZES)} (all)")
    add("--durability", type=listed(str, FULL["durability"]), metavar="…", help="synced, written (synced)")
    add("--workers", type=listed(int), metavar="…", help="of netwatch (2)")
    add("--connections", type=listed(int), metavar="…", help="of the load (32)")
    full = "; ".join(f"{name} {','.join(map(str, values))}" for name, values in FULL.items() if name != "sizes")
    add("--full", action="store_true", help=f"the whole matrix, where no list is given: {full}")
    add("--rounds", type=int, default=5, help="of each server for each combination (%(default)s)")
    add("--seconds", type=positive, default=30.0, help="of load in a round, whole ones (%(default)s)")
    add("--warmup", type=float, default=3.0, metavar="S", help="seconds of load before each round (%(default)s)")
    add("--open-loop", action=argparse.BooleanOptionalAction, default=None,
        help="also medium reports at half of the slower one's peak, latency counted from when each request was due "
        "(done when medium is among the sizes, in one combination)")  # fmt: skip
    add("--rate", type=positive, metavar="R", help="only this: requests due at so many a second, instead of wrk")
    add(
        "--stay", type=int, metavar="MINUTES", help="only this: netwatch for so long, with the first value of each list"
    )
    add("--threads", type=int, default=1, help="of wrk (%(default)s)")
    add("--dir", type=Path, default=Path(), metavar="DIR", help="on the disk that is measured (the current directory)")
    add("--json", type=Path, metavar="FILE", help="write every round and the medians as JSON")
    add("--plot", type=Path, metavar="FILE.png|svg", help="draw the medians; needs the extra netwatch[plot]")
    options = parser.parse_args(arguments)
    for name, values in (FULL if options.full else DEFAULT).items():
        if getattr(options, name) is None:
            setattr(options, name, values)
    if min(options.rounds, options.threads, options.stay or 1) < 1:
        parser.error("--rounds, --threads and --stay are at least 1")
    if options.open_loop is None:
        others = (options.durability, options.workers, options.connections)
        options.open_loop = (
            "medium" in options.sizes
            and all(len(values) == 1 for values in others)
            and max(options.connections) <= OPEN_LOOP_CONNECTIONS
        )
    elif options.open_loop and "medium" not in options.sizes:
        parser.error("--open-loop needs medium among the --sizes, whose peak it halves; or give a --rate")
    if (options.rate or options.open_loop) and max(options.connections) > OPEN_LOOP_CONNECTIONS:
        parser.error(f"an open loop takes at most {OPEN_LOOP_CONNECTIONS} --connections")
    contestants = [Contestant("netwatch", options.netwatch_command, takes_ndjson=True)]
    if options.peer:
        if not os.access(options.peer, os.X_OK) or options.peer.is_dir():
            parser.error(f"--peer {options.peer} is no program: build it first, and give its path")
        peer = str(options.peer.absolute())
        contestants.append(Contestant("peer", options.peer_command, options.peer_ndjson, peer))
    for contestant in contestants:
        try:
            contestant.words(address="", dir="", workers=1, durability="")
        except (KeyError, ValueError, IndexError) as error:
            parser.error(f"the command of {contestant.name} is no template of those names ({error!r})")
    if not shutil.which("wrk"):
        parser.error("wrk is not installed; on Debian: apt-get install wrk")
    for file in (options.json, options.plot):
        if file and (file.is_dir() or not os.access(file.parent, os.W_OK)):
            parser.error(f"{file} cannot be written")
    if not options.dir.is_dir():
        parser.error(f"--dir {options.dir} is no directory")
    if options.plot:
        if not importlib.util.find_spec("matplotlib"):  # said before hours have been spent
            parser.error("--plot needs matplotlib: pip install netwatch[plot]")
        if options.plot.suffix not in (".png", ".svg"):
            parser.error("--plot takes a name that ends in .png or .svg")
    return options, contestants


def main(arguments: Sequence[str]) -> int:
    options, contestants = parse(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # of wrk and the servers: a connection is a descriptor
    wanted = max(options.connections) + 200
    if hard != resource.RLIM_INFINITY and hard < wanted:
        say(f"only {hard} open files are allowed, and {wanted} needed: see ulimit -n")
        return 2
    facts = about(options.dir, str(options.peer or "")) | {"command": shlex.join(["scripts/bench", *arguments])}
    rounds: list[Round] = []
    minutes: list[Minute] = []
    failure = ""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.dir.absolute()) as directory:
        try:
            if options.stay:
                for minute in stay(
                    contestants[0], first_cell(options), options.stay, Path(directory), options.threads, say
                ):
                    minutes.append(minute)  # noqa: PERF402 # one by one: what there is is reported after Ctrl-C
            else:
                lengths = Lengths(options.seconds, options.warmup)
                bench = Bench(Path(directory), lengths, options.threads, say)
                measure(options, bench, contestants, rounds)
        except (Void, LoadFailed) as error:
            failure = str(error)
        except KeyboardInterrupt:
            failure = "interrupted"
    if rounds or minutes:
        report(options, facts, rounds, minutes)
    if failure:
        say(f"scripts/bench: {failure}")
    return 1 if failure or lost(rounds, options.rounds) else 0


def first_cell(options: argparse.Namespace) -> Cell:
    return cells(options.sizes, options.durability, options.workers, options.connections)[0]


def measure(options: argparse.Namespace, bench: Bench, contestants: list[Contestant], rounds: list[Round]) -> None:
    """Add every round to `rounds` as it is done, so that what there is can be reported after Ctrl-C."""
    wanted = cells(options.sizes, options.durability, options.workers, options.connections)
    if options.rate:
        wanted = [replace(cell, rate_per_s=options.rate) for cell in wanted]
    each_s = options.seconds + options.warmup + _AROUND_A_ROUND_S
    total = len(wanted) * options.rounds * len(contestants)
    say(f"{len(wanted)} combinations, {total} rounds: about {total * each_s / 60:.0f} minutes")
    for cell in wanted:
        for measured in bench.alternate(contestants, cell, options.rounds):
            rounds.append(measured)  # noqa: PERF402 # one by one, as said
    if options.open_loop and not options.rate:
        for cell in wanted:
            peaks = [medians(rounds, contestant.name, cell).get("requests_per_s", 0.0) for contestant in contestants]
            if cell.size == "medium" and (rate := round(min(peaks) / 2)):
                for measured in bench.alternate(contestants, replace(cell, rate_per_s=rate), options.rounds):
                    rounds.append(measured)  # noqa: PERF402


def lost(rounds: Sequence[Round], wanted: int) -> bool:
    """Whether some server lacks a valid round of some cell."""
    servers, found = in_order(rounds)
    valid = [(measured.server, measured.cell) for measured in rounds if not measured.void]
    return any(valid.count((server, cell)) < wanted for server in servers for cell in found)


def report(
    options: argparse.Namespace, facts: dict[str, str], rounds: Sequence[Round], minutes: Sequence[Minute]
) -> None:
    print("\n".join(f":{name}: {value}" for name, value in facts.items()), end="\n\n")
    if (share := others_cpu_share(rounds)) > ALONE_CPU_SHARE:
        print(f"**The machine was not alone**: other programs used {share:.2f} processors meanwhile.\n")
    print(stay_table(first_cell(options), minutes) if minutes else table(rounds))
    void = [measured for measured in rounds if measured.void]
    if void:
        print(f"{len(void)} rounds were void: {'; '.join(dict.fromkeys(measured.void for measured in void))}\n")
    if options.json:
        servers, found = in_order(rounds)
        result = {
            "about": facts,
            "rounds": [asdict(measured) for measured in rounds],
            "medians": [
                {"server": server, "cell": asdict(cell), "figures": medians(rounds, server, cell)}
                for cell in found
                for server in servers
            ],
            "minutes": [minute._asdict() for minute in minutes],
        }
        options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if options.plot:
        from netwatch.bench.plots import plot

        plot(options.plot, rounds, minutes, f"netwatch {facts['netwatch']}, {facts['machine']}, {facts['date']}")


def interrupt(*_: object) -> None:
    """TERM ends it as Ctrl-C does, by way of every `finally`: what it started must not stay behind."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(main(sys.argv[1:]))
