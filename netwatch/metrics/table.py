"""Every metric, declared once: name, type, labels with all their values, what it means, and what an operator does.

README.rst has the same table, and a test compares the two. A metric is counted by one kind of process; the order here
is the order of its cells in that process's part of the board.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from netwatch import __version__
from netwatch.errors import ERRORS

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"
NANO: Final = 1e-9

Labels = tuple[str, ...]
"""One value for each label of a metric."""


@dataclasses.dataclass(frozen=True, eq=False)
class Metric:
    """One metric. Its cells are whole numbers of ``unit``; ``first`` is where they begin in its process's part."""

    name: str
    kind: str
    help: str
    advice: str
    labels: Labels
    series: Mapping[Labels, int]
    """Each combination of the labels' values, and where its first cell stands, counted from ``first``."""
    unit: float
    bounds: tuple[float, ...]
    """Of a histogram: the upper bounds of its buckets but the last, in cells' numbers."""
    is_sparse: bool
    """Whether a series is left out until it has counted something: there are many."""
    is_per_worker: bool
    """Whether each worker's is shown, with the label ``worker``; else their sum."""
    first: int

    width: int
    """How many cells a series has: one, a histogram's one a bucket and one for the sum."""

    @property
    def cells_total(self) -> int:
        """How many cells all its series have."""
        return len(self.series) * self.width


class Part:
    """The metrics of one kind of process."""

    def __init__(self) -> None:
        self.metrics: list[Metric] = []
        self.cells_total = 0

    def declare(
        self,
        name: str,
        kind: str,
        help_: str,
        advice: str,
        *,
        labels: Labels = (),
        values: Iterable[Labels] = ((),),
        unit: float = 1,
        bounds: Sequence[float] = (),
        is_sparse: bool = False,
        is_per_worker: bool = False,
    ) -> Metric:
        """Declare the next metric; ``values`` has each combination of the labels' values."""
        width = len(bounds) + 2 if kind == HISTOGRAM else 1
        series = {labels_: number * width for number, labels_ in enumerate(values)}
        scaled = tuple(round(bound / unit) for bound in bounds)
        metric = Metric(
            f"netwatch_{name}",
            kind,
            help_,
            advice,
            labels,
            series,
            unit,
            scaled,
            is_sparse,
            is_per_worker,
            self.cells_total,
            width,
        )
        self.metrics.append(metric)
        self.cells_total += metric.cells_total
        return metric


def _one_of(*values: str) -> list[Labels]:
    return [(value,) for value in values]


ROUTES: Final = (
    "/api/v1/reports",
    "/api/v1/browser-reports",
    "/livez",
    "/readyz",
    "/metrics",
    "/version",
    "/openapi.json",
    "other",
)
METHODS: Final = ("GET", "HEAD", "POST", "OPTIONS", "other")
OUTCOMES: Final = (
    ("200", "ok"),
    ("204", "ok"),
    ("503", "not_ready"),
    *((str(status), code) for code, (status, _) in ERRORS.items() if status >= 400),
    ("other", "other"),
)
"""Each status with the code that explains it."""

_COMMIT_FAILURES: Final = ("disk_full", "disk_error", "unknown")
_SEALS: Final = ("size", "age", "asked", "drain")
_CHILDREN: Final = ("writer", "gunicorn")
_REJECTIONS: Final = [code for code, (status, _) in ERRORS.items() if status in (204, 400)]
_REQUEST_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_SYNC_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_POWERS_OF_4: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384)
_BYTES: Final = tuple(1024 * power for power in _POWERS_OF_4)

WORKER: Final = Part()
SUPERVISOR: Final = Part()
WRITER: Final = Part()

# --- promise 5: received = stored + duplicate + rejected + shed + unknown + in flight, in every scrape ---
# These are the first of a worker's, and kept apart (board.Terms): a worker that is killed must not leave half a step.
_TERMS: Final = Part()
RECEIVED: Final = _TERMS.declare(
    "reports_received_total",
    COUNTER,
    "Reports in the bodies that were taken apart; always the sum of the six below.",
    "The rate of your clients. A refusal before that (401, 413, 429 …) counts in requests only.",
    is_per_worker=True,
)
STORED: Final = _TERMS.declare(
    "reports_stored_total",
    COUNTER,
    "Reports that were new and are acknowledged as safe.",
    "What you can rely on to find in the files.",
    is_per_worker=True,
)
DUPLICATE: Final = _TERMS.declare(
    "reports_duplicate_total",
    COUNTER,
    "Reports that were stored before under the same Idempotency-Key.",
    "Retries at work. Many: look at why clients get no answer.",
    is_per_worker=True,
)
REJECTED: Final = _TERMS.declare(
    "reports_rejected_total",
    COUNTER,
    "Reports that are the client's fault, or browser reports of a kind that is not kept.",
    "``netwatch_rejections_total`` says why.",
    is_per_worker=True,
)
SHED: Final = _TERMS.declare(
    "reports_shed_total",
    COUNTER,
    "Reports refused for now with 503, and certainly not stored by that request.",
    "Clients that do not retry lose them. Look at the disk and at ``/readyz?verbose``.",
    is_per_worker=True,
)
UNKNOWN: Final = _TERMS.declare(
    "reports_unknown_total",
    COUNTER,
    "Reports whose ack came too late, or whose worker died: stored or not, their client cannot know.",
    "Only an Idempotency-Key makes a retry of these safe. Look for killed workers and a slow disk.",
    is_per_worker=True,
)
IN_FLIGHT: Final = _TERMS.declare(
    "reports_in_flight",
    GAUGE,
    "Reports that wait for their ack.",
    "Grows when the writer or the disk is behind.",
    is_per_worker=True,
)
TERMS: Final = tuple(_TERMS.metrics)

