"""`netwatch prune` deletes the sealed files that the retention settings do not keep; `--dry-run` prints them only.

A running server does the same by itself, with the same code, once a minute.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from netwatch import settings
from netwatch.commands import options
from netwatch.errors import StartError

_SETTINGS = ("data_dir", "retention_days", "retention_bytes", "retention_only_shipped")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `run` reads."""
    parser.add_argument("--dry-run", action="store_true", help="print what would go, and delete nothing")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file with settings by their names")
    for name in _SETTINGS:
        field = settings.FIELDS[name]
        parser.add_argument(
            settings.flag(name), dest=name, default=argparse.SUPPRESS, metavar="X", help=field.metadata["help"]
        )


def run(args: argparse.Namespace) -> int:
    """Delete, or print what would be."""
    from netwatch.storage.retention import Sweep, delete

    config = args.config or (Path(os.environ["NETWATCH_CONFIG"]) if os.environ.get("NETWATCH_CONFIG") else None)
    flags = {name: value for name, value in vars(args).items() if name in _SETTINGS}
    chosen = settings.load(flags, os.environ, config)
    if chosen.retention_days is None and chosen.retention_bytes is None:
        raise StartError("Nothing is ever deleted: neither retention_days nor retention_bytes is set.", 2)
    files_total = bytes_total = 0
    with options.opened(chosen.data_dir) as files:
        sweep = Sweep(files, chosen.retention_days, chosen.retention_bytes, only_shipped=chosen.retention_only_shipped)
        for expired in sweep.expired(time.time()):
            if expired and (args.dry_run or delete(files, expired)):
                files_total += 1
                bytes_total += expired.bytes
                print(f"{expired.path}  {expired.bytes} bytes, because of its {expired.reason}")
    if sweep.unshipped:
        print(f"{sweep.unshipped} files stay because they are not shipped")
    print(f"{files_total} files of {bytes_total} bytes {'would go' if args.dry_run else 'are deleted'}")
    return 0
