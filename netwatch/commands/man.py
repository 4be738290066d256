"""`netwatch man` prints the manual page, made from the very parser that reads the command line.

Our own few lines, because argparse-manpage (4.8) wraps the usage as a terminal would, leaves out what whatis(1) needs,
and would have to be installed on each host that wants the page.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Final

from netwatch import __version__

_SYNOPSIS: Final = ".SH SYNOPSIS\n.B netwatch\n.I COMMAND\n[options]\n.br\n.B netwatch\n.B \\-\\-version"
_END: Final = r"""
.SH EXIT STATUS
.TP
.B 0
Done.
.TP
.B 1
Failed, or something is wrong with what was looked at.
.TP
.B 2
Wrong usage or settings.
.SH ENVIRONMENT
Each setting of
.B netwatch serve
is also a variable:
.B \-\-seal\-after\-s
is
.BR NETWATCH_SEAL_AFTER_S ;
.B NETWATCH_CONFIG
names the configuration.
.B NO_COLOR
turns colours off.
.SH SEE ALSO
.BR zstdcat (1),
.BR jq (1),
.BR journalctl (1)
""".lstrip()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are no options."""


def run_with(make_parser: Callable[[], argparse.ArgumentParser]) -> Callable[[argparse.Namespace], int]:
    """The command's ``run``: print the page of that parser."""

    def run(_args: argparse.Namespace) -> int:
        print(page(make_parser()), end="")
        return 0

    return run


def page(parser: argparse.ArgumentParser) -> str:
    """The manual page of ``parser`` and its commands, in man(7)'s macros."""
    description = _text((parser.description or "").rstrip("."))
    parts = [
        f'.TH NETWATCH 1 "{time.strftime("%Y-%m-%d")}" "netwatch {__version__}" "netwatch"',
        f".SH NAME\nnetwatch \\- {description[:1].lower()}{description[1:]}",
        _SYNOPSIS,
        f".SH DESCRIPTION\n{description}.\nWhat it promises, and how, stands in its README.",
        ".SH COMMANDS",
    ]
    for commands in _subparsers(parser):
        parts += [
            _command(choice.dest, choice.help or "", commands.choices[choice.dest])
            for choice in commands._choices_actions
        ]
    return "\n".join([*parts, _END])


def _subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse._SubParsersAction[argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield action


def _command(name: str, help_: str, parser: argparse.ArgumentParser) -> str:
    description = parser.description or f"{help_[:1].upper()}{help_[1:]}."
    parts = [f".SS netwatch {_text(name)}", _text(" ".join(description.replace("`", "").split()))]
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or action.help is argparse.SUPPRESS:
            continue
        value = _text(str(action.metavar or (action.dest if not action.option_strings else "")))
        if action.choices:
            value = "|".join(_text(str(choice)) for choice in action.choices)
        takes_value = action.nargs != 0
        names = ", ".join(f"\\fB{_text(option)}\\fR" for option in action.option_strings)
        tag = f"{names} \\fI{value}\\fR".strip() if takes_value else names
        parts.append(f".TP\n{tag}\n{_text(_help(parser, action))}")
    return "\n".join(parts)


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _text(text: str) -> str:
    """The text for roff: nothing in it is taken for a request or an escape."""
    text = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("^", "\\(ha").replace("~", "\\(ti")
    )
    text = "".join(c if ord(c) < 128 else f"\\[u{ord(c):04X}]" for c in text)
    return f"\\&{text}" if text.startswith((".", "'")) else text
