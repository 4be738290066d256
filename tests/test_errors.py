from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from netwatch.errors import ERRORS, Overloaded, Refused, Rejected, StartError

PACKAGE = Path(__file__).parents[1] / "netwatch"

# Clients lose data on these (they drop it, or send it again for ever), or they belong to other protocols.
NEVER = {207, 408, 422, 507}


def test_every_code_is_stable_in_form_and_has_a_status_that_is_meant() -> None:
    for code, (status, title) in ERRORS.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]+", code)
        assert 400 <= status < 600 or (code, status) == ("kind_ignored", 204)  # the one that no sender need know
        assert status not in NEVER
        assert title
        assert not title.endswith(".")


def test_only_a_fault_of_the_server_is_500() -> None:
    assert [code for code, (status, _) in ERRORS.items() if status == 500] == ["internal"]


def test_every_code_is_used_and_every_code_used_is_declared() -> None:
    used = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name == "errors.py" or "loadtest" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in ERRORS:
                used.add(node.value)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                code = node.args[0]
                if node.func.id in ("Refused", "Rejected", "Overloaded", "Unstored") and isinstance(code, ast.Constant):
                    assert code.value in ERRORS, f"{path.name}: {code.value!r}"
    assert set(ERRORS) - used == set()


@pytest.mark.parametrize("code", ERRORS)
def test_a_refusal_carries_what_its_answer_needs(code: str) -> None:
    error = Refused(code, "Do this.", members={"limit": 5}, headers={"X": "1"})
    assert error.status == ERRORS[code][0]
    assert (error.code, error.detail, error.members, error.headers) == (code, "Do this.", {"limit": 5}, {"X": "1"})
    assert str(error) == "Do this."
    assert (Refused(code, "").members, Refused(code, "").headers) == ({}, {})


def test_backpressure_says_when_to_come_back_in_whole_seconds() -> None:
    assert Overloaded("overloaded", "Later.").headers == {"Retry-After": "1"}
    error = Overloaded("disk_full", "Later.", retry_after_s=10)
    assert isinstance(error, Refused)
    assert (error.headers, error.status) == ({"Retry-After": "10"}, 503)


def test_a_code_that_is_not_declared_cannot_be_raised() -> None:
    with pytest.raises(KeyError):
        Refused("no_such_code", "")


def test_a_rejection_says_where() -> None:
    error = Rejected("invalid_member", "Why.", "/hosts/0")
    assert (error.code, error.detail, error.pointer, str(error)) == ("invalid_member", "Why.", "/hosts/0", "Why.")
    assert Rejected("invalid_json", "Why.").pointer == ""


def test_a_start_error_is_the_sentence_and_the_exit_code() -> None:
    assert (str(StartError("No.")), StartError("No.").exit_code, StartError("No.", 2).exit_code) == ("No.", 1, 2)
