"""DuckDB, held to a memory limit, with the views over the files that a query reads."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from netwatch.errors import StartError
from netwatch.query import questions
from netwatch.query.sources import Span

if TYPE_CHECKING:
    import duckdb

_WRONG_STATEMENT: Final = ("ParserException", "BinderException", "CatalogException", "SyntaxException")

_LINE_TOO_LONG: Final = ("Maximum line size", "CSV Error", "Parallel CSV Reader")


class Engine:
    """A database in memory; what does not fit is spilled to a directory that goes with it. :meth:`close` it.

    ``memory_limit`` is a size as DuckDB takes it, such as ``512MiB``. Raises :class:`StartError`.
    """

    def __init__(self, memory_limit: str) -> None:
        try:
            import duckdb
        except ImportError:
            raise StartError("A query needs another library: pip install 'netwatch[query]'.", 2) from None
        self._duckdb = duckdb
        self._memory_limit = memory_limit
        self._who_says = "netwatch verify"
        """Which command names the file that is broken."""
        self._spilled = tempfile.TemporaryDirectory(prefix="netwatch-query-", ignore_cleanup_errors=True)
        # Without the network it would try, wait, and say so.
        self._connection = duckdb.connect(config={"autoinstall_known_extensions": "false"})
        self._connection.execute("SET temp_directory = $1", [self._spilled.name])
        self._connection.execute("SET preserve_insertion_order = false")  # what has an order says ORDER BY
        try:
            self._connection.execute("SET memory_limit = $1", [memory_limit])
        except duckdb.Error:
            self.close()
            raise StartError(f"--memory-limit cannot be {memory_limit!r}: give a size such as 512MiB.", 2) from None

    def close(self) -> None:
        """Let go of all of it."""
        self._connection.close()
        self._spilled.cleanup()

    def add_file_system(self, file_system: Any) -> None:
        """Have paths that begin with the protocol of this fsspec file system, a bucket's, read through it."""
        self._who_says = "netwatch compact, or netwatch ship --once --again at the host that it is of,"
        self._connection.register_filesystem(file_system)

    def make_views(self, paths: Sequence[str], span: Span, max_line_bytes: int) -> None:
        """Make the views over these files, at least one; :meth:`find_repeated` has to follow."""
        now = datetime.now(UTC) if span.until_s is None else datetime.fromtimestamp(span.until_s, UTC)
        variables: dict[str, object] = {
            "files": list(paths),
            "since": span.since_text,
            "until": span.until_text,
            "now": now.replace(tzinfo=None),
            "max_line_bytes": max_line_bytes,
        }
        for name, value in variables.items():
            self._connection.execute(f"SET VARIABLE {name} = $1", [value])
        with self._explained():
            self._connection.execute(questions.statements("views"))

    def check(self, statement: str) -> None:
        """Raise :class:`StartError` if the statement is not right, before any file is read for it."""
        with self._explained():
            parsed = self._connection.extract_statements(statement)
            if not parsed:
                raise StartError("The statement is empty.", 2)
            if len(parsed) == 1 and parsed[0].type == self._duckdb.StatementType.SELECT:
                self._connection.execute(f"EXPLAIN {statement}")

    def find_repeated(self) -> None:
        """Read all files once for the reports that are there more than once, of which the views show the first."""
        with self._explained(is_only_reading=True):
            self._interruptible(lambda: self._connection.execute(questions.statements("repeated")))

    @contextlib.contextmanager
    def answer(self, statement: str) -> Iterator[Answer]:
        """What the statement (the last one, if there are several) answers; DuckDB's errors become StartError."""
        with self._explained():
            self._interruptible(lambda: self._connection.execute(statement))
            yield Answer(self._connection)

    def write_parquet(self, statement: str, path: str) -> None:
        """Write what it answers to the file ``path``. Raises :class:`StartError`."""
        with self._explained():
            answer = self._connection.sql(statement)
            if answer is None:
                raise StartError("The statement has no answer to write.", 2)
            self._interruptible(lambda: answer.write_parquet(path, compression="zstd"))

    def _interruptible(self, work: Callable[[], object]) -> None:
        """Do it in a thread, and end it at Ctrl-C, which DuckDB itself can miss while it works."""
        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work)
            try:
                working.result()
            except KeyboardInterrupt:
                while not working.done():  # again, if it had not begun
                    self._connection.interrupt()
                    futures.wait([working], 0.05)
                raise

    @contextlib.contextmanager
    def _explained(self, *, is_only_reading: bool = False) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if "interrupted" in str(error):  # what Ctrl-C becomes in DuckDB
                raise KeyboardInterrupt from None
            raise
        except self._duckdb.OutOfMemoryException:
            raise StartError(
                f"The answer needs more memory than --memory-limit {self._memory_limit}, or more room than "
                f"{tempfile.gettempdir()} has: raise it, or ask for less (--since, --until)."
            ) from None
        except self._duckdb.Error as error:
            text = str(error).strip()
            if type(error).__name__ in _WRONG_STATEMENT:
                raise StartError(text, 2) from None
            if any(sign in text for sign in _LINE_TOO_LONG):
                raise StartError(
                    "A stored line is longer than --max-line-bytes: give what the server has as max_report_bytes."
                ) from None
            if "Traceback" in text:  # of a file system in Python: its error stands in the last line
                raise StartError(text.splitlines()[-1].partition(": ")[2]) from None
            if ("No such file" in text or "No files found" in text) and "/proc/self/fd/" in text:
                raise StartError("A file was deleted while it was asked about, by retention: ask again.") from None
            if is_only_reading or ("Malformed JSON" in text and 'Input: "{' in text):
                raise StartError(
                    f"A file is broken, {self._who_says} says which: {text.partition(chr(10))[0]}"
                ) from None
            raise StartError(text) from None


class Answer:
    """Columns, and rows that come as they are asked for."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        described = connection.description or []
        self.columns = [str(column[0]) for column in described]
        self.types = [str(column[1]) for column in described]

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """All rows, read piece by piece."""
        while rows := self._connection.fetchmany(2048):
            yield from rows
