"""`netwatch query` answers questions in SQL about the sealed files of a data directory, or of a bucket."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netwatch import bucket
from netwatch.commands import options
from netwatch.errors import StartError

if TYPE_CHECKING:
    from netwatch.query.engine import Engine
    from netwatch.query.sources import Span

_MIB: Final = 1024 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `run` reads."""
    parser.add_argument(
        "question",
        nargs="?",
        metavar="QUESTION|SQL",
        help="a question's name, or a statement about the views reports, samples and browser_reports; without one the "
        "questions are listed",
    )
    options.add_data_dir(parser)
    bucket.add_arguments(parser)
    parser.set_defaults(data_dir=None)  # given, it wins over the variable that names a bucket
    parser.add_argument(
        "--since",
        type=options.since,
        metavar="TIME",
        help="only what was received since: 90s, 10m, 2h, 7d ago, or a time such as 2026-11-22T10:24:10Z (UTC); by "
        "default what the question says, and for a statement everything",
    )
    parser.add_argument("--until", type=options.since, metavar="TIME", help="only what was received before")
    parser.add_argument(
        "--format",
        choices=["table", "json", "csv", "parquet"],
        help="how the answer is written: table on a terminal, else json, an object a line",
    )
    parser.add_argument("--plot", type=_plot, metavar="FILE", help="draw the answer as a time series (.png, .svg)")
    parser.add_argument(
        "--memory-limit",
        default="1GiB",
        metavar="SIZE",
        help="the memory to answer with; what does not fit goes to $TMPDIR meanwhile (%(default)s)",
    )
    parser.add_argument(
        "--max-line-bytes",
        type=_line_bytes,
        default=2 * _MIB,
        metavar="BYTES",
        help="the longest line: the server's max_report_bytes, where that was raised (%(default)s)",
    )
    parser.add_argument("--sql", action="store_true", help="print the question's statement, to make your own of it")


def run(args: argparse.Namespace) -> int:
    """Answer; bad SQL is a wrong usage, no files a failure."""
    from netwatch.query.engine import Engine
    from netwatch.query.questions import question, questions
    from netwatch.query.sources import Span

    if args.question is None:
        width = max(map(len, questions()))
        for listed in questions().values():
            print(f"{listed.name:<{width}}  {listed.title} (--since {listed.since})")
        return 0
    asked = question(args.question)
    if args.sql:
        print((asked.sql if asked else args.question).rstrip("\n"))
        return 0
    if args.format == "parquet" and sys.stdout.isatty():
        raise StartError("Parquet is not for terminals: write it to a file (> answer.parquet).", 2)
    if args.plot and args.format:
        raise StartError("Give --plot or --format: a plot is all that is written.", 2)
    if args.plot and find_spec("matplotlib") is None:
        raise StartError("--plot needs matplotlib: pip install 'netwatch[plot]'.", 2)
    since_s = args.since if args.since is not None or asked is None else _before(args.until, asked.since)
    span = Span(since_s, args.until)
    if span.since_s is not None and span.until_s is not None and span.since_s >= span.until_s:
        raise StartError("--since must be before --until.", 2)
    with contextlib.closing(Engine(args.memory_limit)) as engine, _views(engine, args, span):
        statement = asked.sql if asked else args.question
        engine.check(statement)
        engine.find_repeated()
        _write(engine, statement, args)
    return 0


def _asks_bucket(args: argparse.Namespace) -> bool:
    """Whether it is the bucket that is asked: flags win over variables, and of these the bucket over the directory."""
    if args.data_dir and args.bucket is not None:
        raise StartError("Give --data-dir or --bucket, not both: a query reads one of them.", 2)
    return not args.data_dir and (args.bucket is not None or bucket.is_named(args))


@contextlib.contextmanager
def _views(engine: Engine, args: argparse.Namespace, span: Span) -> Iterator[None]:
    """The views over what the flags name, as long as it is open."""
    from netwatch.query import sources

    if _asks_bucket(args):
        chosen = bucket.chosen(args)
        store = chosen.open()
        try:
            from netwatch.query.bucket_files import PROTOCOL, BucketFiles
        except ImportError:
            raise StartError(
                "To ask a bucket, two libraries are needed: pip install 'netwatch[query,s3]'.", 2
            ) from None
        try:
            sizes = sources.bucket_keys(store, span)
        except Exception as error:  # obstore's have no common base
            raise StartError(f"Cannot list {chosen}: {bucket.reason(error)}.{bucket.advice(error, chosen)}") from None
        _demand(sizes, str(chosen), span)
        engine.add_file_system(BucketFiles(store, sizes))
        engine.make_views([f"{PROTOCOL}://{key}" for key in sizes], span, args.max_line_bytes)
        yield
        return
    data_dir = args.data_dir or options.usual_data_dir()
    with options.opened(data_dir) as files:
        paths = sources.local_paths(files, span)
        _demand(paths, str(data_dir), span)
        # Through the directory that is open: its own name may have characters that mean something to DuckDB.
        engine.make_views([files.descriptor_path(path) for path in paths], span, args.max_line_bytes)
        yield


def _demand(found: object, where: str, span: Span) -> None:
    if not found:
        when = " in that time (--since, --until)" if (span.since_s, span.until_s) != (None, None) else ""
        raise StartError(f"There is no sealed file in {where}{when}; an open segment is read once it is sealed.")


def _write(engine: Engine, statement: str, args: argparse.Namespace) -> None:
    from netwatch.query import output

    if args.format == "parquet":
        with tempfile.NamedTemporaryFile(prefix="netwatch-query-", suffix=".parquet") as file:
            engine.write_parquet(statement, file.name)
            with open(file.name, "rb") as written:  # DuckDB may have put another in its place
                shutil.copyfileobj(written, sys.stdout.buffer)
        return
    with engine.answer(statement) as answer:
        if args.plot:
            from netwatch.query.plot import plot

            plot(answer.columns, answer.rows(), args.question.partition("\n")[0][:100], args.plot)
            return
        form = args.format or ("table" if sys.stdout.isatty() else "json")
        write = {"table": output.write_table, "json": output.write_json, "csv": output.write_csv}[form]
        write(answer, sys.stdout)
        sys.stdout.flush()


def _before(until_s: float | None, ago: str) -> float:
    """So long before ``until_s``, or before now."""
    import time

    now_s = time.time()
    return max((now_s if until_s is None else until_s) - (now_s - options.since(ago)), 0.0)


def _line_bytes(text: str) -> int:
    if not text.isdecimal() or not _MIB <= int(text) <= 1024 * _MIB:
        raise argparse.ArgumentTypeError(f"give a number of bytes from {_MIB} to {1024 * _MIB}: {text!r}")
    return int(text)


def _plot(text: str) -> Path:
    if Path(text).suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"give a name that ends in .png or .svg: {text!r}")
    return Path(text)
