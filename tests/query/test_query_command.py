"""`netwatch query`: which files it reads, how it writes an answer, and what it says when it cannot."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from netwatch.cli import main
from netwatch.query import sources
from netwatch.query.questions import questions
from netwatch.query.sources import Span
from netwatch.reports import Lines
from netwatch.storage.files import Files
from tests.doubles import made_store
from tests.system.server import wait_until

START_S = 1_795_342_800  # 2026-11-22T10:20:00Z
MIB = 1024 * 1024
LINES = Lines("host1", max_report_bytes=16 * MIB, max_depth=32)


def line(second: float, client: str, **more: object) -> bytes:
    report = {"clientId": client, "hosts": [], **more}
    return LINES.line(json.dumps(report).encode(), int((START_S + second) * 1e9))


def stored(path: Path, segments: list[list[bytes]]) -> Path:
    """A data directory with a sealed file for each list of lines."""
    path.mkdir()
    root = os.open(path, os.O_RDONLY)
    store = made_store(Files(root))
    store.start(0.0)
    for lines in segments:
        store.commit(lines, 0.0)
        store.seal("asked")
        store.tend(0.0)
    assert store.close(0.0)
    os.close(root)
    return path


def at(second: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(START_S + second)) + "Z"


@pytest.fixture(scope="module")
def minutes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file a minute for two hours, each with a line of its start and one of 55 s later."""
    path = tmp_path_factory.mktemp("minutes") / "da[t]a*"  # a name that DuckDB would take for a pattern
    stored(path, [[line(60 * n, f"start {n}"), line(60 * n + 55, f"end {n}")] for n in range(120)])
    for file in path.rglob("*.zst"):
        os.utime(file, (START_S, START_S))
    for directory in (path / "reports").iterdir():
        os.utime(directory, (START_S, START_S))
    return path


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    assert main(["query", *arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("netwatch: ")
    assert "Traceback" not in printed.err
    return printed.err


def test_what_the_command_line_names_wins_over_the_environment(
    minutes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETWATCH_BUCKET", "no bucket's URL")
    count = "SELECT count(*) AS n FROM reports"
    assert main(["query", count, "--data-dir", str(minutes), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"n": 240}
    monkeypatch.setenv("NETWATCH_DATA_DIR", str(minutes))
    assert "no bucket's URL" in refused(capsys, 2, count), "of the two variables, the bucket's"
    assert "--bucket cannot be 'nowhere'" in refused(capsys, 2, count, "--bucket", "nowhere")
    assert "Name the bucket" in refused(capsys, 2, count, "--bucket", "")
    assert "not both" in refused(capsys, 2, count, "--bucket", "s3://telemetry", "--data-dir", str(minutes))


def test_without_a_question_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query"]) == 0
    printed = capsys.readouterr().out
    assert [row.split()[0] for row in printed.splitlines()] == list(questions())
    assert "(--since 1h)" in printed


def test_sql_shows_a_question_to_change_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", "errors", "--sql"]) == 0
    assert capsys.readouterr().out == questions()["errors"].sql


@pytest.mark.parametrize(
    ("since", "until"), [(None, None), (0, 7200), (1800, 1860), (1830, 3661), (None, 125), (3600, None), (54.5, 55.5)]
)
def test_only_what_was_received_in_the_time_is_asked_about(
    minutes: Path, capsys: pytest.CaptureFixture[str], since: float | None, until: float | None
) -> None:
    bounds = [f"--since={at(since)}"] if since is not None else []
    bounds += [f"--until={at(until)}"] if until is not None else []
    assert main(["query", "SELECT client FROM reports", "--data-dir", str(minutes), *bounds]) == 0
    clients = {json.loads(row)["client"] for row in capsys.readouterr().out.splitlines()}
    seconds = {f"start {n}": 60 * n for n in range(120)} | {f"end {n}": 60 * n + 55 for n in range(120)}
    low, high = int(since or 0), int(1e9 if until is None else until)
    assert clients == {client for client, second in seconds.items() if low <= second < high}


@pytest.mark.parametrize(("since", "until", "files"), [(3600, 3660, (3, 5)), (None, 60, (2, 2)), (7000, None, (4, 6))])
def test_only_files_that_can_hold_it_are_read(
    minutes: Path, since: float | None, until: float | None, files: tuple[int, int]
) -> None:
    span = Span(since and START_S + since, until and START_S + until)
    root = os.open(minutes, os.O_RDONLY)
    try:
        paths = sources.local_paths(Files(root), span)
        assert len(sources.local_paths(Files(root), Span())) == 120
    finally:
        os.close(root)
    assert files[0] <= len(paths) <= files[1], paths


def test_a_file_that_was_changed_since_is_read_whatever_its_name_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stored(tmp_path / "data", [[line(0, "old"), line(7200, "its clock was stepped")]])
    assert main(["query", "SELECT client FROM reports", "--data-dir", str(path), "--since", at(3600)]) == 0
    assert [json.loads(row)["client"] for row in capsys.readouterr().out.splitlines()] == ["its clock was stepped"]


def test_days_are_pruned_with_a_margin_for_midnight() -> None:
    noon, midnight = 1_795_348_800, 1_795_392_000
    assert Span(noon, noon + 60).days() == ["2026-11-21", "2026-11-22", "2026-11-23"]
    assert Span(midnight + 30, midnight + 60).days() == ["2026-11-22", "2026-11-23", "2026-11-24"]
    assert Span(None, noon).days() is None


def test_a_client_is_silent_after_a_quarter_of_an_hour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(tmp_path / "data", [[line(0, "silent"), line(1, "lives"), line(2, "silent"), line(600, "lives")]])
    silent = {}
    for second in (900, 902, 1499, 1500):
        assert main(["query", "silent-clients", "--data-dir", str(path), "--until", at(second)]) == 0
        silent[second] = [json.loads(row)["client"] for row in capsys.readouterr().out.splitlines()]
    assert silent == {900: [], 902: ["silent"], 1499: ["silent"], 1500: ["lives", "silent"]}


def test_json_csv_and_parquet_hold_the_same(
    data: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    statement = "SELECT id, received_at, client, address, kind = 'report' AS is_report FROM reports ORDER BY id"

    def write(form: str) -> bytes:
        assert main(["query", statement, "--data-dir", str(data), "--format", form]) == 0
        return capsysbinary.readouterr().out

    objects = [json.loads(row) for row in write("json").splitlines()]
    assert len(objects) > 100
    rows = list(csv.DictReader(io.StringIO(write("csv").decode())))
    assert [row["id"] for row in rows] == [row["id"] for row in objects]
    assert {row["address"] for row in rows} == {""}
    assert {row["is_report"] for row in rows} == {"true", "false"}
    assert [row["received_at"] for row in rows] == [row["received_at"] for row in objects]
    (tmp_path / "answer.parquet").write_bytes(write("parquet"))
    read = duckdb.execute(
        f"SELECT id, strftime(received_at, '%xT%H:%M:%S.%fZ') FROM '{tmp_path}/answer.parquet' ORDER BY id"
    )
    assert read.fetchall() == [(row["id"], row["received_at"]) for row in objects]


def test_a_table_on_a_terminal_shows_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(tmp_path / "data", [[line(0, "\x1b[31mred\n\u202e"), line(1, "plain")]])
    statement = "SELECT client, received_at, 1234.5 AS ms FROM reports ORDER BY received_at"
    assert main(["query", statement, "--data-dir", str(path), "--format", "table"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "client               received_at               ms",
        "───────────────────  ───────────────────  ───────",
        "\\x1b[31mred\\n\\u202e  2026-11-22 10:20:00  1,234.5",
        "plain                2026-11-22 10:20:01  1,234.5",
    ]


def test_a_long_table_says_that_there_is_more(minutes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", "FROM range(1001)", "--data-dir", str(minutes), "--format", "table"]) == 0
    assert len(printed := capsys.readouterr().out.splitlines()) == 1003
    assert "json" in printed[-1]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_plot_is_drawn(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    path = tmp_path / f"latency.{suffix}"
    assert main(["query", "percentiles", "--data-dir", str(data), "--plot", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    if suffix == "svg":
        text = path.read_text()
        assert all(f"<!-- {label} -->" in text for label in ("p50_ms", "p95_ms", "p99_ms", "host-0", "percentiles"))


def test_a_plot_that_cannot_be_written_says_what_to_do(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data-dir", str(data), "--plot", str(tmp_path / "missing" / "a.png")]
    assert "Give --plot a file in a directory that is there" in refused(capsys, 1, "percentiles", *flags)


def test_a_plot_without_a_time_is_refused(minutes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data-dir", str(minutes), "--plot", str(tmp_path / "a.png")]
    assert "--plot needs rows with a time and a number" in refused(capsys, 2, "SELECT 1 AS a", *flags)
    assert "has no rows" in refused(capsys, 1, "FROM reports WHERE false", *flags)


def test_an_unknown_question_names_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Ask one of availability, errors, percentiles," in refused(capsys, 2, "latencies")


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT hots FROM samples", 'Referenced column "hots" not found'),
        ("SELECT * FROM sample", "Did you mean"),
        ("", "The statement is empty"),
        (";", "The statement is empty"),
    ],
)
def test_bad_sql_is_wrong_usage_and_said_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], statement: str, says: str
) -> None:
    path = stored(tmp_path / "data", [[line(0, "one")]])
    (file,) = (path / "reports").rglob("*.zst")
    file.write_bytes(b"not zstd")
    assert says in refused(capsys, 2, statement, "--data-dir", str(path))


def test_a_statement_that_fails_on_the_way_is_a_failure(minutes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, 1, "SELECT client::INT FROM reports", "--data-dir", str(minutes))
    assert "Could not convert string 'start 0' to INT32" in said or "Could not convert string" in said


def test_no_files_are_said_with_where_and_why(
    minutes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path / "data", [])
    said = refused(capsys, 1, "errors", "--data-dir", str(tmp_path / "data"))
    assert said == (
        f"netwatch: There is no sealed file in {tmp_path}/data in that time (--since, --until); "
        "an open segment is read once it is sealed.\n"
    )
    said = refused(capsys, 1, "errors", "--data-dir", str(minutes), "--since", "2026-11-22T18:00:00Z")
    assert "in that time" in said
    assert "Name the server's (--data-dir)" in refused(capsys, 2, "errors", "--data-dir", str(tmp_path / "none"))
    assert "is no data directory" in refused(capsys, 2, "errors", "--data-dir", str(tmp_path))


def test_a_broken_file_is_said_with_what_finds_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(tmp_path / "data", [[line(n, f"client {n}") for n in range(2000)]])
    (file,) = (path / "reports").rglob("*.zst")
    good = file.read_bytes()
    flags = ["SELECT md5(string_agg(report::VARCHAR ORDER BY id)) FROM reports", "--data-dir", str(path)]
    assert main(["query", *flags]) == 0
    answer = capsys.readouterr().out
    flipped = [*range(8), *range(8, len(good), len(good) // 12)]
    harmless = 0
    for position in flipped:
        file.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        if main(["query", *flags]) == 0:  # a bit of the header that only says how much memory a reader needs
            harmless += 1
            assert capsys.readouterr().out == answer
        else:
            assert "netwatch verify says which" in capsys.readouterr().err
    assert harmless <= 1
    file.write_bytes(good[: len(good) // 2])  # what is cut off between two lines cannot be missed
    assert "netwatch verify says which" in refused(capsys, 1, *flags)


def test_a_file_that_is_pruned_meanwhile_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(tmp_path / "data", [[line(0, "one")], [line(1, "two")]])
    list_paths = sources.local_paths

    def listed_and_pruned(files: Files, span: Span) -> list[str]:
        paths = list_paths(files, span)
        (path / paths[0]).unlink()
        return paths

    monkeypatch.setattr(sources, "local_paths", listed_and_pruned)
    said = refused(capsys, 1, "SELECT count(*) FROM reports", "--data-dir", str(path))
    assert "A file was deleted while it was asked about" in said


@pytest.mark.parametrize("longest_bytes", [2 * MIB, 5 * MIB])
def test_a_longer_line_than_told_is_said_and_read_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], longest_bytes: int
) -> None:
    path = stored(tmp_path / "data", [[line(0, "a"), line(1, "long", padding="x" * longest_bytes), line(2, "b")]])
    flags = ["--data-dir", str(path)]
    statement = "SELECT client, strlen(report::VARCHAR) AS bytes FROM reports ORDER BY received_at"
    assert "--max-line-bytes" in refused(capsys, 1, statement, *flags)
    assert main(["query", statement, *flags, "--max-line-bytes", str(16 * MIB)]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [row["client"] for row in rows] == ["a", "long", "b"]
    assert rows[1]["bytes"] > longest_bytes


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--memory-limit", "lots"], "--memory-limit cannot be 'lots'"),
        (["--memory-limit", "1MiB"], "The answer needs more memory than --memory-limit 1MiB"),
        (["--since", "1h", "--until", "2h"], "--since must be before --until"),
    ],
)
def test_wrong_flags_are_said(data: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str) -> None:
    code = 1 if "memory than" in says else 2
    assert says in refused(capsys, code, "errors", "--data-dir", str(data), *flags)


@pytest.mark.parametrize("flags", [["--plot", "a.pdf"], ["--max-line-bytes", "10"], ["--until", "soon"]])
def test_flags_that_make_no_sense_are_refused_by_the_parser(
    capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["query", "errors", *flags])
    assert ended.value.code == 2
    assert re.search(rf"error: argument {flags[0]}: give ", capsys.readouterr().err)


def test_it_spills_to_a_directory_that_goes_and_is_silent_for_who_has_seen_enough(
    minutes: Path, tmp_path: Path
) -> None:
    environ = os.environ | {"TMPDIR": str(tmp_path)}
    statement = "SELECT count(*) AS n FROM (SELECT DISTINCT md5(range::VARCHAR) FROM range(3000000))"
    flags = ["--data-dir", str(minutes), "--memory-limit", "100MiB"]
    command = [sys.executable, "-m", "netwatch", "query"]
    answer = subprocess.run([*command, statement, *flags], capture_output=True, text=True, env=environ, timeout=60)
    assert (answer.stdout, answer.stderr) == ('{"n":3000000}\n', "")
    assert list(tmp_path.iterdir()) == []
    piped = subprocess.run(
        ["bash", "-c", '"$@" | head -1', "-", *command, "FROM range(1000000)", *flags],
        capture_output=True,
        text=True,
        env=environ,
        timeout=60,
    )
    assert (piped.stdout, piped.stderr) == ('{"range":0}\n', "")
    assert list(tmp_path.iterdir()) == []


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_ctrl_c_ends_it_at_once_and_leaves_nothing(minutes: Path, tmp_path: Path) -> None:
    statement = "SELECT count(*) FROM range(10000000000) WHERE md5(range::VARCHAR) = 'no'"
    command = [sys.executable, "-m", "netwatch", "query", statement, "--data-dir", str(minutes)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": str(tmp_path)}, text=True
    ) as asking:
        assert wait_until(lambda: cpu_s(asking.pid) > 3, 60)  # it is at work, and done with importing
        asking.send_signal(signal.SIGINT)
        out, err = asking.communicate(timeout=10)
    assert (asking.returncode, out, err) == (130, "", "")
    assert list(tmp_path.iterdir()) == []


def test_the_places_in_a_line_are_where_the_views_look() -> None:
    text = line(0, "one")
    assert text[88:103] == b'"kind":"report"'
    browser = LINES.browser_line(b'{"type":"report","body":{}}', START_S * 10**9, "", b"", ("all",))
    assert browser[88:103] == b'"generatedAt":"'
    assert text[59:86] == browser[59:86] == b"2026-11-22T10:20:00.000000Z"
