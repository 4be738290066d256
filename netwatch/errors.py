"""Every refusal netwatch can give, declared once: its stable code, the HTTP status it deserves and its title.

The code is part of the public interface (``urn:netwatch:error:<code>``): it is never renamed. Which status makes which
client lose data decides the numbers: bad data is 400, whatever may work later is 503.
"""

from __future__ import annotations

from typing import Final

ERRORS: Final[dict[str, tuple[int, str]]] = {
    "invalid_json": (400, "The body is not valid JSON"),
    "invalid_utf8": (400, "The body is not valid UTF-8"),
    "invalid_member": (400, "A member of a report has the wrong type or value"),
    "missing_member": (400, "A report lacks a required member"),
    "number_out_of_range": (400, "A number is larger than readers of the files can take"),
    "too_deep": (400, "A report is nested too deeply"),
    "report_too_large": (400, "A report is too large"),
    "no_valid_report": (400, "No report in the request is valid"),
    "empty_body": (400, "The body is empty"),
    "incomplete_body": (400, "The body ended early"),
    "kind_ignored": (204, "Browser reports of this type are not kept"),
    "invalid_encoding": (400, "The body is not what its Content-Encoding says"),
    "invalid_key": (400, "The idempotency key is not valid"),
    "bad_request": (400, "The request is not valid HTTP"),
    "token_missing": (401, "A token is needed"),
    "token_unknown": (401, "The token is not known"),
    "origin_not_allowed": (403, "Pages of this origin may not post here"),
    "not_found": (404, "There is nothing at this path"),
    "method_not_allowed": (405, "This path does not take this method"),
    "endpoint_retired": (410, "Browser reports are not taken here any more"),
    "body_too_large": (413, "The body is too large"),
    "too_many_reports": (413, "The request holds too many reports"),
    "unsupported_media_type": (415, "This media type is not taken"),
    "unsupported_encoding": (415, "This content encoding is not taken"),
    "over_share": (429, "This client has more than its share of bytes in flight"),
    "too_many_connections": (503, "Too many connections are open"),
    "overloaded": (503, "Too many bytes are in flight"),
    "ack_timeout": (503, "The writer did not answer in time"),
    "disk_full": (503, "The disk is full or below its reserve"),
    "disk_error": (503, "The disk failed to store the request"),
    "recovering": (503, "The writer is still recovering what a crash left"),
    "unknown": (503, "It is not known whether the request was stored"),
    "internal": (500, "The server failed"),
}


class Refused(Exception):
    """A request that is not stored; ``code`` is a key of :data:`ERRORS`, ``detail`` says what the client can do.

    ``members`` are added to the problem document, ``headers`` to the answer.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        members: dict[str, object] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status, _ = ERRORS[code]
        self.detail = detail
        self.members = members or {}
        self.headers = headers or {}


class Overloaded(Refused):
    """Backpressure: the same request may work after ``retry_after_s`` (whole seconds).

    ``may_be_stored`` says that this one may be stored all the same; else it is certainly not.
    """

    def __init__(self, code: str, detail: str, *, retry_after_s: int = 1, may_be_stored: bool = False) -> None:
        super().__init__(code, detail, headers={"Retry-After": str(retry_after_s)})
        self.may_be_stored = may_be_stored


class Rejected(Exception):
    """One report that is the client's fault: a code of :data:`ERRORS`, where it is wrong (JSON pointer) and why."""

    def __init__(self, code: str, detail: str, pointer: str = "") -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.pointer = pointer


class StartError(Exception):
    """The server cannot start; the message is one sentence that says what to do. ``exit_code`` is the process's."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
