"""The command line: each command's flags, and what its exit code says (0 done, 1 failed, 2 wrong usage or settings)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

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
    for name, help_, description, declare, run in _commands():
        command = commands.add_parser(
            name,
            help=help_,
            description=description,
            # an abbreviation that works today is ambiguous once there is another setting
            allow_abbrev=declare is not configuration.add_arguments,
        )
        declare(command)
        command.set_defaults(run=run)
    return parser


class _Command(NamedTuple):
    name: str
    help: str
    description: str | None
    declare: Callable[[argparse.ArgumentParser], None]
    """Adds its flags."""
    run: Callable[[argparse.Namespace], int]


def _commands() -> list[_Command]:
    settings = configuration.add_arguments
    shown = "Print each setting that a server with these flags would have, and where it comes from."
    small = "make few large objects of a bucket's many small ones"
    return [
        _Command("serve", "run the server", "Run the server until it is told to stop.", settings, _serve),
        _Command(
            "check-config", "check the settings and print where each comes from", shown, settings, configuration.run
        ),
        _Command("cat", "print the stored lines", cat.__doc__, cat.add_arguments, cat.run),
        _Command("tail", "print the newest lines, and follow", tail.__doc__, tail.add_arguments, tail.run),
        _Command("verify", "verify every sealed file", verify.__doc__, verify.add_arguments, verify.run),
        _Command("query", "answer a question about the stored reports", query.__doc__, query.add_arguments, query.run),
        _Command(
            "prune", "delete what the retention settings do not keep", prune.__doc__, prune.add_arguments, prune.run
        ),
        _Command("ship", "put the sealed files into a bucket", ship.__doc__, ship.add_arguments, ship.run),
        _Command("compact", small, compact.__doc__, compact.add_arguments, compact.run),
        _Command("reload", "have the running server use its changed settings", None, reload.add_arguments, reload.run),
        _Command("probe", "measure URLs and post the result", None, probe.add_arguments, probe.run),
        _Command("status", "show how a running server is", status.__doc__, status.add_arguments, status.run),
        _Command(
            "loadtest",
            "load a server with reports, and audit what it stores",
            None,
            loadtest.add_arguments,
            loadtest.run,
        ),
        _Command("man", "print the manual page", None, man.add_arguments, man.run_with(_parser)),
    ]


def _serve(args: argparse.Namespace) -> int:
    chosen, _ = configuration.read(args)

    from netwatch import server

    return server.serve(chosen, lambda: configuration.read(args)[0])
