"""`netwatch tail` prints the newest stored lines, and with `-f` each that comes, within a second of its answer.

It follows what the server does with its files, as `tail -F` does: seals, recoveries, restarts, a new day.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Final

from netwatch.commands import options

_DEFAULT_LINES: Final = 10
_LOOK_EVERY_S: Final = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `run` reads."""
    parser.add_argument("-f", "--follow", action="store_true", help="go on and print each line as it comes")
    parser.add_argument(
        "-n",
        "--lines",
        type=_count,
        metavar="N",
        help=f"print the last N lines that are wanted ({_DEFAULT_LINES}; with --since all of them)",
    )
    options.add_data_dir(parser)
    options.add_wanted(parser)


def run(args: argparse.Namespace) -> int:
    """Print what is wanted, and follow; 1 if a file could not be read to its end."""
    from netwatch.commands.printing import printer, wait_for_reader
    from netwatch.commands.wanted import Wanted
    from netwatch.storage.reader import Reader

    broken: list[str] = []

    def warn(text: str) -> None:
        broken.append(text)
        print(f"netwatch tail: {text}", file=sys.stderr)

    wanted, print_lines = Wanted(args), printer(args.format)
    with (
        options.opened(args.data_dir) as files,
        contextlib.closing(Reader(files, warn, is_following=args.follow)) as reader,
    ):
        if args.lines is None and args.since is not None:
            is_read = print_lines(filter(wanted, reader.stored(wanted.since)))
        else:
            count = _DEFAULT_LINES if args.lines is None else args.lines
            is_read = print_lines(reader.newest(count, wanted, wanted.since))
        while args.follow and is_read and wait_for_reader(_LOOK_EVERY_S):
            is_read = print_lines(filter(wanted, reader.new()))
    return 1 if broken else 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"give a number of lines: {text!r}")
    return int(text)
