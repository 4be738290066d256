"""Bugs to plant under the fault suite, one for each family of faults: its harness, of real servers, must see it.

``name: (file in the package, old text, new text, the tests that must fail)``, as in planted_storage. That the names of
files are synced (their directories) shows on the model of a disk only: ext4 brings a file's name to the disk with the
file's own fdatasync, and keeps renames in order.
"""

from __future__ import annotations

from typing import Final

FILES: Final = "storage/files.py"

PLANTED: Final[dict[str, tuple[str, str, str, list[str]]]] = {
    "row 5: no fdatasync": (
        FILES,
        "        os.fdatasync(fd)\n",
        "",
        [
            "faults/test_power.py::test_row_05_power_cuts_at_random_under_load_lose_nothing",
            "faults/test_power.py::test_row_05_a_power_cut_at_every_system_call[first start, commits and seals]",
        ],
    ),
    "row 5: no directory fsync": (
        FILES,
        'path or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)\n        try:\n            os.fsync(fd)',
        'path or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)\n        try:\n            pass',
        ["test_storage_faults.py::test_row_05_a_power_cut_before_every_system_call[lost-False]"],
    ),
    "row 9: ack before commit": (
        "writer.py",
        "        outcome = STORED\n        if any(lines):\n",
        (
            "        outcome = STORED\n        for batch, results in answers:\n"
            "            self._inbox.answer(batch, outcome, results)\n        answers = []\n        if any(lines):\n"
        ),
        ["faults/test_disk.py::test_row_09_a_disk_that_the_kernel_made_read_only"],
    ),
    "row 2: ack before commit": (
        "writer.py",
        "        outcome = STORED\n        if any(lines):\n",
        (
            "        outcome = STORED\n        for batch, results in answers:\n"
            "            self._inbox.answer(batch, outcome, results)\n        answers = []\n        if any(lines):\n"
        ),
        ["test_writer.py::test_row_02_writer_killed_at_every_system_call"],
    ),
    "row 9: a refusal answered as stored": (
        "writer.py",
        "                outcome = error.code\n",
        "                pass\n",
        ["faults/test_disk.py::test_row_09_a_disk_that_the_kernel_made_read_only"],
    ),
    "row 9: a later writer that cannot start ends the server": (
        "server.py",
        "        elif not self._is_serving and code > 0:\n",
        "        elif code > 0:\n",
        ["faults/test_disk.py::test_row_09_a_disk_that_fails_while_it_recovers"],
    ),
    "row 10: what could not be recovered is deleted": (
        "storage/store.py",
        '        except OSError as error:\n            log.error(\n                "recovery_failed"',
        (
            "        except OSError as error:\n            self._files.delete(leftover.id.open_path)\n"
            '            self._leftovers.remove(leftover)\n            log.error(\n                "recovery_failed"'
        ),
        ["faults/test_sweeps.py::test_row_09_row_10_a_system_call_that_fails_once[EIO-8-second_life]"],
    ),
    "row 11: a listening socket that cannot be served is asked again and again": (
        "queue.py",
        "                self._selector.unregister(self._listener)\n                self._is_listening = False\n",
        "",
        [
            "faults/test_descriptors.py::test_row_11_a_writer_without_descriptors_commits_and_seals_when_it_has_some_again"
        ],
    ),
    "row 12: no deadline for the ack": (
        "queue.py",
        "            self._timer = self._loop.call_at(deadline_s, self._expire)\n",
        "            pass\n",
        ["faults/test_slow.py::test_row_12_a_disk_that_takes_2_s_a_sync"],
    ),
    "row 15: sealed by the wall clock": (
        "writer.py",
        "            now_s = time.monotonic()\n            if self._is_seal_due:\n",
        "            now_s = time.time()\n            if self._is_seal_due:\n",
        ["faults/test_clock.py::test_row_15_the_clock_jumps_an_hour_back_and_a_day_ahead"],
    ),
    "row 23: garbage ends the writer": (
        "queue.py",
        "            if magic != _MAGIC:\n                raise _Broken\n",
        "            assert magic == _MAGIC\n",
        ["faults/test_garbage.py::test_row_23_garbage_on_the_writers_socket_closes_that_link_only"],
    ),
    "row 24: another server's segment is taken": (
        FILES,
        "        try:\n            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "        try:\n",
        ["faults/test_two_servers.py::test_row_24_two_servers_on_one_data_directory_under_load"],
    ),
}