# --- the workers ---
REQUESTS: Final = WORKER.declare(
    "requests_total",
    COUNTER,
    "Requests answered, by status and error code; what is no HTTP request has route and method ``other``.",
    '``sum by (code) (rate(netwatch_requests_total{status!~"2.."}[5m]))`` says what is refused and why.',
    labels=("route", "method", "status", "code"),
    values=[(*pair, *outcome) for pair in itertools.product(ROUTES, METHODS) for outcome in OUTCOMES],
    is_sparse=True,
    is_per_worker=True,
)
REJECTIONS: Final = WORKER.declare(
    "rejections_total",
    COUNTER,
    "Reports that were rejected, by the code that their client got.",
    "A code that grows after a client's update is that client's bug.",
    labels=("code",),
    values=_one_of(*_REJECTIONS),
)
REQUEST_SECONDS: Final = WORKER.declare(
    "request_duration_seconds",
    HISTOGRAM,
    "From the last byte of a request to its answer.",
    "The slow end is the disk's: compare ``netwatch_fdatasync_seconds``.",
    labels=("route",),
    values=_one_of(*ROUTES),
    unit=NANO,
    bounds=_REQUEST_S,
    is_sparse=True,
)
BODY_BYTES: Final = WORKER.declare(
    "body_bytes_total", COUNTER, "Bytes of bodies that came whole, decoded.", "The volume of your clients."
)
IN_FLIGHT_BYTES: Final = WORKER.declare(
    "in_flight_bytes",
    GAUGE,
    "Bytes of bodies that a worker works on, from the Content-Length to the answer.",
    "Near its limit clients get 503: raise ``in_flight_bytes``, or find what is slow.",
    is_per_worker=True,
)
IN_FLIGHT_LIMIT_BYTES: Final = WORKER.declare(
    "in_flight_limit_bytes",
    GAUGE,
    "A worker's share of the setting ``in_flight_bytes``; a 16th more for who holds little.",
    "The bound of the one above.",
    is_per_worker=True,
)
CONNECTIONS: Final = WORKER.declare(
    "connections_open",
    GAUGE,
    "Open client connections.",
    "Compare the setting ``max_connections``.",
    is_per_worker=True,
)
WORKER_STARTS: Final = WORKER.declare(
    "worker_starts_total", COUNTER, "Workers that began.", "More than reloads explain: workers die; see the log."
)
WORKERS: Final = WORKER.declare("workers", GAUGE, "Workers that live.", "Fewer than ``workers`` for long: see the log.")

