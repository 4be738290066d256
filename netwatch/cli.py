"""The command line: each command's flags, and what its exit code says (0 done, 1 failed, 2 wrong usage or settings)."""

from __future__ import annotations

import argparse
import os
import sys

from netwatch import __version__, configuration, log, probe, reload
from netwatch.commands import cat, man, prune, query, status, tail, verify
from netwatch.compaction import command as compact
from netwatch.errors import StartError
from netwatch.loadtest import command as loadtest
from netwatch.ship import command as ship


def main(arguments: list[str] | None = None) -> int:
    """Run the command that ``arguments`` (by default the process's) ask for; the exit code."""
    _open_closed_streams()
    args = _parser().parse_args(arguments)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except StartError as error:
        log.fatal(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who reads what we print has seen enough
        _discard_output()
        return 1
    except OSError as error:
        if args.run is _serve:  # a fault of ours, and the traceback says where
            raise
        _discard_output()
        log.fatal(StartError(f"It failed: {error}."))
        return 1
    return code


def _open_closed_streams() -> None:
    """Lead the standard streams that are closed nowhere: else the next file, a segment, gets the number of stderr."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free: fd
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _discard_output() -> None:
    """What was printed and cannot be written must not be tried again at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="netwatch", description="A telemetry server that answers only when a report is safe on disk."
    )
    parser.add_argument("--version", action="version", version=f"netwatch {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        help="run the server",
        description="Run the server until it is told to stop.",
        allow_abbrev=False,  # an abbreviation that works today is ambiguous once there is another setting
    )
    configuration.add_arguments(serve)
    serve.set_defaults(run=_serve)

    check = commands.add_parser(
        "check-config",
        help="check the settings and print where each comes from",
        description="Print each setting that a server with these flags would have, and where it comes from.",
        allow_abbrev=False,
    )
    configuration.add_arguments(check)
    check.set_defaults(run=configuration.run)

    printed = commands.add_parser("cat", help="print the stored lines", description=cat.__doc__)
    cat.add_arguments(printed)
    printed.set_defaults(run=cat.run)

    newest = commands.add_parser("tail", help="print the newest lines, and follow", description=tail.__doc__)
    tail.add_arguments(newest)
    newest.set_defaults(run=tail.run)

    verified = commands.add_parser("verify", help="verify every sealed file", description=verify.__doc__)
    verify.add_arguments(verified)
    verified.set_defaults(run=verify.run)

    asked = commands.add_parser("query", help="answer a question about the stored reports", description=query.__doc__)
    query.add_arguments(asked)
    asked.set_defaults(run=query.run)

    pruned = commands.add_parser(
        "prune", help="delete what the retention settings do not keep", description=prune.__doc__
    )
    prune.add_arguments(pruned)
    pruned.set_defaults(run=prune.run)

    shipped = commands.add_parser("ship", help="put the sealed files into a bucket", description=ship.__doc__)
    ship.add_arguments(shipped)
    shipped.set_defaults(run=ship.run)

    compacted = commands.add_parser(
        "compact", help="make few large objects of a bucket's many small ones", description=compact.__doc__
    )
    compact.add_arguments(compacted)
    compacted.set_defaults(run=compact.run)

    again = commands.add_parser("reload", help="have the running server use its changed settings")
    reload.add_arguments(again)
    again.set_defaults(run=reload.run)

    measure = commands.add_parser("probe", help="measure URLs and post the result")
    probe.add_arguments(measure)
    measure.set_defaults(run=probe.run)

    shown = commands.add_parser("status", help="show how a running server is", description=status.__doc__)
    status.add_arguments(shown)
    shown.set_defaults(run=status.run)

    load = commands.add_parser("loadtest", help="load a server with reports, and audit what it stores")
    loadtest.add_arguments(load)
    load.set_defaults(run=loadtest.run)

    manual = commands.add_parser("man", help="print the manual page")
    man.add_arguments(manual)
    manual.set_defaults(run=man.run_with(_parser))
    return parser


def _serve(args: argparse.Namespace) -> int:
    chosen, _ = configuration.read(args)

    from netwatch import server

    return server.serve(chosen, lambda: configuration.read(args)[0])
