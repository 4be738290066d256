"""The questions that have a name: SQL files of this package, one for each engine, with the same answers.

A file begins with a comment that says what is asked, and ``-- since: 1h``, how far back that looks unless told.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Final, NamedTuple

from netwatch.errors import StartError

NAME: Final = re.compile(r"[a-z]+(?:-[a-z]+)*\Z")
_HEAD: Final = re.compile(r"-- (.+)\n-- since: (\w+)\n")
_NO_QUESTIONS: Final = {"views", "repeated"}


class Question(NamedTuple):
    """One of them: what it asks, how far back (as ``--since`` takes it), and the statement."""

    name: str
    title: str
    since: str
    sql: str


def questions(engine: str = "duckdb") -> dict[str, Question]:
    """All, by name, as the engine ``duckdb`` or ``clickhouse`` understands them."""
    found = {}
    for file in sorted(resources.files(__package__).joinpath(engine).iterdir(), key=lambda file: file.name):
        name = file.name.removesuffix(".sql")
        if name not in _NO_QUESTIONS:
            text = file.read_text("utf-8")
            match = _HEAD.match(text)
            assert match, file.name
            found[name] = Question(name, match[1], match[2], text)
    return found


def question(text: str) -> Question | None:
    """The question of that name; None if ``text`` is a statement. Raises :class:`StartError` for an unknown name."""
    if not NAME.match(text):
        return None
    named = questions()
    if text not in named:
        raise StartError(
            f"There is no question {text!r}. Ask one of {', '.join(named)}, or give a statement in SQL.", 2
        )
    return named[text]


def statements(name: str, engine: str = "duckdb") -> str:
    """The statements in another file: ``views``, which all questions start from, or ``repeated``."""
    return resources.files(__package__).joinpath(engine, f"{name}.sql").read_text("utf-8")