# --- the writer ---
COMMITS: Final = WRITER.declare("commits_total", COUNTER, "Groups that were made safe.", "The rate of acks.")
COMMIT_ERRORS: Final = WRITER.declare(
    "commit_errors_total",
    COUNTER,
    "Groups that the disk, or its reserve, refused; ``unknown``: nor could be cut off again.",
    "Make room, or replace the disk.",
    labels=("code",),
    values=_one_of(*_COMMIT_FAILURES),
)
COMMIT_BATCHES: Final = WRITER.declare(
    "commit_batches", HISTOGRAM, "Batches in a commit.", "At most one a worker.", bounds=(1, 2, 4, 8, 16, 32, 64)
)
COMMIT_LINES: Final = WRITER.declare(
    "commit_lines",
    HISTOGRAM,
    "Lines in a commit; the sum is that of all lines written.",
    "One each: clients send one report a request; batches would cost less.",
    bounds=_POWERS_OF_4,
)
COMMIT_BYTES: Final = WRITER.declare(
    "commit_lines_bytes", HISTOGRAM, "Bytes of lines in a commit.", "Compare ``commit_bytes``.", bounds=_BYTES
)
SYNC_SECONDS: Final = WRITER.declare(
    "fdatasync_seconds",
    HISTOGRAM,
    "How long the disk took to make data safe.",
    "The floor of every answer's time. Over 0.1 s: another disk, or fewer neighbours.",
    unit=NANO,
    bounds=_SYNC_S,
)
LAST_SYNC_SECONDS: Final = WRITER.declare(
    "last_fdatasync_seconds", GAUGE, "How long the last fdatasync took.", "The same, now.", unit=NANO
)
LAST_SYNC_AT: Final = WRITER.declare(
    "last_fdatasync_time_seconds", GAUGE, "When the last fdatasync ended, Unix time.", "0: there was none.", unit=NANO
)
LAST_COMMIT_AT: Final = WRITER.declare(
    "last_commit_time_seconds", GAUGE, "When the last group was made safe, Unix time.", "0: there was none.", unit=NANO
)
LAST_SEAL_AT: Final = WRITER.declare(
    "last_seal_time_seconds", GAUGE, "When the last file was sealed, Unix time.", "0: none since the start.", unit=NANO
)
SIGN_OF_LIFE_AT: Final = WRITER.declare(
    "writer_sign_of_life_time_seconds",
    GAUGE,
    "When the writer last told the workers that it lives, Unix time; each second.",
    "Older than 3 s: not ready. Look at the disk, then at the log.",
    unit=NANO,
)
SEGMENTS_OPEN: Final = WRITER.declare(
    "segments_open", GAUGE, "Segments that hold reports and are not sealed.", "0 or 1."
)
LEFTOVERS: Final = WRITER.declare(
    "leftovers",
    GAUGE,
    "Segments that a crash or a failing disk left.",
    "More than 0 for minutes: the disk is full or fails.",
)
SEALED: Final = WRITER.declare(
    "segments_sealed_total",
    COUNTER,
    "Files that were sealed, by reason.",
    "``size`` often: raise ``seal_bytes`` if you want fewer files.",
    labels=("reason",),
    values=_one_of(*_SEALS),
)
SEALED_LINES_BYTES: Final = WRITER.declare(
    "sealed_lines_bytes_total", COUNTER, "Bytes of the lines in sealed files.", "Divided by the next: the compression."
)
SEALED_FILE_BYTES: Final = WRITER.declare(
    "sealed_file_bytes_total", COUNTER, "Bytes of sealed files.", "How fast the disk fills."
)
RECOVERED: Final = WRITER.declare(
    "segments_recovered_total", COUNTER, "Leftovers whose lines were brought into a sealed file.", "A crash each."
)
TORN_TAILS: Final = WRITER.declare(
    "torn_tails_total", COUNTER, "Incomplete ends, never acked, that recovery cut off.", "Harmless; a crash each."
)
TORN_BYTES: Final = WRITER.declare("torn_tails_bytes_total", COUNTER, "The bytes of those.", "The same.")
QUARANTINED: Final = WRITER.declare(
    "quarantined_files_total", COUNTER, "Damaged files that were set aside.", "Acked data is damaged: check the disk."
)
QUARANTINED_BYTES: Final = WRITER.declare("quarantined_bytes_total", COUNTER, "The bytes of those.", "The same.")
QUARANTINE_FILES: Final = WRITER.declare(
    "quarantine_files", GAUGE, "Files in ``quarantine/``.", "Look at them, save what you need, move them away."
)
PRUNED: Final = WRITER.declare(
    "pruned_files_total",
    COUNTER,
    "Sealed files that retention deleted, by what made them too many.",
    "``size``: they did not reach the age you may have wanted.",
    labels=("reason",),
    values=_one_of("age", "size"),
)
PRUNED_BYTES: Final = WRITER.declare("pruned_bytes_total", COUNTER, "The bytes of those.", "The same.")
UNSHIPPED: Final = WRITER.declare(
    "retention_unshipped_files",
    GAUGE,
    "Sealed files that retention would have deleted, if they were shipped.",
    "More than 0: look at ``netwatch ship``; the disk fills.",
)
DISK_FREE_BYTES: Final = WRITER.declare(
    "disk_free_bytes", GAUGE, "What the server may still write to its disk.", "Below the reserve it refuses reports."
)
DISK_RESERVE_BYTES: Final = WRITER.declare(
    "disk_reserve_bytes", GAUGE, "The setting ``min_free_bytes``.", "Make room long before."
)
KEYS: Final = WRITER.declare(
    "idempotency_keys", GAUGE, "Keys that are remembered.", "At ``idempotency_keys`` the oldest are forgotten early."
)

# --- the supervisor ---
BUILD: Final = SUPERVISOR.declare(
    "build_info",
    GAUGE,
    "1; the labels say what runs.",
    "Absent: the server is down.",
    labels=("version", "python"),
    values=[(__version__, sys.version.partition(" ")[0])],
)
STARTED_AT: Final = SUPERVISOR.declare(
    "start_time_seconds", GAUGE, "When the supervisor started, Unix time.", "Counters begin anew then.", unit=NANO
)
STARTS: Final = SUPERVISOR.declare(
    "child_starts_total",
    COUNTER,
    "How often the supervisor started the writer and Gunicorn's master.",
    "More than 1 each: see the next.",
    labels=("child",),
    values=_one_of(*_CHILDREN),
)
DEATHS: Final = SUPERVISOR.declare(
    "child_deaths_total",
    COUNTER,
    "How often one of them died while the server served.",
    "The event ``child_died`` in the log has the exit code.",
    labels=("child",),
    values=_one_of(*_CHILDREN),
)

METRICS: Final = (*TERMS, *WORKER.metrics, *WRITER.metrics, *SUPERVISOR.metrics)
