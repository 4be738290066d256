"""Bugs to plant in storage: each breaks one promise, and each must be seen by the test that is named beside it."""

from __future__ import annotations

from typing import Final

FILES: Final = "storage/files.py"
SEGMENT: Final = "storage/segment.py"
RECOVERY: Final = "storage/recovery.py"
STORE: Final = "storage/store.py"
FRAME: Final = "storage/frame.py"
READER: Final = "storage/reader.py"

# name: (file in the package, old text, new text, the tests that must fail)
PLANTED: Final[dict[str, tuple[str, str, str, list[str]]]] = {
    "a commit is not synced": (
        SEGMENT,
        "            if self._is_synced:\n                self._files.sync(self.fd)\n",
        "",
        ["test_segment.py::test_row_05_a_commit_survives_a_power_cut"],
    ),
    "sync does not sync": (
        FILES,
        "        os.fdatasync(fd)\n",
        "",
        [
            "test_segment.py::test_row_05_a_commit_survives_a_power_cut",
            "test_storage_faults.py::test_row_05_a_power_cut_before_every_system_call[lost-True]",
        ],
    ),
    "a created file's directory is not synced": (
        FILES,
        "            self.sync_directory(os.path.dirname(path))\n        except OSError:\n",
        "        except OSError:\n",
        ["test_files.py::test_row_05_a_created_file_keeps_its_name"],
    ),
    "a published file's directory is not synced": (
        FILES,
        "src_dir_fd=self._root, dst_dir_fd=self._root)\n        self.sync_directory(directory)\n",
        "src_dir_fd=self._root, dst_dir_fd=self._root)\n",
        ["test_files.py::test_row_05_a_published_file_keeps_its_name_and_content"],
    ),
    "a day's directory that stands is not synced": (
        FILES,
        "            os.close(self.open_directory(path))\n",
        "            return\n",
        [
            "test_files.py::test_row_05_what_another_left_without_a_sync_is_synced",
            "test_storage_faults.py::test_row_05_a_kill_before_every_system_call_and_a_power_cut_later",
        ],
    ),
    "what is sealed is not synced": (
        SEGMENT,
        "        self._files.append(self.fd, ending)\n        self._files.sync(self.fd)\n",
        "        self._files.append(self.fd, ending)\n",
        ["test_segment.py::test_row_05_a_sealed_segment_survives_a_power_cut"],
    ),
    "what is recovered is not synced": (
        RECOVERY,
        "        files.sync(fd)\n",
        "",
        ["test_recovery.py::test_row_05_what_was_recovered_survives_a_power_cut"],
    ),
    "a sealed file that stands is taken for durable": (
        RECOVERY,
        "            files.sync_directory(os.path.dirname(path))",
        "            pass",
        ["test_recovery.py::test_row_05_a_name_that_another_published_unsynced_is_synced"],
    ),
    "a line's checksum is not checked": (
        FRAME,
        "if is_checked else None\n",
        "if False else None\n",
        [
            "test_frame.py::test_row_07_a_flipped_bit_is_found",
            "test_frame.py::test_row_07_a_line_with_a_wrong_checksum_ends_the_reading",
        ],
    ),
    "a line's checksum is right whatever it is": (
        "reports.py",
        "return line.startswith(LINE_START) and line[",
        "return True or line[",
        ["test_frame.py::test_row_07_a_flipped_bit_is_found"],
    ),
    "a frame's checksum is not checked": (
        FRAME,
        "self._end(position, self._broken_before(position + 4))\n            return\n        whole = frame.eof and",
        "pass\n        whole =",
        ["test_frame.py::test_row_07_a_wrong_checksum_of_the_frame_is_damage"],
    ),
    "no frame has a checksum": (
        SEGMENT,
        "write_checksum=True",
        "write_checksum=False",
        ["test_segment.py::test_a_sealed_segment_is_one_frame_with_its_final_name"],
    ),
    "what follows a sealed frame is not looked at": (
        FRAME,
        "frame.eof and not self._file.read(1)",
        "frame.eof",
        ["test_frame.py::test_a_second_frame_is_damage"],
    ),
    "damage is called a torn tail": (
        FRAME,
        "max(min(end - 1, self._size - 8), 0)) else Ending.DAMAGED",
        "max(min(end - 1, self._size - 8), 0)) else Ending.TORN",
        ["test_recovery.py::test_row_07_damage_is_set_aside_as_it_was_found"],
    ),
    "nothing is recovered at the start": (
        STORE,
        "        self._leftovers = recovery.find_leftovers(self._files)\n",
        "",
        ["test_storage_faults.py::test_row_04_a_kill_before_every_system_call"],
    ),
    "rule 1: sealed before the ack": (
        STORE,
        "            segment.append(group, now_s)\n",
        "            segment.append(group, now_s)\n            self.tend(now_s)\n",
        ["test_store.py::test_rule_1_a_commit_never_seals"],
    ),
    "rule 2: the ids are not remembered": (
        STORE,
        "if not any(line[ID] in ids for ids in known)",
        "if True",
        [
            "test_store.py::test_rule_2_ids_of_a_leftover_are_remembered",
            "test_storage_faults.py::test_row_04_a_kill_before_every_system_call",
        ],
    ),
    "rule 2: a leftover is deleted at once": (
        STORE,
        "now_s if recovered.ids == set() else leftover.died_at_s + KEEP_LEFTOVER_S",
        "now_s",
        [
            "test_store.py::test_rule_2_the_next_writer_needs_them_too",
            "test_storage_faults.py::test_row_25_killed_in_recovery_again_and_again",
        ],
    ),
    "rule 3: a sealed file is written again": (
        RECOVERY,
        "        if files.exists(path):\n",
        "        if False:\n",
        ["test_recovery.py::test_rule_3_a_sealed_file_is_never_written_again"],
    ),
    "rule 3: a sealed file is not compared": (
        RECOVERY,
        "return ids, is_prefix\n",
        "return ids, True\n",
        ["test_recovery.py::test_rule_3_a_leftover_that_is_no_prefix_of_what_was_sealed_is_set_aside"],
    ),
    "rule 3: the name does not follow from the segment": (
        RECOVERY,
        "leftover.id.sealed_path(first",
        "layout.SegmentId(layout.new_instance(), 1).sealed_path(first",
        ["test_storage_faults.py::test_row_25_killed_in_recovery_again_and_again"],
    ),
    "rule 5: a leftover counts as recovered when it is not": (
        STORE,
        "return all(leftover.recovered for leftover in self._leftovers)",
        "return True",
        ["test_store.py::test_rule_5_fresh_batches_go_on_while_a_leftover_cannot_be_recovered"],
    ),
    "rule 7: a failed segment is kept in use": (
        STORE,
        '            self._give_up(segment, "commit_failed", error)\n',
        "",
        ["test_store.py::test_rule_7_a_segment_given_up_is_recovered_before_the_next_group"],
    ),
    "rule 7: a failed segment is left to the next start": (
        STORE,
        "        self._leftovers.append(Leftover(segment.id, segment.fd))\n",
        "",
        ["test_store.py::test_rule_7_a_segment_given_up_is_recovered_before_the_next_group"],
    ),
    "row 9: the yes of an aborted journal is believed": (
        FILES,
        "            os.posix_fallocate(fd, 0, 1)\n",
        "            pass\n",
        ["test_files.py::test_row_09_a_sync_whose_journal_was_aborted_meanwhile_fails"],
    ),
    "row 10: a failed sync is tried again": (
        FILES,
        "        os.fdatasync(fd)\n",
        "        try:\n            os.fdatasync(fd)\n        except OSError:\n            os.fdatasync(fd)\n",
        [
            "test_store.py::test_row_10_one_failed_sync_refuses_one_group",
            "test_storage_faults.py::test_row_10_a_sync_that_failed_is_never_tried_again_on_that_file",
        ],
    ),
    "a failed commit is not cut back": (
        SEGMENT,
        "                self._files.cut(self.fd, self.stored_bytes)\n",
        "                pass\n",
        ["test_segment.py::test_row_08_row_10_a_failed_commit_is_cut_back"],
    ),
    "a short write passes": (
        FILES,
        "        if os.write(fd, data) != len(data):\n",
        "        if os.write(fd, data) < 0:\n",
        ["test_storage_faults.py::test_every_system_call_fails_in_turn[half a write once]"],
    ),
    "a new file is not locked": (
        FILES,
        "            os.fchmod(fd, FILE_MODE)\n            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            os.fchmod(fd, FILE_MODE)\n",
        ["test_store.py::test_row_24_two_stores_on_one_directory"],
    ),
    "a leftover is taken without its lock": (
        FILES,
        "        try:\n            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "        try:\n",
        ["test_files.py::test_a_file_of_a_live_process_is_not_taken"],
    ),
    "modes follow the umask": (
        FILES,
        "            os.fchmod(fd, FILE_MODE)\n",
        "",
        ["test_files.py::test_modes_are_0640_and_0750_whatever_the_umask"],
    ),
    "a segment that was only found now is read at once": (
        READER,
        "for segment in ordered[:end]]",
        "for segment in ordered]",
        ["test_follow.py::test_what_is_only_found_now_is_read_at_the_next_look"],
    ),
    "what follows is read from the start again": (
        READER,
        "            segment.read_bytes = size\n",
        "            segment.frame = None\n",
        ["test_follow.py::test_after_the_newest_lines_comes_what_follows"],
    ),
    "a leftover is read and not what was recovered from it": (
        READER,
        "if (path := self._sealed_path(segment)) and files.exists(path):",
        "if False:",
        ["test_reader.py::test_what_was_recovered_is_read_in_its_place_while_its_leftover_stands"],
    ),
    "the newest file is pruned": (
        "storage/retention.py",
        "                if found is None or held is None:\n",
        "                held = found and dataclasses.replace(found)\n                if found is None:\n",
        ["test_retention.py::test_the_newest_never_goes"],
    ),
    "verify does not ask for the end of a file": (
        "storage/verification.py",
        "elif is_empty or frame.ending in (Ending.OPEN, Ending.TORN):",
        "elif is_empty:",
        ["test_verify.py::test_a_file_cut_anywhere_is_truncated_and_what_was_whole_is_salvaged"],
    ),
}
