"""`netwatch loadtest` whole: its options, what it prints and writes, its exit code, and that it can fail."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from netwatch import cli
from netwatch.loadtest.chaos import Server
from netwatch.loadtest.client import Load
from netwatch.loadtest.command import TARGETS, add_arguments
from netwatch.loadtest.ledger import Ledger
from netwatch.loadtest.reports import Reports
from netwatch.loadtest.requests import Requests, address
from netwatch.loadtest.summary import histogram, percentiles_ms, summarize, table
from netwatch.loadtest.tally import Tally
from netwatch.loadtest.trial import expectations, run_trial
from tests.stand_in import stand_in

ROOT = Path(__file__).parents[1]


def parsed(options: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--mix", "small=1", *options])


def run(options: Sequence[str], command: Sequence[str]) -> int:
    """The load test in this process, with a command of ours for the server."""
    return run_trial(parsed(options), command)


def netwatch(*options: str | Path, code: int = 0) -> str:
    """The load test as a user runs it; what it prints."""
    command = [sys.executable, "-m", "netwatch", "loadtest", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100, check=False)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "give the address of a running server, or --serve"),
        (["127.0.0.1:8080"], "not an http:// or https:// address: 127.0.0.1:8080"),
        (["http://127.0.0.1:99999"], "Port out of range"),
        (["http://a", "http://b"], "give the address of a running server"),
        (["--serve", "http://127.0.0.1:1"], "not both"),
        (["--serve", "--audit", "data"], "choose it with --data-dir"),
        (["http://127.0.0.1:1", "--kill", "writer"], "need --serve"),
        (["http://127.0.0.1:1", "--audit", "nowhere"], "there is no data directory nowhere"),
        (["--serve", "--kills", "3"], "--kills needs --kill"),
        (["--serve", "--kill", "router"], "invalid choice"),
        (["--serve", "--mix", "small=1,tiny=2"], "not sizes"),
        (["--serve", "--mix", "small=0"], "not sizes"),
        (["--serve", "--mix", "small=1,small=1"], "not sizes"),
        (["--serve", "--size", "small", "--mix", "large=1"], "--size or --mix"),
        (["--serve", "--bad", "1.5"], "not a share from 0 to 1"),
        (["--serve", "--rate", "0"], "not a positive number"),
        (["--serve", "--rate", "nan"], "not a positive number"),
        (["--serve", "--clients", "0"], "not a number from 1 on"),
        (["--serve", "--plot", "plot.pdf"], "not a file that ends in .png or .svg"),
        (["--serve", "--clients", "99999999"], "open files"),
    ],
)
def test_wrong_usage_is_refused_with_a_sentence(
    capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["loadtest", *options])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_plot_without_its_library_is_refused_before_the_load() -> None:
    script = "import sys; sys.modules['matplotlib'] = None; from netwatch.cli import main; main()"
    command = [sys.executable, "-c", script, "loadtest", "--serve", "--plot", "x.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=20, check=False)
    assert done.returncode == 2
    assert "pip install 'netwatch[plot]'" in done.stderr


def test_a_file_that_cannot_be_written_and_a_server_that_is_not_there_are_failures() -> None:
    for option in ("--log", "--json", "--server-log"):
        netwatch("--serve", option, "/nowhere/file", code=2)
    assert "FAILED nothing: no request was answered 200, but {'refused'" in netwatch(
        "http://127.0.0.1:1", "--duration", "0.1", code=1
    )
    netwatch("--serve", "--duration", "0.1", "--", "--workers", "none", code=1)


def test_whole_run_against_a_server_that_stores_nothing_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--serve", "--data-dir", str(tmp_path / "data"), "--clients", "4", "--duration", "0.3"]
    start_s = time.monotonic()
    assert run([*options, "--expect-only-200", "--json", str(tmp_path / "json")], stand_in("good")) == 1
    summary = json.loads((tmp_path / "json").read_text())
    assert summary["audit"]["missing"] == summary["reports"]["sent"] > 10
    assert [failure.partition(":")[0] for failure in summary["failures"]] == ["audit", "missing"]
    assert "FAILED missing: " in capsys.readouterr().out
    assert time.monotonic() - start_s < 10


# Runs the server, and when that has stopped for the first time, loses 2 lines of what it stored, doubles 3, alters 4
# with a right crc, and adds 1 that nobody sent and 1 with a wrong crc.
SPOILER = """
import json, pathlib, signal, subprocess, sys, zlib
data_dir = pathlib.Path(sys.argv[sys.argv.index("--data-dir") + 1])
server = subprocess.Popen([sys.executable, "-m", "netwatch", "serve", *sys.argv[1:]])
signal.signal(signal.SIGTERM, lambda *_: server.terminate())
code = server.wait()
mark = data_dir.parent / "spoilt"
if not mark.exists():
    mark.touch()
    path = next(data_dir.glob("reports/*/*.zst"))
    lines = subprocess.run(["zstd", "-dc", path], stdout=subprocess.PIPE, check=True).stdout.splitlines(True)
    assert len(lines) > 20
    def edit(line, old, new):
        body = line.rpartition(b',"crc"')[0].replace(old, new, 1)
        return body + b',"crc":"%08x"}\\n' % zlib.crc32(body)
    lines[5:9] = [edit(line, b'"status":"', b'"status":"x') for line in lines[5:9]]
    lines[12] = lines[12].replace(b'"crc":"', b'"crc":"0')[:-4] + b'"}\\n'
    lines += [*lines[13:16], edit(lines[16], b'"clientId":"', b'"clientId":"x')]
    del lines[2:4]
    packed = subprocess.run(["zstd", "-c"], input=b"".join(lines), stdout=subprocess.PIPE, check=True).stdout
    path.write_bytes(packed)
