"""`netwatch compact` makes few large objects of the many small ones that hosts have shipped, hour by hour.

It reads and writes the bucket only. It can be killed at any time, and started anywhere: one works at a time.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Final

from netwatch import bucket, log
from netwatch.commands import options
from netwatch.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obstore.store import S3Store

    from netwatch.compaction.compactor import Done
    from netwatch.compaction.lease import Lease
    from netwatch.compaction.plan import Object


_TIMEOUT_S: Final = 300.0
"""A large object on a slow line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `run` reads."""
    bucket.add_arguments(parser)
    parser.add_argument(
        "--since", type=options.since, default="7d", metavar="TIME", help="only newer days: %(default)s ago, or a time"
    )
    options.add_seconds(
        parser, "--settle-s", 7200.0, "leave an hour alone until so long after its end: what is late still comes"
    )
    options.add_seconds(
        parser,
        "--grace-s",
        60.0,
        "leave the small objects beside the large one so long, for queries that have listed them",
    )
    parser.add_argument(
        "--target-bytes", type=options.size, default="64MiB", metavar="SIZE", help="of a large object (%(default)s)"
    )
    options.add_seconds(parser, "--lease-s", 600.0, "when one was killed, the next may begin after so long")
    parser.add_argument("--dry-run", action="store_true", help="print what would become one, and do nothing")


def run(args: argparse.Namespace) -> int:
    """Compact once; 1 if something could not be read or written whole, or another compactor works."""
    log.configure("auto")
    target = bucket.chosen(args)
    store = target.open(timeout_s=_TIMEOUT_S)
    from obstore.exceptions import BaseError

    from netwatch.compaction import compactor
    from netwatch.compaction.lease import Held, Lease

    try:
        # before the lease: in a bucket that is not there it would be put, and some stores would make that
        days = compactor.days(store)
        if args.dry_run:
            group: list[Object] = []
            for group in _groups(args, store, days):
                size_bytes = sum(member.size_bytes for member in group)
                print(f"{len(group)} objects of {size_bytes} bytes from {group[0].path}")
            if not group:
                print(_nothing(args))
            return 0
        with Lease(store, args.lease_s) as lease:
            done = _compact(args, store, days, lease)
    except Held as held:
        print(f"Another compactor has the lease: {held}. If it was killed, the next one can begin then.")
        return 1
    except (BaseError, OSError) as error:
        advice = bucket.advice(error, target) if isinstance(error, BaseError) else ""
        raise StartError(f"{target} cannot be compacted: {bucket.reason(error)}.{advice}") from None
    if not done.sources and not done.wrong:
        print(_nothing(args))
        return 0
    if not done.sources:
        print(f"Nothing was compacted: {done.wrong} objects are wrong, and the log names them")
        return 1
    print(
        f"{done.sources} objects of {done.sources_bytes} bytes became {done.objects} of {done.objects_bytes}, without "
        f"{done.duplicates} duplicates; {done.wrong} are wrong"
    )
    return 1 if done.wrong else 0


def _compact(args: argparse.Namespace, store: S3Store, days: list[str], lease: Lease) -> Done:
    from netwatch.compaction.compactor import Compactor

    compactor = Compactor(store, lease, grace_s=args.grace_s)
    for group in _groups(args, store, days):
        compactor.compact(group)
        compactor.remove(is_waiting=False)
    compactor.remove(is_waiting=True)
    return compactor.done


def _nothing(args: argparse.Namespace) -> str:
    return (
        f"Nothing to compact: no hour since {_day(args.since)} and over for {args.settle_s:g} s has two objects to "
        "join (--since, --settle-s)."
    )


def _groups(args: argparse.Namespace, store: S3Store, days: list[str]) -> Iterator[list[Object]]:
    from netwatch.compaction import compactor, plan

    for day in days:
        if day >= f"date={_day(args.since)}":
            yield from plan.groups(compactor.objects(store, day), time.time(), args.settle_s, args.target_bytes)


def _day(time_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(time_s))
