"""All that is known at the end of a run: as one value, which is written as JSON, and as a table."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

from netwatch.loadtest.audit import FAILURES, Audit
from netwatch.loadtest.tally import Outcome, Tally

STEPS = 20  # of the histogram for each power of ten: each is 12 % wide

_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


def summarize(
    run: str,
    load: dict[str, Any],
    tally: Tally,
    duration_s: float,
    kills: Counter[str] | None,
    result: Audit | None,
    failures: list[str],
) -> dict[str, Any]:
    """The summary; `load` says what was asked for."""
    summary: dict[str, Any] = {
        "run": run,
        "load": load,
        "duration_s": round(duration_s, 3),
        "requests": {"sent": tally.requests.total(), **_by_outcome(tally.requests)},
        "reports": {
            "sent": tally.reports.total() + tally.rejected_total,
            **_by_outcome(tally.reports),
            "rejected": tally.rejected_total,
        },
        "retried": _by_outcome(tally.retried),
        "duplicates": tally.duplicates_total,
        "unsent": tally.unsent_total,
        "connections_dropped": tally.dropped_total,
        "anomalies": tally.anomalies_total,
        "requests_per_s": _rate(tally.requests[200], duration_s),
        "reports_per_s": _rate(tally.reports[200], duration_s),
        "mb_per_s": _rate(tally.body_bytes / 1e6, duration_s),
        "wire_mb_per_s": _rate(tally.wire_bytes / 1e6, duration_s),
        "latency_ms": percentiles_ms(tally.latencies_s),
        "histogram": histogram(tally.latencies_s),
        "each_second": {"stored": _series(tally.stored_each_s), "failed": _series(tally.failed_each_s)},
    }
    if kills is not None:
        summary["kills"] = dict(sorted(kills.items()))
    if result:
        summary["audit"] = {
            "files": result.files,
            "bytes": result.stored_bytes,
            "lines": result.lines,
            "of_this_run": result.of_this_run,
            "of_others": result.of_others,
            "unknown_stored": result.unknown_stored,
            "repeated": result.repeated,
            "quarantined": result.quarantined,
            **{name: result.found[name] for name in FAILURES},
        }
    return summary | {"failures": failures}


def percentiles_ms(latencies_s: array[float]) -> dict[str, float]:
    """By their names, from all latencies; none when there is no latency."""
    ordered = sorted(latencies_s)
    last = len(ordered) - 1
    return {
        name: round(1000 * ordered[min(int(share * len(ordered)), last)], 3)
        for name, share in _PERCENTILES.items()
        if ordered
    }


def histogram(latencies_s: array[float]) -> list[tuple[float, int]]:
    """Answers by latency: [below so many ms, how many], without gaps from the first to the last."""
    counts = Counter(math.floor(STEPS * math.log10(max(1000 * latency_s, 1e-3))) for latency_s in latencies_s)
    if not counts:
        return []
    return [(round(10 ** ((step + 1) / STEPS), 4), counts[step]) for step in range(min(counts), max(counts) + 1)]


def _series(each_s: Counter[int]) -> list[int]:
    return [each_s[second] for second in range(max(each_s, default=-1) + 1)]


def _rate(total: float, duration_s: float) -> float:
    return round(total / duration_s, 2) if duration_s else 0.0


def _by_outcome(counts: Counter[Outcome]) -> dict[str, int]:
    return {str(outcome): count for outcome, count in sorted(counts.items(), key=lambda item: str(item[0]))}


def table(summary: dict[str, Any]) -> Iterator[str]:
    """The lines to be printed; what did not happen is left out."""
    for name, shown in _rows(summary):
        values = "  ".join(_pair(key, value) for key, value in shown)
        if values:
            yield f"{name:12} {values}"
    for failure in summary["failures"]:
        yield f"FAILED {failure}"
    if not summary["failures"]:
        yield "all is well"


def _pair(key: str, value: object) -> str:
    if value is True:
        return key
    return f"{key} {value:,}" if isinstance(value, int | float) else f"{key} {value}"


def _rows(summary: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    always = ("sent", "200", "lines", "missing", "doubled", "altered", "unexpected")

    def some(name: str) -> list[tuple[str, Any]]:
        return [(key, value) for key, value in summary.get(name, {}).items() if value or key in always]

    yield "run", [*some("load"), ("seconds", summary["duration_s"])]
    yield "requests", some("requests")
    yield "reports", some("reports")
    rates = {"reports/s": "reports_per_s", "requests/s": "requests_per_s", "MB/s of JSON": "mb_per_s"}
    rates["MB/s sent"] = "wire_mb_per_s"
    yield "stored", [(name, summary[key]) for name, key in rates.items()]
    yield "latency, ms", list(summary["latency_ms"].items())
    yield "sent again", [*some("retried"), *[("duplicates", summary["duplicates"])][: summary["duplicates"]]]
    notable = {"due but not sent": "unsent", "connections dropped": "connections_dropped", "anomalies": "anomalies"}
    yield "besides", [(name, summary[key]) for name, key in notable.items() if summary[key]]
    yield "kills", some("kills")
    yield "audit", some("audit")
