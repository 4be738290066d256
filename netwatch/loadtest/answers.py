"""An HTTP answer as bytes, and whether it says what the interface promises."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from netwatch.loadtest.requests import Request

LISTED_ERRORS = 100  # an answer names no more

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *(\d+)\r\n", re.IGNORECASE)


class Answer(NamedTuple):
    status: int
    head: bytes
    body: bytes

    @property
    def closes(self) -> bool:
        return _CLOSE.search(self.head) is not None

    @property
    def retry_after_s(self) -> float | None:
        said = _RETRY_AFTER.search(self.head)
        return float(said[1]) if said else None


def parse_answer(data: bytes | bytearray) -> Answer | None:
    """The answer that `data` is, None while it is incomplete; ValueError when it is no answer or more than one."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(data[: end + 2])
    length = _LENGTH.search(head)
    if not head.startswith(b"HTTP/1.1 ") or length is None:
        raise ValueError(f"no answer with a Content-Length: {head[:80]!r}")
    whole = end + 4 + int(length[1])
    if len(data) < whole:
        return None
    if len(data) > whole:
        raise ValueError(f"{len(data) - whole} bytes after an answer")
    return Answer(int(head[9:12]), head, bytes(data[end + 4 : whole]))


def accepted(answer: Answer, request: Request, *, may_repeat: bool) -> tuple[int, str]:
    """How many reports a 200 says were there already, and the id of its first. ValueError if it is not true to the
    request: each good report accepted, or a duplicate where the request may have been stored before, and each bad one
    rejected by its index."""
    try:
        said = json.loads(answer.body)
        duplicates: int = said.get("duplicates", 0)
        bad = [error["index"] + request.numbers.start for error in said.get("errors", ())]
        is_right = (
            said["accepted"] + duplicates == request.good_total > 0
            and (may_repeat or not duplicates)
            and said.get("rejected", 0) == len(request.bad)
            and bad == request.bad[:LISTED_ERRORS]
            and isinstance(said["id"], str)
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        is_right = False
    if not is_right:
        rejects = f" and reject {len(request.bad)}" if request.bad else ""
        raise ValueError(f"200 that does not accept {request.good_total}{rejects}: {answer.body[:300]!r}")
    return duplicates, said["id"]
