"""Prints stored lines to the standard output, until whoever reads it has seen enough."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterable

from netwatch.commands.pretty import Pretty, is_coloured
from netwatch.errors import StartError


def printer(form: str | None) -> Callable[[Iterable[bytes]], bool]:
    """What prints lines in the form ``json`` or ``pretty`` (None: pretty on a terminal): False when nobody reads them.

    It raises :class:`StartError` when they cannot be written.
    """
    is_pretty = form == "pretty" or (form is None and sys.stdout.isatty())
    pretty = Pretty(is_coloured=is_coloured(sys.stdout))
    output = sys.stdout.buffer

    def print_lines(lines: Iterable[bytes]) -> bool:
        for line in lines:
            text = pretty.text(line).encode(errors="replace") if is_pretty else line
            try:
                output.write(text + b"\n")
            except OSError as error:
                return _is_seen_enough(error)
        try:
            output.flush()
        except OSError as error:
            return _is_seen_enough(error)
        return True

    return print_lines


def _is_seen_enough(error: OSError) -> bool:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered cannot be written either
    if isinstance(error, BrokenPipeError):
        return False
    raise StartError(f"Cannot print: {error.strerror}.") from None


def wait_for_reader(timeout_s: float) -> bool:
    """Wait so long; False, and at once, when nobody reads the standard output any more."""
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)
    return not any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(timeout_s * 1000))
