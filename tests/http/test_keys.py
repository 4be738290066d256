from __future__ import annotations

import json

import pytest

from netwatch.queue import Stored
from netwatch.reports import Key
from tests.http.door import REPORT, Door, code_of, report

TOKENS = {"agents": "agents-token-0123456789", "pages": "pages-token-0123456789"}
BAD = b'{"clientId":5,"hosts":[]}'


def post(door: Door, key: str, body: bytes = REPORT, token: str = "") -> tuple[int, dict[str, object]]:
    headers = {"idempotency-key": key} | ({"authorization": f"Bearer {TOKENS[token]}"} if token else {})
    result = door.post(body, headers=headers)
    answer: dict[str, object] = json.loads(result.content)
    return result.status_code, answer


def ids(door: Door) -> list[str]:
    return [json.loads(line)["id"] for lines in door.link.stored for line in lines.splitlines()]


def test_the_ids_follow_from_the_key_and_the_place_in_the_body() -> None:
    door = Door()
    status, answer = post(door, "k", b"[%b,%b,%b]" % (report(0), BAD, report(2)))
    assert (status, answer["accepted"], answer["rejected"]) == (200, 2, 1)
    key = Key("", "k")
    assert ids(door) == [key.id(0), key.id(2)]
    assert answer["id"] == key.id(0)
    assert door.link.keys == [key.digest]


def test_without_a_key_the_link_is_told_of_none() -> None:
    door = Door()
    assert door.post(REPORT).status_code == 200
    assert door.link.keys == [b""]


def test_what_is_stored_already_is_answered_with_the_first_id_and_as_duplicates() -> None:
    door = Door()
    door.link.result = Stored(0, "0193a5b0-0000-7000-8000-000000000001")
    status, answer = post(door, "k", b"[%b,%b,1]" % (REPORT, REPORT))
    assert status == 200
    assert answer == {
        "id": "0193a5b0-0000-7000-8000-000000000001",
        "accepted": 0,
        "duplicates": 2,
        "rejected": 1,
        "durability": "synced",
        "errors": answer["errors"],
    }
    door.link.result = Stored(1, "0193a5b0-0000-7000-8000-000000000001")
    assert [post(door, "k", b"[%b,%b]" % (REPORT, REPORT))[1][name] for name in ("accepted", "duplicates")] == [1, 1]


@pytest.mark.parametrize("key", ["k", "!", "~", "x" * 128, "8c7a1f0e-2f47-4f4c-9f53-6f0f5f6b8b1d", 'a"b', "a,b;c=d"])
def test_a_key_is_the_same_with_and_without_quotes(key: str) -> None:
    door = Door()
    for header in (key, f'"{key}"', f" {key} "):
        assert post(door, header)[0] == 200
    assert set(door.link.keys) == {Key("", key).digest}
    assert len(set(ids(door))) == 1


@pytest.mark.parametrize(
    "key", ["", '""', "x" * 129, f'"{"x" * 129}"', "a b", '"a b"', "a\tb", "a\x7fb", "a\x01", "\xe9", '" "', " "]
)
def test_a_key_that_is_none_is_400_and_stores_nothing(key: str) -> None:
    door = Door()
    result = door.post(REPORT, headers={"idempotency-key": key})
    assert (result.status_code, code_of(result)) == (400, "invalid_key")
    assert door.link.stored == []


def test_keys_of_different_tokens_are_different_and_of_the_same_the_same() -> None:
    door = Door(tokens=TOKENS)
    for token in ("agents", "pages", "agents"):
        assert post(door, "k", token=token)[0] == 200
    assert door.link.keys == [Key(token, "k").digest for token in ("agents", "pages", "agents")]
    assert len(set(ids(door))) == 2


def test_a_report_with_an_id_of_its_own_gets_ours_all_the_same() -> None:
    door = Door()
    assert post(door, "k", b'{"clientId":"c","hosts":[],"id":"mine"}')[0] == 200
    assert ids(door) == [Key("", "k").id(0)]
    assert door.link.reports[0]["id"] == "mine"


@pytest.mark.parametrize("sent", [b"[]", BAD, b"["])
def test_a_request_that_stores_nothing_claims_no_key(sent: bytes) -> None:
    door = Door()
    post(door, "k", sent)
    assert door.link.keys == []


def test_browser_reports_have_no_keys() -> None:
    door = Door()
    headers = {"idempotency-key": "k", "content-type": "application/reports+json"}
    for _ in range(2):
        result = door.request("POST", "/api/v1/browser-reports", body=b'[{"type":"crash","body":{}}]', headers=headers)
        assert result.status_code == 204
    assert door.link.keys == [b"", b""]
    assert len(set(ids(door))) == 2
