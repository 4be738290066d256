"""The flags of every setting, what they, the environment and the file come to, and ``netwatch check-config``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from netwatch import settings
from netwatch.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--config`` and a flag for each setting."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file with settings by their names")
    for name, field in settings.FIELDS.items():
        help_ = field.metadata["help"].replace("%", "%%")
        default = "" if field.metadata["default_text"] is None else f" (default: {field.metadata['default_text']})"
        parser.add_argument(
            settings.flag(name), dest=name, default=argparse.SUPPRESS, metavar="X", help=help_ + default
        )


def read(args: argparse.Namespace) -> tuple[Settings, dict[str, str]]:
    """The settings as they are now, and the origin of each. Raises :class:`~netwatch.errors.StartError`."""
    flags = {name: value for name, value in vars(args).items() if name in settings.FIELDS}
    config = args.config or (Path(os.environ["NETWATCH_CONFIG"]) if os.environ.get("NETWATCH_CONFIG") else None)
    return settings.trace(flags, os.environ, config)


def run(args: argparse.Namespace) -> int:
    """``netwatch check-config``: print each setting with its origin; the exit code."""
    chosen, origins = read(args)
    rows = [(name, settings.text(name, getattr(chosen, name)), origin) for name, origin in origins.items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        print(f"{name:{widths[0]}}  {value:{min(widths[1], 40)}}  {origin}")
    return 0
