"""Bugs to plant under the tests of shipping and compaction.

``name: (file in the package, old text, new text, the tests that must fail)``, as in planted_storage.
"""

from __future__ import annotations

from typing import Final

PLANTED: Final[dict[str, tuple[str, str, str, list[str]]]] = {
    "no checksum on the wire": (
        "bucket.py",
        '{"checksum_algorithm": "SHA256"}',
        "{}",
        ["bucket/test_ship_faults.py::test_it_is_tried_again[a byte flips on the way]"],
    ),
    "shipped without being read back": (
        "ship/delivery.py",
        "    return await verified(store, key, data)\n",
        "    return digest\n",
        [
            "bucket/test_ship_faults.py::test_it_is_tried_again[412, not stored]",
            "bucket/test_ship.py::test_something_else_under_the_name_is_kept_and_told",
        ],
    ),
    "the bucket is overwritten": (
        "ship/delivery.py",
        'mode="create"',
        'mode="overwrite"',
        ["bucket/test_ship.py::test_something_else_under_the_name_is_kept_and_told"],
    ),
    "marked before it is shipped": (
        "ship/shipper.py",
        "            size_bytes, digest = await self._delivered(path, fd)\n",
        (
            '            shipped.mark(self._files, fd, self._name, "0" * 64)\n'
            "            size_bytes, digest = await self._delivered(path, fd)\n"
        ),
        ["bucket/test_ship_kills.py"],
    ),
    "retention does not ask": (
        "storage/shipped.py",
        "    return None if mark is None else ",
        '    return "anywhere" if mark is None else ',
        ["test_retention.py::test_what_is_not_shipped_stays_if_it_must_be_and_holds_up_nothing"],
    ),
    "the sources go first": (
        "compaction/compactor.py",
        "        size_bytes = self._put(path, merger)\n",
        (
            "        self._store.delete([source.path for source in sources if source.path != path])\n"
            "        size_bytes = self._put(path, merger)\n"
        ),
        ["bucket/test_compact.py::test_killed_at_any_request_each_line_is_there_and_the_next_one_finishes"],
    ),
    "the lease is not asked for": (
        "compaction/lease.py",
        "time.time() < until_s and",
        "False and",
        ["bucket/test_compact.py::test_only_one_works_at_a_time"],
    ),
}
