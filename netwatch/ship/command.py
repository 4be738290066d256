"""`netwatch ship` puts each sealed file into a bucket, reads it back, and marks it as shipped.

It needs nothing of the server but its files, and can be killed and started again at any time.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from netwatch import bucket, log, settings
from netwatch.commands import options
from netwatch.errors import StartError

if TYPE_CHECKING:
    from netwatch.storage.files import Files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `run` reads."""
    options.add_data_dir(parser)
    bucket.add_arguments(parser)
    parser.add_argument("--once", action="store_true", help="ship what waits, and end")
    parser.add_argument(
        "--again",
        action="store_true",
        help="with --once: compare every sealed file with the bucket, whatever its mark says, and ship what is missing",
    )
    parser.add_argument("--parallel", type=_count, default=4, metavar="N", help="objects at a time (%(default)s)")
    parser.add_argument(
        "--bytes-per-s",
        type=options.size,
        default=0,
        metavar="SIZE",
        help="on average at most, such as 2MiB; by default all",
    )
    options.add_seconds(parser, "--timeout-s", 30.0, "for one request to the store")
    parser.add_argument(
        "--metrics-bind", type=_address, metavar="HOST:PORT", help="serve /metrics there; by default nowhere"
    )


def run(args: argparse.Namespace) -> int:
    """Ship; with ``--once`` 1 if something still waits."""
    import asyncio

    if args.again and not args.once:
        raise StartError("--again compares everything once: give --once too.", 2)
    log.configure("auto")
    with options.opened(args.data_dir) as files:
        return asyncio.run(_ship(args, files))


async def _ship(args: argparse.Namespace, files: Files) -> int:
    import asyncio
    import signal

    from netwatch.commands.progress import Progress
    from netwatch.metrics import text
    from netwatch.metrics.board import Meter
    from netwatch.ship import metrics, scraped
    from netwatch.ship.backlog import Backlog
    from netwatch.ship.pace import Backoff, Bandwidth
    from netwatch.ship.shipper import Shipper

    target = bucket.chosen(args)
    meter, backlog = Meter(), Backlog(files, str(target), is_again=args.again)
    _demand_marks(args, files)
    backlog.look()
    progress = Progress(sum(backlog.waiting.values()))

    def on_end(size_bytes: int) -> None:
        progress.end(size_bytes)
        progress.at(0)

    shipper = Shipper(
        files,
        backlog,
        target.open(timeout_s=args.timeout_s, retries=0),
        str(target),
        parallel=args.parallel,
        bandwidth=Bandwidth(args.bytes_per_s),
        backoff=Backoff(),
        meter=meter,
        is_again=args.again,
        before_log=progress.clear,
        on_end=on_end if args.once else lambda _bytes: None,
    )

    def page() -> bytes:
        shipper.take_stock()
        return text.render_part(metrics.SHIPPER, meter.cells)

    if args.metrics_bind:
        host, port = args.metrics_bind
        try:
            await scraped.serve(host, port, page)
        except OSError as error:
            raise StartError(f"Cannot serve metrics at --metrics-bind: {error.strerror}.") from None
    waiting = backlog.waiting
    log.info("ship_started", bucket=str(target), waiting_segments=len(waiting), waiting_bytes=sum(waiting.values()))
    work = asyncio.create_task(shipper.run(is_once=args.once))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        pass
    finally:
        progress.clear()
        log.info("ship_stopped", waiting_segments=len(waiting), waiting_bytes=sum(waiting.values()))
    return 1 if args.once and waiting else 0


def _demand_marks(args: argparse.Namespace, files: Files) -> None:
    from netwatch.storage import shipped

    try:
        shipped.prove(files)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StartError(
            f"Cannot mark files in {args.data_dir} as shipped: {error.strerror}. Run this as the files' owner, on a "
            "file system with extended attributes."
        ) from None


def _count(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 64):
        raise argparse.ArgumentTypeError(f"give a number from 1 to 64: {text!r}")
    return int(text)


def _address(text: str) -> tuple[str, int]:
    try:
        return settings.split_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}: {text!r}") from None
