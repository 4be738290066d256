"""Each named question against what Python makes of the same lines; `netwatch query` as its users run it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from netwatch.cli import main
from netwatch.query.questions import questions
from tests.query.expected import alike, answers, once, samples, stored_lines


def ask(capsys: pytest.CaptureFixture[str], data: Path, *arguments: str) -> list[dict[str, object]]:
    assert main(["query", *arguments, "--format", "json", "--data-dir", str(data)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_lines_hold_what_is_hard_about_them(data: Path) -> None:
    lines = stored_lines(data)
    assert len({line["server"] for line in lines}) == 2
    assert 20 < len(lines) - len(once(lines)) < len(lines) / 2, "reports that came to both hosts"
    expected = answers(lines, time.time() + 3600)
    assert {name: len(rows) > 1 for name, rows in expected.items()} == dict.fromkeys(questions(), True)
    assert len({row["available_percent"] for row in expected["availability"]}) > 3


@pytest.mark.parametrize("name", questions())
def test_a_question_is_answered_exactly(data: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s := int(time.time()) + 1800))
    answer = ask(capsys, data, name, "--since", "1h", "--until", until)
    assert alike(answer) == alike(answers(stored_lines(data), now_s)[name])


def test_the_samples_are_those_of_the_lines(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["host", "client", "received_at", "latency_ms", "error"]
    answer = ask(capsys, data, f"SELECT {', '.join(columns)} FROM samples")
    expected = [{column: row[column] for column in columns} for row in samples(stored_lines(data))]
    assert sorted(map(json.dumps, alike(answer))) == sorted(map(json.dumps, alike(expected)))


def test_the_time_of_a_sample_is_the_clients_and_null_when_it_is_none(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far, near = ask(
        capsys,
        data,
        "SELECT count(*) AS samples, count(time) AS times FROM samples GROUP BY client = 'far' ORDER BY samples",
    )
    assert (far["samples"], far["times"]) == (2, 0)
    assert near["samples"] == near["times"]
    (one,) = ask(capsys, data, "SELECT min(time) AS t FROM samples")
    assert str(one["t"]).startswith("2026-11-2")
    times = [row["t"] for row in samples(stored_lines(data)) if row["client"] != "far"]
    assert alike([one]) == [{"t": min(times) / 1000}]


def test_the_reports_are_those_of_the_lines(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(capsys, data, "SELECT id, received_at, generated_at, kind, server, client, report FROM reports")
    expected = {
        line["id"]: {
            "id": line["id"],
            "received_at": line["receivedAt"],
            "generated_at": line.get("generatedAt"),
            "kind": line["kind"],
            "server": line["server"],
            "client": line["report"].get("clientId"),
        }
        for line in once(stored_lines(data))
    }
    reports = {line["id"]: line["report"] for line in stored_lines(data)}
    assert {row["id"]: json.loads(str(row.pop("report"))) for row in answer} == reports
    assert {str(row["id"]): one for row, one in zip(answer, alike(answer), strict=True)} == {
        line_id: alike([row])[0] for line_id, row in expected.items()
    }


def test_browser_reports_weigh_what_they_stand_for(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(
        capsys,
        data,
        "SELECT kind, sampling_fraction AS share, any_value(weight) AS weight, count(DISTINCT weight) AS weights "
        "FROM browser_reports GROUP BY ALL ORDER BY ALL",
    )
    weights = {(row["kind"], row["share"]): row["weight"] for row in answer if row["weights"] == 1}
    nel = "network-error"
    assert weights == {
        ("csp-violation", None): 1.0,
        ("deprecation", None): 1.0,
        (nel, None): 1.0,
        (nel, 0.0): 1.0,
        (nel, 0.01): 100.0,
        (nel, 0.5): 2.0,
        (nel, 1.0): 1.0,
    }


def test_each_engine_has_the_same_questions() -> None:
    duckdb, clickhouse = questions("duckdb"), questions("clickhouse")
    assert list(duckdb) == list(clickhouse)
    assert [(one.title, one.since) for one in duckdb.values()] == [
        (one.title, one.since) for one in clickhouse.values()
    ]