sys.exit(code)
"""


def test_whole_run_counts_each_fault_that_is_planted_in_what_a_real_server_stored(tmp_path: Path) -> None:
    options = ["--serve", "--workers", "1", "--data-dir", str(tmp_path / "data"), "--clients", "2", "--duration", "0.5"]
    options += ["--server-log", str(tmp_path / "log"), "--json", str(tmp_path / "json")]
    assert run(options, [sys.executable, "-c", SPOILER]) == 1
    found = json.loads((tmp_path / "json").read_text())["audit"]
    planted = {"missing": 2, "doubled": 3, "altered": 4, "unexpected": 1, "bad_crc": 1}
    assert {name: found[name] for name in planted} == planted
    assert (found["bad_line"], found["broken_file"], found["leftover"]) == (0, 0, 0)


def test_whole_run_with_everything_at_once(tmp_path: Path) -> None:
    """Keys, kills, bad reports, all sizes, compressed NDJSON, a rate, hasty clients, a token: all is well."""
    options = ["--serve", "--workers", "2", "--clients", "8", "--duration", "30", "--rate", "200", "--batch", "4"]
    options += ["--mix", "small=8,medium=3,large=1", "--encoding", "zstd", "--bad", "0.1", "--new-connections", "0.25"]
    options += ["--keys", "--token", "s3cret-of-16-and-more", "--kill", "worker", "--every", "0.6", "--kills", "3"]
    options += ["--json", str(tmp_path / "json"), "--plot", str(tmp_path / "plot.svg"), "--log", str(tmp_path / "log")]
    options += ["--server-log", str(tmp_path / "server.log"), "--data-dir", str(tmp_path / "data")]
    shown = netwatch(
        *options, "--expect-only-200", "--", "--tokens", "load:s3cret-of-16-and-more", "--seal-after-s", "1"
    )
    assert "all is well" in shown
    summary: dict[str, Any] = json.loads((tmp_path / "json").read_text())
    sent, stored = summary["reports"]["sent"], summary["reports"]["200"]
    answered = summary["requests"]["200"] + summary["requests"].get("400", 0)  # one all of whose four are bad
    assert (sent, answered) == (4 * summary["requests"]["sent"], summary["requests"]["sent"])
    assert sent == stored + summary["reports"]["rejected"]
    assert 0.05 < summary["reports"]["rejected"] / sent < 0.15
    assert summary["audit"]["of_this_run"] == stored > 100
    assert summary["kills"] == {"worker": 3}
    assert sum(count for _, count in summary["histogram"]) == summary["requests"]["sent"]
    assert sum(summary["each_second"]["stored"]) == stored
    assert list(summary["latency_ms"]) == ["p50", "p90", "p99", "p99.9", "max"]
    assert sorted(summary["latency_ms"].values()) == list(summary["latency_ms"].values())
    assert summary["mb_per_s"] > summary["wire_mb_per_s"] > 0
    assert len((tmp_path / "log").read_text().splitlines()) == summary["requests"]["sent"] + sum(
        summary["retried"].values()
    )
    plot = (tmp_path / "plot.svg").read_text()
    assert plot.startswith("<?xml")
    assert plot.count("<path") > len(summary["histogram"])


def test_bad_reports_alone_are_all_rejected_and_none_is_stored(tmp_path: Path) -> None:
    """Each request is 400, as it must be, so that is what --expect-only-200 takes."""
    options = ["--serve", "--workers", "1", "--bad", "1", "--duration", "0.5", "--expect-only-200"]
    netwatch(*options, "--json", tmp_path / "json", "--plot", tmp_path / "plot.png")
    summary = json.loads((tmp_path / "json").read_text())
    assert summary["reports"] == {"sent": summary["requests"]["400"], "rejected": summary["requests"]["400"]}
    assert (summary["audit"]["lines"], summary["mb_per_s"]) == (0, 0)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("rate", [100.0, 0.0])
def test_latency_counts_from_the_time_a_request_was_due_so_that_a_stall_shows(tmp_path: Path, rate: float) -> None:
    """A server that is frozen for a second: a hundred requests were due in it. Clients that send the next request when
    the last was answered would have hidden all but theirs."""
    failures: list[str] = []
    server = Server(stand_in("good"), tmp_path, failures)
    server.start()
    try:
        assert server.wait_ready()
        ledger, target = Ledger("0a1b2c3d", 4), address(server.url)
        load = Load(target, Requests(target, Reports(1, {"small": 1}), ledger), ledger, rate=rate)

        async def freeze() -> None:
            frozen = asyncio.create_task(load.run(2.0))
            await asyncio.sleep(0.5)
            os.kill(server.pid, signal.SIGSTOP)
            await asyncio.sleep(1.0)
            os.kill(server.pid, signal.SIGCONT)
            await frozen

        asyncio.run(freeze())
    finally:
        server.kill_all()
    slow_total = sum(latency_s > 0.2 for latency_s in load.tally.latencies_s)
    assert max(load.tally.latencies_s) > 0.9
    if rate:
        assert load.tally.requests.total() + load.tally.unsent_total == 200
        assert slow_total > 50  # at least those that were due more than 0.2 s before the end of the stall
        assert percentiles_ms(load.tally.latencies_s)["p90"] > 500
    else:
        assert slow_total < load.tally.requests.total() / 5


def test_a_terminal_sees_how_far_it_is_and_a_file_does_not() -> None:
    command = [sys.executable, "-m", "netwatch", "loadtest", "http://127.0.0.1:1", "--duration", "1.2"]
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT, timeout=20, check=False)
        os.close(theirs)
        shown = terminal.read(4096).decode()
    assert "█" in shown
    assert "/1 s  0 reports/s" in shown
    assert shown.endswith("\r\x1b[K")
    assert b"\x1b" not in done.stdout
    assert subprocess.run(command, capture_output=True, cwd=ROOT, timeout=20, check=False).stderr == b""


@pytest.mark.parametrize(
    ("tally", "failed"),
    [
        (Tally(), ["nothing"]),
        (Tally(requests=Counter({503: 5})), ["nothing", "expected only 200"]),
        (Tally(requests=Counter({200: 5})), []),
        (Tally(requests=Counter({200: 5, 400: 1})), ["expected only 200"]),
        (Tally(requests=Counter({200: 5, 400: 1}), bad_requests_total=1), []),
        (Tally(requests=Counter({200: 5, 400: 2}), bad_requests_total=1), ["expected only 200"]),
        (Tally(requests=Counter({200: 5}), unsent_total=1), ["expected only 200"]),
        (Tally(requests=Counter({200: 5}), retried=Counter({503: 1})), []),
        (Tally(requests=Counter({200: 5}), retried=Counter({"cut": 1})), ["expected no cut"]),
        (Tally(requests=Counter({200: 5}), dropped_total=1), ["expected no cut"]),
        (Tally(requests=Counter({200: 5}), retried=Counter({"timeout": 1})), ["latency"]),
        (Tally(requests=Counter({200: 5}), latencies_s=array("f", [0.1, 0.6])), ["latency"]),
        (Tally(requests=Counter({200: 5}), anomalies=["odd"], anomalies_total=1), ["anomaly"]),
    ],
)
def test_what_the_clients_must_not_see_is_a_failure(tally: Tally, failed: list[str]) -> None:
    options = ["URL", "--expect-only-200", "--expect-no-cut", "--max-latency-s", "0.5"]
    assert [failure.partition(":")[0] for failure in expectations(parsed(options), tally)] == failed


def test_percentiles_and_histogram_hold_every_latency() -> None:
    latencies_s = array("f", [0.001 * number for number in range(1, 1001)])
    assert percentiles_ms(latencies_s) == pytest.approx(
        {"p50": 501, "p90": 901, "p99": 991, "p99.9": 1000, "max": 1000}, abs=0.01
    )
    bins = histogram(latencies_s)
    assert sum(count for _, count in bins) == 1000
    for below_ms, _ in bins[:-1]:
        counted = sum(count for edge_ms, count in bins if edge_ms <= below_ms)
        assert counted == pytest.approx(sum(1000 * latency_s < below_ms for latency_s in latencies_s), abs=1)
    assert (percentiles_ms(array("f")), histogram(array("f"))) == ({}, [])
    assert histogram(array("f", [0.0]))


def test_the_table_of_a_run_that_sent_nothing_can_be_printed() -> None:
    summary = summarize("0a1b2c3d", {"clients": 1}, Tally(), 0.0, None, None, ["nothing: was sent"])
    assert list(table(summary))[-1] == "FAILED nothing: was sent"


def test_help_says_what_can_be_killed() -> None:
    shown = netwatch("--help")
    assert all(target in shown for target in (*TARGETS, "mix"))


def test_an_interrupt_ends_its_server_too(tmp_path: Path) -> None:
    options = ["--serve", "--workers", "1", "--data-dir", str(tmp_path / "data"), "--duration", "60"]
    command = [sys.executable, "-m", "netwatch", "loadtest", *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as load:
        assert load.stderr is not None
        line = next(line for line in load.stderr if "server_started" in line)
        load.send_signal(signal.SIGTERM)
        assert "interrupted" in load.stderr.read()  # ends when the last process of the server has
        assert load.wait(20) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(json.loads(line)["pid"], 0)
