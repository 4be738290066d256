"""Asks a running server how it is, over HTTP, as a monitoring system does: /readyz?verbose and /metrics."""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from netwatch.errors import StartError

_TIMEOUT_S: Final = 5.0
_SAMPLE: Final = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)\Z")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclasses.dataclass
class Look:
    """What the server said at one time."""

    at_s: float
    is_ready: bool
    readiness: dict[str, Any]
    samples: list[tuple[str, dict[str, str], float]]

    def total(self, name: str) -> float:
        """The sum of all samples of the metric."""
        return sum(value for found, _, value in self.samples if found == f"netwatch_{name}")

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """The metric's sums for each combination of these labels' values."""
        sums: dict[tuple[str, ...], float] = {}
        for found, theirs, value in self.samples:
            if found == f"netwatch_{name}":
                key = tuple(theirs.get(label, "") for label in labels)
                sums[key] = sums.get(key, 0.0) + value
        return sums


class Server:
    """A running server at ``url``; ``token_file`` holds its token for us, if it wants one."""

    def __init__(self, url: str, token_file: Path | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise StartError(f"Name the server by its URL, such as http://127.0.0.1:8080, not {url!r}.", 2)
        self._url = url.rstrip("/")
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({})
        )  # an operator's proxy knows no loopback
        self._headers = {"User-Agent": "netwatch-status"}
        if token_file:
            try:
                token = token_file.read_text("ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise StartError(f"Cannot read the token in {token_file}: {error}.", 2) from None
            self._headers["Authorization"] = f"Bearer {token}"

    def look(self) -> Look:
        """Ask now. Raises :class:`StartError` when there is no answer."""
        status, readiness = self._get("/readyz")
        _, metrics = self._get("/metrics")
        try:
            return Look(time.monotonic(), status == 200, json.loads(readiness), list(_samples(metrics.decode())))
        except ValueError:
            raise StartError(f"What answers at {self._url} is no netwatch.") from None

    def _get(self, path: str) -> tuple[int, bytes]:
        request = urllib.request.Request(f"{self._url}{path}", headers=self._headers)
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 503:
                    return error.code, error.read()
            advice = " Give a token, alone in a file (--token-file)." if error.code == 401 else ""
            raise StartError(f"{self._url}{path} answers {error.code} {error.reason}.{advice}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise StartError(f"No answer from {self._url}: {reason}. Is the server running there?") from None


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for line in text.splitlines():
        if not line.startswith("#") and (match := _SAMPLE.match(line)):
            yield match[1], dict(_LABEL.findall(match[2] or "")), float(match[3])
