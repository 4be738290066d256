"""What the clients of a run saw, in numbers."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

from netwatch.loadtest.requests import Request

Outcome = (
    int | str
)  # a status; or closed, cut (the connection ended before or in the answer), timeout, refused, garbage


@dataclass(slots=True)
class Tally:
    """Counted by the clients as they go; a request that is sent again under its key counts once, when it is over."""

    requests: Counter[Outcome] = field(default_factory=Counter)  # by the last outcome
    retried: Counter[Outcome] = field(default_factory=Counter)  # by what made the client send again under the same key
    reports: Counter[Outcome] = field(default_factory=Counter)  # by the last outcome of their request …
    rejected_total: int = 0  # … but not those that are bad and were rejected as they must be,
    bad_requests_total: int = 0  # nor those requests, all of whose reports are, among what was answered 400
    duplicates_total: int = 0  # reports that the server said it had already: the answer before was lost
    latencies_s: array[float] = field(default_factory=lambda: array("f"))  # of answered requests, whatever the status
    body_bytes: int = 0  # of JSON in requests answered 200
    wire_bytes: int = 0  # of the same requests, compressed and with their headers
    stored_each_s: Counter[int] = field(default_factory=Counter)  # reports answered 200 in second 0, 1, … of the run
    failed_each_s: Counter[int] = field(default_factory=Counter)  # reports with any other outcome, retries included
    unsent_total: int = 0  # requests that were due, and for which no client was free until the end
    dropped_total: int = 0  # closed or cut on a connection that had answered before
    anomalies: list[str] = field(default_factory=list)
    anomalies_total: int = 0

    def anomaly(self, text: str) -> None:
        """An answer that breaks what the interface promises."""
        self.anomalies_total += 1
        if len(self.anomalies) < 10:
            self.anomalies.append(text)

    def count(self, request: Request, outcome: Outcome, at_s: float, latency_s: float) -> None:
        """A request is over, `at_s` after the start of the run."""
        self.requests[outcome] += 1
        counted = len(request.numbers)
        if request.bad and (outcome == 200 or (outcome == 400 and not request.good_total)):
            counted = request.good_total
            self.rejected_total += len(request.bad)
            self.bad_requests_total += not counted
        if counted:
            self.reports[outcome] += counted
        if outcome == 200:
            self.stored_each_s[int(at_s)] += counted
            self.body_bytes += request.body_bytes
            self.wire_bytes += len(request.wire)
        elif counted:
            self.failed_each_s[int(at_s)] += counted
        if isinstance(outcome, int):
            self.latencies_s.append(latency_s)

    def count_retried(self, request: Request, outcome: Outcome, at_s: float) -> None:
        """A request is to be sent again under its key."""
        self.retried[outcome] += 1
        self.failed_each_s[int(at_s)] += len(request.numbers)
