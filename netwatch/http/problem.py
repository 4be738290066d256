"""The body of every answer that is an error: a problem document (RFC 9457), made in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from netwatch.errors import ERRORS

PROBLEM_TYPE: Final = "application/problem+json"


def problem(
    code: str, detail: str, members: Mapping[str, object] | None = None, *, instance: str | None = None
) -> bytes:
    """The problem document of ``code``, a key of :data:`ERRORS`; ``members`` are added to it.

    ``instance`` is the id under which the log has this request.
    """
    status, title = ERRORS[code]
    document = {"type": f"urn:netwatch:error:{code}", "title": title, "status": status, "detail": detail}
    if instance:
        document["instance"] = f"urn:uuid:{instance}"
    return msgspec.json.encode({**document, **(members or {})})
