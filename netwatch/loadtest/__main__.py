"""The load test without the rest of netwatch: `python -m netwatch.loadtest` is `netwatch loadtest`."""

from __future__ import annotations

import argparse
import sys

from netwatch.loadtest import command

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="loadtest")
    command.add_arguments(parser)
    args = parser.parse_args()
    sys.exit(command.run(args))
