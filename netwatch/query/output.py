"""Prints an answer: a table for people, JSON lines or CSV for programs. Times are UTC and say so."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final, TextIO

import msgspec

from netwatch.commands.pretty import printable
from netwatch.query.engine import Answer

TABLE_ROWS: Final = 1000
"""A table is as wide as its widest row, so it cannot grow while it is printed: what comes after these is left out."""

_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode


def write_table(answer: Answer, output: TextIO) -> None:
    """Columns that stand below one another, numbers to the right."""
    rows = answer.rows()
    first = [[_cell(value) for value in row] for row in itertools.islice(rows, TABLE_ROWS)]
    titles = [printable(column) for column in answer.columns]
    widths = [max(map(len, column)) for column in zip(titles, *first, strict=True)]
    is_number = [_is_number(kind) for kind in answer.types]
    for cells in (titles, ["─" * width for width in widths], *first):
        aligned = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, is_number, strict=True)
        ]
        output.write("  ".join(aligned).rstrip() + "\n")
    if next(rows, None) is not None:
        output.write(f"… and more than these {TABLE_ROWS} rows: --format json and csv have all\n")


def write_json(answer: Answer, output: TextIO) -> None:
    """A JSON object a line, a member for each column."""
    for row in answer.rows():
        members = {column: _timed(value) for column, value in zip(answer.columns, row, strict=True)}
        output.write(_encode(members).decode() + "\n")


def write_csv(answer: Answer, output: TextIO) -> None:
    """CSV (RFC 4180, but for the line feeds) with a header; NULL is an empty field."""
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(answer.columns)
    writer.writerows(_csv_rows(answer.rows()))


def _csv_rows(rows: Iterator[Sequence[Any]]) -> Iterator[list[Any]]:
    for row in rows:
        yield [_csv_value(value) for value in row]


def _csv_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return f"{value.isoformat()}Z"
    return _encode(_timed(value)).decode() if isinstance(value, dict | list | bool) else value


def _timed(value: Any) -> Any:
    """The same with times that say that they are UTC, wherever they stand in it."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC)
    if isinstance(value, dict):
        return {str(key): _timed(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_timed(member) for member in value]
    return value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds" if not value.microsecond else "milliseconds")
    if isinstance(value, bool | dict | list):
        return printable(_encode(_timed(value)).decode())
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float | Decimal):
        return f"{value:,.12g}"
    return value.isoformat() if isinstance(value, date) else printable(str(value))


def _is_number(kind: str) -> bool:
    return kind.partition("(")[0] in _NUMBERS


_NUMBERS: Final = {
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"),
    *("UHUGEINT", "FLOAT", "DOUBLE", "DECIMAL", "NUMBER"),
}
