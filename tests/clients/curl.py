"""curl, as a shell would run it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple


class Done(NamedTuple):
    """What curl came to: its exit code, the status, the body, and what it said of the conversation (-v)."""

    code: int
    status: int
    body: str
    talk: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def curl(*arguments: str | Path, stdin: bytes = b"") -> Done:
    command = ["curl", "--silent", "--verbose", "--noproxy", "*", "--max-time", "20", "--write-out", "\n%{http_code}"]
    done = subprocess.run([*command, *map(str, arguments)], input=stdin, capture_output=True, timeout=30)
    body, _, status = done.stdout.decode().rpartition("\n")
    return Done(done.returncode, int(status), body, done.stderr.decode(errors="replace"))
