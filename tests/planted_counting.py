"""Bugs to plant in the counting: each leaves a term of promise 5 out, or lets a kill leave half a step.

``name: (file in the package, old text, new text, the tests that must fail)``, as in planted_storage.
"""

from __future__ import annotations

from typing import Final

BOARD: Final = "metrics/board.py"
INGEST: Final = "http/ingest.py"
QUEUE: Final = "queue.py"

PLANTED: Final[dict[str, tuple[str, str, str, list[str]]]] = {
    "what is received is not counted": (
        INGEST,
        "        terms.received(count)\n",
        "",
        ["http/test_counting.py::test_stored_and_rejected"],
    ),
    "what is stored is not counted": (
        INGEST,
        "terms.done(count, stored=accepted, duplicate=",
        "terms.done(count, duplicate=",
        ["http/test_counting.py::test_stored_and_rejected"],
    ),
    "duplicates are not counted": (
        INGEST,
        "stored=accepted, duplicate=lines_total - accepted, rejected",
        "stored=accepted, rejected",
        ["http/test_counting.py::test_duplicates"],
    ),
    "rejected reports beside good ones are not counted": (
        INGEST,
        "duplicate=lines_total - accepted, rejected=rejected)",
        "duplicate=lines_total - accepted)",
        ["http/test_counting.py::test_stored_and_rejected"],
    ),
    "shed reports are not counted": (
        INGEST,
        "terms.done(count, rejected=rejected, shed=lines_total)",
        "terms.done(count, rejected=rejected)",
        ["http/test_counting.py::test_what_the_writer_refuses_is_shed_unless_it_may_be_stored_all_the_same[False]"],
    ),
    "unknown reports are called shed": (
        INGEST,
        "if error.may_be_stored:",
        "if False:",
        ["http/test_counting.py::test_what_the_writer_refuses_is_shed_unless_it_may_be_stored_all_the_same[True]"],
    ),
    "a request that is cancelled stays in flight": (
        INGEST,
        "handed over may be stored\n            terms.done(count, rejected=rejected, unknown=lines_total)\n",
        "handed over may be stored\n",
        ["http/test_counting.py::test_what_is_in_flight_and_a_client_that_does_not_wait"],
    ),
    "what a dead worker had in flight stays in flight": (
        BOARD,
        "self.done(self._values[6], unknown=self._values[6])",
        "pass",
        ["test_metrics.py::test_a_killed_worker_leaves_its_counters_and_what_it_had_in_flight_is_unknown"],
    ),
    "a step that is kept in place": (
        BOARD,
        "_HALVES: Final = (_CELL_BYTES, _CELL_BYTES + _TERMS.size)",
        "_HALVES: Final = (_CELL_BYTES, _CELL_BYTES)",
        ["test_metrics.py::test_a_kill_between_any_two_stores_leaves_terms_that_add_up"],
    ),
    "a living worker's slot is taken": (
        BOARD,
        "        except OSError:\n            return False\n",
        "        except OSError:\n            return True\n",
        ["test_metrics.py::test_living_workers_have_slots_of_their_own_and_keep_what_is_in_flight"],
    ),
    "what was sent is called certainly not stored": (
        QUEUE,
        "self._refuse_late(request, may_be_stored=True)",
        "self._refuse_late(request, may_be_stored=False)",
        ["test_queue.py::test_a_refusal_says_whether_the_request_may_be_stored_all_the_same"],
    ),
    "what was refused when it was sent again is called certainly not stored": (
        QUEUE,
        'outcome == "unknown" or self._is_resent',
        'outcome == "unknown"',
        ["test_queue.py::test_a_refusal_says_whether_the_request_may_be_stored_all_the_same"],
    ),
    "a commit that could not be cut off is called certainly not stored": (
        "storage/store.py",
        "if not segment.is_cut:",
        "if False:",
        ["test_store.py::test_what_cannot_be_cut_off_may_be_stored"],
    ),
}
