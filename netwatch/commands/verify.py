"""`netwatch verify` reads every sealed file to its end and says of each that is not as it was written what is wrong."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from netwatch.commands import options
from netwatch.errors import StartError

if TYPE_CHECKING:
    from netwatch.storage.files import Files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `run` reads."""
    options.add_data_dir(parser)
    parser.add_argument(
        "--since",
        type=options.since,
        metavar="TIME",
        help="only files that may hold what was received since: 2d ago, or a time such as 2026-11-22T10:24:10Z",
    )
    parser.add_argument(
        "--salvage", type=Path, metavar="DIR", help="write the good lines of broken files below DIR, as sealed files"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print only what is wrong")


def run(args: argparse.Namespace) -> int:
    """Verify; 1 if something is wrong with any file."""
    from netwatch.commands.progress import Progress
    from netwatch.storage import verification
    from netwatch.storage.reader import Since

    since = None if args.since is None else Since(args.since)
    kinds = Counter[verification.Kind]()
    lines_total = 0
    with options.opened(args.data_dir) as files, _directory(args.salvage, args.data_dir) as target:
        progress = Progress(sum(size for _, size in verification.stored_files(files, since)))
        for path, size in verification.stored_files(files, since):
            progress.begin(path)
            finding = verification.verify(files, path, progress.at)
            progress.end(size)
            if finding is None:
                continue
            kinds[finding.kind] += 1
            lines_total += finding.lines
            if finding.kind is not verification.Kind.GOOD:
                progress.clear()
                name = path if path.isprintable() else ascii(path)[1:-1]  # who put it there may have chosen any
                print(f"{name}: {finding.kind.value}: {finding.detail}; {finding.lines} good lines")
                if target and finding.lines:
                    print(f"  {_salvaged(files, path, target)}", flush=True)
        progress.clear()
    wrong = [f"{count} {kind.value}" for kind, count in kinds.items() if kind is not verification.Kind.GOOD]
    if not args.quiet:
        print(
            f"{kinds.total()} files, {lines_total} lines: {', '.join(wrong) or 'all'}{', the rest' * bool(wrong)} good"
        )
    return 1 if wrong else 0


def _salvaged(files: Files, path: str, target: Files) -> str:
    from netwatch.storage import verification

    try:
        salvaged = verification.salvage(files, path, target)
    except FileExistsError as error:
        return f"not salvaged: {error}"
    except OSError as error:
        raise StartError(f"Cannot write what is salvaged of {path}: {error.strerror}.") from None
    return f"salvaged as {salvaged}"


@contextlib.contextmanager
def _directory(path: Path | None, data_dir: Path) -> Iterator[Files | None]:
    """Where to write what is salvaged, open; made if it is not there."""
    from netwatch.storage.files import Files, open_data_directory

    if path is None:
        yield None
        return
    if path.resolve().is_relative_to(data_dir.resolve()):
        raise StartError("Salvage to another directory, outside of this one: what stands in it is never changed.", 2)
    try:
        root = open_data_directory(path)
    except OSError as error:
        raise StartError(f"Cannot salvage to {path}: {error.strerror}.") from None
    try:
        yield Files(root)
    finally:
        os.close(root)
