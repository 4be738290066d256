"""`netwatch cat` prints the stored lines, oldest file first, those of open segments included."""

from __future__ import annotations

import argparse
import contextlib
import sys

from netwatch.commands import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `run` reads."""
    options.add_data_dir(parser)
    options.add_wanted(parser)


def run(args: argparse.Namespace) -> int:
    """Print what is wanted; 1 if a file could not be read to its end."""
    from netwatch.commands.printing import printer
    from netwatch.commands.wanted import Wanted
    from netwatch.storage.reader import Reader

    broken: list[str] = []

    def warn(text: str) -> None:
        broken.append(text)
        print(f"netwatch cat: {text}", file=sys.stderr)

    wanted = Wanted(args)
    with options.opened(args.data_dir) as files, contextlib.closing(Reader(files, warn)) as reader:
        printer(args.format)(filter(wanted, reader.stored(wanted.since)))
    return 1 if broken else 0
