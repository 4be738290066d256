"""Bugs to plant in the queue and the writer: each breaks a promise, and the test named with it must fail.

``name: (file in the package, old text, new text, the tests that must fail)``, as in planted_storage.
"""

from __future__ import annotations

from typing import Final

PLANTED: Final[dict[str, tuple[str, str, str, list[str]]]] = {
    "ack before commit": (
        "writer.py",
        "        outcome = STORED\n        if any(lines):\n",
        (
            "        outcome = STORED\n        for batch, results in answers:\n"
            "            self._inbox.answer(batch, outcome, results)\n        answers = []\n        if any(lines):\n"
        ),
        ["test_writer.py::test_rule_1_append_then_sync_then_answer_then_seal"],
    ),
    "a refusal answered as stored": (
        "writer.py",
        "                outcome = error.code\n",
        "                pass\n",
        ["test_writer.py::test_batches_are_refused_below_the_reserve"],
    ),
    "a resend stored without looking for what is stored": (
        "writer.py",
        "self._store.missing(between, batch.first_sent_s) if batch.is_resend else between",
        "between",
        ["test_writer.py::test_rule_1_writer_killed_as_it_answers_knows_the_resend"],
    ),
    "a resend dropped whole when a part of it is stored": (
        "writer.py",
        "            new.append(self._store.missing(between, batch.first_sent_s) if batch.is_resend else between)\n",
        (
            "            new.append(self._store.missing(between, batch.first_sent_s) if batch.is_resend else between)\n"
            "            new = new if len(new[-1]) == len(between) else []\n"
        ),
        ["test_writer.py::test_resend_completes_a_batch_that_was_stored_in_part"],
    ),
    "rule 1: sealed before the answer": (
        "writer.py",
        "        for batch, results in answers:\n            self._inbox.answer(batch, outcome, results)\n",
        (
            '        self._store.seal("size")\n        for batch, results in answers:\n'
            "            self._inbox.answer(batch, outcome, results)\n"
        ),
        ["test_writer.py::test_rule_1_append_then_sync_then_answer_then_seal"],
    ),
    "rule 1: sealed before the answer, seen by a kill": (
        "writer.py",
        "        for batch, results in answers:\n            self._inbox.answer(batch, outcome, results)\n",
        (
            '        self._store.seal("size")\n        for batch, results in answers:\n'
            "            self._inbox.answer(batch, outcome, results)\n"
        ),
        ["test_writer.py::test_rule_1_writer_killed_as_it_answers_knows_the_resend"],
    ),
    "rule 4: an old resend stored": (
        "writer.py",
        "now_s - batch.first_sent_s > RESEND_S",
        "False",
        ["test_writer.py::test_rule_4_resend_older_than_ten_seconds_is_unknown"],
    ),
    "rule 5: a resend stored while a leftover's ids are not known": (
        "storage/store.py",
        "        if not self.is_recovered:\n            raise",
        "        if False:\n            raise",
        ["test_writer.py::test_rule_5_resend_is_refused_while_a_leftover_is_not_recovered"],
    ),
    "rule 6: answers not remembered": (
        "queue.py",
        "        self._answered[link.id] = (batch.number, outcome, results, time.monotonic())\n",
        "",
        ["test_writer.py::test_rule_6_link_that_breaks_while_both_live_stores_once"],
    ),
    "rule 6: the answer remembered is always the good one": (
        "queue.py",
        "                self.answer(link.batch, outcome, results)\n",
        "                self.answer(link.batch, STORED, results)\n",
        ["test_queue.py::test_rule_6_link_that_comes_back_is_answered_from_memory"],
    ),
    "rule 6: the predecessor left open": (
        "queue.py",
        "                self._close(predecessor)\n",
        "                pass\n",
        ["test_queue.py::test_rule_6_link_that_comes_back_closes_its_predecessor"],
    ),
    "rule 6: the predecessor's whole batch committed beside its resend": (
        "queue.py",
        "for batch in self._whole if batch.link.id != link.id)",
        "for batch in self._whole)",
        ["test_queue.py::test_rule_6_whole_batch_of_a_predecessor_is_dropped_before_its_commit"],
    ),
    "rule 6: the same, with a writer's process": (
        "queue.py",
        "for batch in self._whole if batch.link.id != link.id)",
        "for batch in self._whole)",
        ["test_writer.py::test_rule_6_batch_read_but_not_committed_is_stored_once"],
    ),
    "a resend not flagged": (
        "queue.py",
        "            self._send(_RESEND)\n",
        "            self._send(0)\n",
        ["test_queue.py::test_unanswered_batch_is_resent_flagged_with_the_first_sent_time"],
    ),
    "a resend with the time of its second sending": (
        "queue.py",
        "            self._send(_RESEND)\n",
        "            self._first_sent_ns = time.monotonic_ns()\n            self._send(_RESEND)\n",
        ["test_queue.py::test_unanswered_batch_is_resent_flagged_with_the_first_sent_time"],
    ),
    "a resend not sent": (
        "queue.py",
        "            self._send(_RESEND)\n",
        "            pass\n",
        ["test_queue.py::test_unanswered_batch_is_resent_flagged_with_the_first_sent_time"],
    ),
    "a link that does not come back": (
        "queue.py",
        "        if self._connecting:\n            self._connecting = self._loop.create_task(self._connect())\n",
        "",
        ["test_queue.py::test_unanswered_batch_is_resent_flagged_with_the_first_sent_time"],
    ),
    "a dropped batch resent": (
        "queue.py",
        "        if any(not request.stored.done() for request in self._in_flight):\n",
        "        if self._in_flight:\n",
        ["test_queue.py::test_batch_that_nobody_waits_for_is_not_resent"],
    ),
    "a batch dropped that one still waits for": (
        "queue.py",
        "        if any(not request.stored.done() for request in self._in_flight):\n",
        "        if self._in_flight and all(not request.stored.done() for request in self._in_flight):\n",
        ["test_queue.py::test_batch_that_one_still_waits_for_is_resent_whole"],
    ),
    "more than one batch in flight": (
        "queue.py",
        "        if self._in_flight or not self._gathering or not self._transport:\n",
        "        if not self._gathering or not self._transport:\n",
        ["test_queue.py::test_one_batch_is_in_flight_and_what_arrives_meanwhile_gathers"],
    ),
    "a late ack taken for another batch's": (
        "queue.py",
        "            elif number == self._number and self._in_flight:\n",
        "            elif self._in_flight:\n",
        ["test_queue.py::test_late_ack_of_a_dropped_batch_does_not_answer_another"],
    ),
    "a refusal taken for stored": (
        "queue.py",
        "            if outcome == STORED:\n",
        "            if True:\n",
        ["test_queue.py::test_refusal_is_overloaded_with_its_code"],
    ),
    "no deadline for the ack": (
        "queue.py",
        "            self._timer = self._loop.call_at(deadline_s, self._expire)\n",
        "            pass\n",
        ["test_queue.py::test_ack_timeout_is_overloaded_and_the_late_ack_harms_nobody"],
    ),
    "batches without a bound": (
        "queue.py",
        "            and (not size or size + len(self._gathering[0].lines) <= self._batch_bytes)\n",
        "",
        ["test_queue.py::test_batch_bytes_bound_a_batch_and_one_request_may_exceed_them"],
    ),
    "acks without a bound": (
        "queue.py",
        "            and len(table) < _MAX_KEYED\n",
        "",
        ["test_queue.py::test_an_ack_always_fits_into_the_socket"],
    ),
    "a batch of any size taken": (
        "queue.py",
        "            if not 0 < size <= max_batch_bytes or not number",
        "            if not 0 < size or not number",
        ["test_queue.py::test_row_23_what_is_no_batch_closes_the_link"],
    ),
    "what is no line committed": (
        "queue.py",
        "        if self._head or not _holds_lines(self.batch):\n",
        "        if self._head:\n",
        ["test_writer.py::test_row_23_what_is_no_line_does_not_end_the_writer"],
    ),
    "a drain that does not look at the links again": (
        "writer.py",
        "            if stop_at_s and (not self._inbox or now_s >= stop_at_s):\n",
        "            if self._stop_at_s and (not self._inbox or now_s >= self._stop_at_s):\n",
        ["test_writer.py::test_term_takes_a_link_that_has_not_been_accepted_yet"],
    ),
}
