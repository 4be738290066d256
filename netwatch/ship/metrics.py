"""What the shipper counts. README.rst has the same table, and a test compares the two."""

from __future__ import annotations

from typing import Final

from netwatch.bucket import KINDS
from netwatch.metrics.table import COUNTER, GAUGE, NANO, Part

SHIPPER: Final = Part()
SHIPPED: Final = SHIPPER.declare(
    "ship_segments_total", COUNTER, "Segments that were seen in the bucket, and marked.", "What you can rely on there."
)
SHIPPED_BYTES: Final = SHIPPER.declare("ship_bytes_total", COUNTER, "The bytes of those.", "The volume of the bucket.")
WAITING: Final = SHIPPER.declare(
    "ship_waiting_segments", GAUGE, "Sealed segments that are not shipped.", "A few are usual."
)
WAITING_BYTES: Final = SHIPPER.declare(
    "ship_waiting_bytes", GAUGE, "The bytes of those.", "What is lost with this disk, and what is not sealed yet."
)
OLDEST_WAITING: Final = SHIPPER.declare(
    "ship_oldest_waiting_seconds",
    GAUGE,
    "How long the oldest of those has waited since its first report.",
    "Over minutes: see the failures.",
)
FAILURES: Final = SHIPPER.declare(
    "ship_failures_total",
    COUNTER,
    "Tries that failed, and are tried again.",
    "``denied``, ``no_bucket``: the keys and the bucket. ``disk``: this host's. Others pass, or are the store's.",
    labels=("kind",),
    values=[(kind,) for kind in (*KINDS, "disk")],
)
CONFLICTS: Final = SHIPPER.declare(
    "ship_conflicts",
    GAUGE,
    "Segments under whose name the bucket has something else.",
    "More than 0: compare the two; the file stays here, and the object is never overwritten.",
)
SUCCEEDED_AT: Final = SHIPPER.declare(
    "ship_last_success_time_seconds", GAUGE, "When a segment was shipped last, Unix time.", "0: none yet.", unit=NANO
)
