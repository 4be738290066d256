from __future__ import annotations

import uuid

import pytest

from netwatch.reports import Key
from netwatch.storage.window import Window

PLAIN = b"0193a5b0-0000-7000-8000-000000000001"


def digest(number: int) -> bytes:
    return Key("", f"key-{number}").digest


def line_id(number: int) -> bytes:
    return Key("", f"key-{number}").id(0).encode()


def test_a_key_is_known_from_its_claim_to_the_windows_end() -> None:
    window = Window(10.0, 5)
    assert window.first_id(digest(1), 0.0) is None
    window.claim({digest(1): "first"}, 100.0)
    assert window.first_id(digest(1), 100.0) == "first"
    assert window.first_id(digest(1), 109.9) == "first"
    assert window.first_id(digest(1), 110.0) is None
    assert window.first_id(digest(2), 100.0) is None


def test_a_key_that_is_claimed_again_begins_anew() -> None:
    window = Window(10.0, 2)
    window.claim({digest(1): "first"}, 0.0)
    window.claim({digest(2): "second"}, 1.0)
    window.claim({digest(1): "again"}, 2.0)
    window.claim({digest(3): "third"}, 3.0)
    assert [window.first_id(digest(number), 11.5) for number in (1, 2, 3)] == ["again", None, "third"]


def test_the_oldest_keys_are_forgotten_first_and_memory_is_bounded() -> None:
    window = Window(10.0, 3)
    for number in range(10):
        window.claim({digest(number): str(number)}, float(number) / 10)
    assert [number for number in range(10) if window.first_id(digest(number), 1.0)] == [7, 8, 9]
    assert len(window._keys) == 3
    window.claim({digest(number): str(number) for number in range(20, 30)}, 2.0)
    assert [number for number in range(30) if window.first_id(digest(number), 2.0)] == [27, 28, 29]


def test_keys_beyond_the_window_take_no_memory_after_the_next_claim() -> None:
    window = Window(10.0, 100)
    for number in range(50):
        window.claim({digest(number): str(number)}, 0.0)
    window.claim({digest(99): "99"}, 10.0)
    assert len(window._keys) == 1


def test_a_window_of_no_keys_knows_none() -> None:
    window = Window(10.0, 0)
    window.claim({digest(1): "first"}, 0.0)
    window.learn([line_id(1)], 0.0)
    assert window.first_id(digest(1), 0.0) is None
    assert line_id(1) not in window.ids


def test_of_what_recovery_read_the_ids_of_lines_with_a_key_are_kept() -> None:
    window = Window(10.0, 5)
    window.learn([PLAIN, line_id(1), line_id(2)], 0.0)
    assert [known in window.ids for known in (PLAIN, line_id(1), line_id(2), line_id(3))] == [False, True, True, False]
    window.learn([line_id(3)], 10.0)
    assert [known in window.ids for known in (line_id(1), line_id(2), line_id(3))] == [False, False, True]
    window.learn([line_id(number) for number in range(10, 20)], 10.0)
    assert len(window._ids) == 5


def test_what_recovery_read_is_forgotten_with_the_window_too() -> None:
    window = Window(10.0, 5)
    window.learn([line_id(1), line_id(2)], 0.0)
    window.learn([line_id(1)], 5.0)
    assert window.first_id(digest(3), 10.0) is None
    assert [known in window.ids for known in (line_id(1), line_id(2))] == [True, False]


# The ids that follow from a key


def test_the_ids_of_a_key_are_uuids_of_version_8_and_the_same_everywhere() -> None:
    key = Key("agents", "5f6c")
    assert key.id(0) == "a75f206d-c565-815b-85c4-710d2f170f17"  # from SHA-256 of "6:agents:5f6c:0", for ever
    for index in (0, 1, 9999):
        made = uuid.UUID(key.id(index))
        assert (made.version, made.variant) == (8, uuid.RFC_4122)
        assert Key("agents", "5f6c").id(index) == str(made)
    assert Key("agents", "5f6c").digest == key.digest
    assert len(key.digest) == 16


@pytest.mark.parametrize(
    "other", [("", "5f6c"), ("pages", "5f6c"), ("agents", "5f6d"), ("agent", "s5f6c"), ("agents:5", "f6c"), ("a", "")]
)
def test_another_token_or_key_has_other_ids(other: tuple[str, str]) -> None:
    key, another = Key("agents", "5f6c"), Key(*other)
    assert key.digest != another.digest
    assert not {key.id(index) for index in range(20)} & {another.id(index) for index in range(20)}


def test_a_key_that_ends_in_a_number_is_not_anothers_index() -> None:
    assert len({Key("", key).id(index) for key in ("k", "k1", "k:1", "k:") for index in (0, 1, 11)}) == 12
