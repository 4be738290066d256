"""A stored line as people read it: one line a report, what went wrong first, nothing that a terminal would obey."""

from __future__ import annotations

import os
from typing import Any, Final, TextIO

import msgspec

_MOST_HOSTS: Final = 6
_MOST_CHARACTERS: Final = 120
RED: Final = "31"
_DIM, _BOLD, _GREEN, _YELLOW = "2", "1", "32", "33"
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def is_coloured(stream: TextIO) -> bool:
    """Whether colours are wanted there: a terminal that has them, and no NO_COLOR (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Pretty:
    """Makes readable lines, with ANSI colours if asked for them."""

    def __init__(self, *, is_coloured: bool) -> None:
        self._is_coloured = is_coloured

    def text(self, line: bytes) -> str:
        """The stored ``line`` as one readable line, without a line feed."""
        members = _decode(line)
        time = members["receivedAt"].replace("T", " ")[:23] + "Z"
        report, kind = members["report"], members["kind"]
        if kind == "report":
            who, what = report["clientId"], self._hosts(report["hosts"])
        else:
            who, what = kind, self._browser_report(report)
        return f"{self._in(_DIM, time)}  {self._in(_BOLD, printable(who))}  {what}"

    def _hosts(self, hosts: list[dict[str, Any]]) -> str:
        ordered = sorted(hosts, key=lambda host: not _latest_error(host))  # stable: errors first, else as sent
        shown = [self._host(host) for host in ordered[:_MOST_HOSTS]]
        if len(hosts) > _MOST_HOSTS:
            shown.append(self._in(_DIM, f"and {len(hosts) - _MOST_HOSTS} more"))
        return " · ".join(shown) or self._in(_DIM, "no hosts")

    def _host(self, host: dict[str, Any]) -> str:
        error = _latest_error(host)
        latency = host["history"][-1].get("latency") if host["history"] else None
        colour = RED if error else _GREEN if host["status"] == "online" else _YELLOW
        text = f"{printable(host['name'])} {self._in(colour, printable(host['status']))}"
        if latency is not None:
            text += f" {latency:.1f} ms"
        return f"{text} {self._in(RED, printable(error))}" if error else text

    def _browser_report(self, report: dict[str, Any]) -> str:
        body = report.get("body", report.get("csp-report"))
        url = report.get("url")
        if not isinstance(body, dict):
            body = {"body": body}
        pairs = [f"{self._in(_DIM, printable(key) + '=')}{_value(value)}" for key, value in body.items()]
        return "  ".join([*([printable(url)] if isinstance(url, str) else []), " ".join(pairs)])

    def _in(self, colour: str, text: str) -> str:
        return coloured(colour, text) if self._is_coloured else text


def coloured(colour: str, text: str) -> str:
    """The text in an ANSI colour, such as ``RED``."""
    return f"\x1b[{colour}m{text}\x1b[0m"


def _latest_error(host: dict[str, Any]) -> str:
    return (host["history"][-1].get("error") or "") if host["history"] else ""


def _value(value: Any) -> str:
    return printable(value if isinstance(value, str) else _encode(value).decode())


def printable(text: str) -> str:
    """The text on one line, cut when it is long; what would move the cursor or colour the screen is escaped."""
    if len(text) > _MOST_CHARACTERS:
        text = text[: _MOST_CHARACTERS - 1] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
