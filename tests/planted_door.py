"""Bugs to plant in the door: each lets in what must stay out, or loses a promise, and its test must fail.

``name: (file in the package, old text, new text, the tests that must fail)``, as in planted_storage.
"""

from __future__ import annotations

from typing import Final

ACCESS: Final = "http/access.py"
ENCODING: Final = "http/encoding.py"
IN_FLIGHT: Final = "http/in_flight.py"
INGEST: Final = "http/ingest.py"
WRITER: Final = "writer.py"

PLANTED: Final[dict[str, tuple[str, str, str, list[str]]]] = {
    "any page may post": (
        ACCESS,
        'elif not host or host != req.get_header("host"):',
        "elif False:",
        ["http/test_access.py::test_another_origin_is_403_and_stores_nothing"],
    ),
    "an origin that ends like ours may post": (
        ACCESS,
        'elif not host or host != req.get_header("host"):',
        'elif not host.startswith(str(req.get_header("host"))):',
        ["http/test_access.py::test_another_origin_is_403_and_stores_nothing"],
    ),
    "answers that caches mix up": (
        ACCESS,
        '        resp.append_header("Vary", "Origin")\n',
        "",
        ["http/test_access.py::test_an_origin_on_the_list_may_post_and_is_echoed_with_credentials"],
    ),
    "a preflight that asks for no origin": (
        ACCESS,
        '            self._admit_origin(origin, req, resp)\n            resp.set_header("Access-Control-Allow-Methods"',
        '            resp.set_header("Access-Control-Allow-Methods"',
        ["http/test_access.py::test_a_preflight_of_another_origin_is_403_and_allows_nothing"],
    ),
    "any token is taken": (
        ACCESS,
        "if hmac.compare_digest(digest, known)]",
        "if hmac.compare_digest(known, known)]",
        ["http/test_access.py::test_a_token_that_is_not_known_is_401_and_not_repeated"],
    ),
    "no token is taken for one": (
        ACCESS,
        "        if not given:\n            raise Refused(\n",
        "        if not given:\n            return ''\n            raise Refused(\n",
        ["http/test_access.py::test_without_a_token_it_is_401_with_a_challenge"],
    ),
    "anybody says where a request comes from": (
        ACCESS,
        "if not self._proxies or not self._is_trusted(address):",
        "if False:",
        ["http/test_access.py::test_anybody_else_says_nothing_of_addresses"],
    ),
    "the farthest hop is believed": (
        ACCESS,
        "for hop in reversed(_hops(req)):",
        "for hop in _hops(req):",
        ["http/test_access.py::test_a_trusted_proxy_says_whom_it_forwards_the_nearest_first"],
    ),
    "settings that show the tokens": (
        "settings.py",
        "metadata=metadata, repr=not is_secret)",
        "metadata=metadata)",
        ["test_access_settings.py::test_settings_show_no_token"],
    ),
    "a sentence that shows a token": (
        "settings.py",
        'given = "what it is" if metadata["is_secret"] else repr(value)',
        "given = repr(value)",
        ["test_access_settings.py::test_no_sentence_shows_a_token_wherever_it_came_from"],
    ),
    "a decoded body of any size": (
        ENCODING,
        "            if size > max_body_bytes:\n",
        "            if False:\n",
        ["http/test_encoding.py::test_the_decoded_size_is_bounded_to_the_byte"],
    ),
    "any ratio": (
        ENCODING,
        "            if size > RATIO_FREE_BYTES + MAX_RATIO[encoding] * read_bytes:",
        "            if False:",
        ["http/test_encoding.py::test_a_ratio_beyond_the_bound_is_413_even_where_the_size_is_not"],
    ),
    "a ratio by the whole body": (
        ENCODING,
        "MAX_RATIO[encoding] * read_bytes:",
        "MAX_RATIO[encoding] * len(body):",
        ["http/test_encoding.py::test_row_20_a_bomb_is_413_before_it_has_grown"],
    ),
    "any window": (
        ENCODING,
        "max_window_size=MAX_WINDOW_BYTES",
        "max_window_size=0",
        ["http/test_encoding.py::test_a_window_as_large_as_the_standard_asks_for_is_taken_and_no_larger"],
    ),
    "a stream that was cut is taken": (
        ENCODING,
        "        if not (piece or rest or stream.eof):\n            raise EOFError\n",
        "        if not (piece or rest or stream.eof):\n            return\n",
        ["http/test_encoding.py::test_row_21_a_stream_cut_anywhere_is_400"],
    ),
    "what stands after a stream is dropped": (
        ENCODING,
        "        if not rest and position >= len(body):\n            return\n",
        "        return\n",
        ["http/test_encoding.py::test_a_stream_with_anything_after_it_is_400"],
    ),
    "decoded bytes that nobody counts": (
        ENCODING,
        "            take(len(piece))\n",
        "",
        ["http/test_encoding.py::test_what_is_decoded_counts_in_flight_as_it_is_made"],
    ),
    "shippers starve pages": (
        IN_FLIGHT,
        "limit = self.limit_bytes if is_page else self._open_bytes",
        "limit = self.limit_bytes",
        [
            "http/test_in_flight.py::test_the_reserved_part_is_for_pages_only",
            "http/test_in_flight.py::test_pages_are_served_while_shippers_have_taken_all_that_is_theirs",
        ],
    ),
    "browsers have no part in the reserve": (
        INGEST,
        "        sender = Sender(sender.token, sender.address, is_page=True)\n",
        "",
        ["http/test_in_flight.py::test_pages_are_served_while_shippers_have_taken_all_that_is_theirs"],
    ),
    "one client takes everything": (
        IN_FLIGHT,
        "        if held and len(self._clients) > 1 and held + size > limit // len(self._clients):\n",
        "        if False:\n",
        ["http/test_in_flight.py::test_with_others_no_client_gets_more_than_its_share"],
    ),
    "bytes that are not given back": (
        INGEST,
        "            self._in_flight.give(client, taken)\n",
        "            self._in_flight.give(client, size or 0)\n",
        ["http/test_ingest.py::test_a_request_that_is_cancelled_gives_back_its_bytes"],
    ),
    "a waiting request kept twice": (
        INGEST,
        "                del reports\n",
        "",
        ["http/test_ingest.py::test_a_waiting_request_is_kept_by_its_link_only"],
    ),
    "a browser's bad report is 400": (
        INGEST,
        '            if error.code == "invalid_json":',
        "            if True:",
        ["http/test_browser_reports.py::test_a_bad_report_is_204_and_the_others_are_stored"],
    ),
    "a retired endpoint that stores": (
        INGEST,
        "        if self._door.settings.retire_browser_reports:\n",
        "        if False:\n",
        ["http/test_browser_reports.py::test_a_retired_endpoint_is_410_whatever_comes"],
    ),
    "every kind is kept": (
        "reports.py",
        'if "all" not in kept and kind not in kept:',
        "if False:",
        ["http/test_browser_reports.py::test_only_the_kinds_that_are_kept_are_stored_and_all_are_204"],
    ),
    "one scope of keys for all tokens": (
        INGEST,
        "    return Key(sender.token, match[1] or match[2])\n",
        '    return Key("", match[1] or match[2])\n',
        ["http/test_keys.py::test_keys_of_different_tokens_are_different_and_of_the_same_the_same"],
    ),
    "keys that other keys' indexes meet": (
        "reports.py",
        'f"{len(token_name)}:{token_name}:{key}:"',
        'f"{token_name}:{key}:"',
        ["test_window.py::test_the_ids_of_a_key_are_uuids_of_version_8_and_the_same_everywhere"],
    ),
    "a key claimed before its commit": (
        WRITER,
        "        outcome = STORED\n        if any(lines):\n",
        "        outcome = STORED\n        self._store.window.claim(claims, now_s)\n        if any(lines):\n",
        ["test_keys.py::test_a_commit_that_is_refused_leaves_the_key_free"],
    ),
    "a key never claimed": (
        WRITER,
        "            self._store.window.claim(claims, now_s)\n",
        "            pass\n",
        ["test_keys.py::test_the_same_key_is_stored_once_and_answered_with_the_first_id"],
    ),
    "the window is not looked at": (
        WRITER,
        "self._store.window.first_id(key, now_s) or claims.get(key)",
        "claims.get(key)",
        ["test_keys.py::test_the_same_key_is_stored_once_and_answered_with_the_first_id"],
    ),
    "the group is not looked at": (
        WRITER,
        " or claims.get(key) or own_claims.get(key)",
        " or own_claims.get(key)",
        ["test_keys.py::test_the_same_key_twice_in_one_group_is_stored_once"],
    ),
    "the batch is not looked at": (
        WRITER,
        " or own_claims.get(key)",
        "",
        ["test_keys.py::test_the_same_key_twice_in_one_batch_is_stored_once"],
    ),
    "a retry after a crash is stored again": (
        WRITER,
        "            missing = self._store.missing(own, 0.0)\n",
        "            missing = own\n",
        ["test_keys.py::test_a_retry_after_a_crash_between_commit_and_answer_adds_nothing"],
    ),
    "what a leftover had is forgotten with it": (
        "storage/store.py",
        "        self.window.learn(self._ids(leftover), now_s)\n",
        "",
        ["test_store.py::test_what_a_leftover_had_under_a_key_is_known_when_it_is_gone"],
    ),
    "handshakes without a bound": (
        "http/acceptor.py",
        "if self._how and len(self._tasks) >= self._max_handshakes:",
        "if False:",
        ["clients/test_tls.py::test_handshakes_are_bounded_in_number_and_in_time"],
    ),
    "handshakes without an end": (
        "http/acceptor.py",
        '{"ssl": tls, "ssl_handshake_timeout": handshake_timeout_s}',
        '{"ssl": tls}',
        ["clients/test_tls.py::test_handshakes_are_bounded_in_number_and_in_time"],
    ),
    "a window without an end": (
        "storage/window.py",
        "while self._keys and next(iter(self._keys.values()))[1] <= over_s:",
        "while False:",
        ["test_window.py::test_a_key_is_known_from_its_claim_to_the_windows_end"],
    ),
    "keys without a bound": (
        "storage/window.py",
        "while len(self._keys) > self._max_keys:",
        "while False:",
        ["test_window.py::test_the_oldest_keys_are_forgotten_first_and_memory_is_bounded"],
    ),
    "a table of keys that points anywhere": (
        "queue.py",
        "        if len(batch.keyed) != count or edges",
        "        if False and edges",
        ["test_keys.py::test_row_23_a_table_of_keys_that_does_not_fit_closes_the_link"],
    ),
}
