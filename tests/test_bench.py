"""The bench is believed when it says how fast something is; here it is shown what must count, and what must not."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from netwatch.bench import loads, open_loop
from netwatch.bench.__main__ import main
from netwatch.bench.bodies import SIZES, make_bodies, read_bodies, write_bodies
from netwatch.bench.machine import file_system, peer_version
from netwatch.bench.rounds import Bench, Cell, Lengths, Round, compression_ratio
from netwatch.bench.servers import Contestant, Server, Void, free_port
from netwatch.bench.stay import stay, stay_table
from netwatch.bench.table import medians, others_cpu_share, table
from tests import burner, peer_server

NETWATCH = Path(sys.executable).with_name("netwatch")
CELL = Cell("small", "synced", 2, 4)
WHOLE = dict(SIZES)
SHORT = Lengths(seconds=1, warmup_s=0)

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


def peer(*numbers: int) -> Contestant:
    command = "{python} -m tests.peer_server {address} " + " ".join(map(str, numbers))
    return Contestant("peer", command, takes_ndjson=False)


@pytest.fixture(autouse=True)
def few_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """17 MB of them take seconds to make."""
    monkeypatch.setitem(SIZES, "small", SIZES["small"]._replace(bodies=500))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, SHORT, 1, print)


@pytest.fixture
def listening() -> Iterator[peer_server.Server]:
    """One in this process, whose bodies can be looked at."""
    server = peer_server.Server(f"127.0.0.1:{free_port()}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_account_holds_every_process_until_the_last_has_ended(tmp_path: Path) -> None:
    """A reaped child, an orphan that ended, the killed root, and an orphan that works on after it."""
    contestant = Contestant("burner", f"{{python}} -m tests.burner {tmp_path}", takes_ndjson=False)
    with Server(contestant, tmp_path) as server:
        give_up_at_s = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < give_up_at_s, server.log_tail()
            time.sleep(0.01)
        before = server.used()
        account = server.stop()
    everything = burner.BEFORE + burner.AFTER
    assert len(list(tmp_path.glob("burnt-*"))) == everything
    # Besides what they burn there are the forks, the writing and the ends.
    assert burner.BEFORE * burner.BURN_S <= before.cpu_s + 0.05 < burner.BEFORE * burner.BURN_S + 0.25
    assert everything * burner.BURN_S <= account.cpu_s < everything * burner.BURN_S + 0.25
    assert account.cpu_s - before.cpu_s >= burner.BURN_S - 0.05  # /proc counts in ticks of 0.01 s for each process
    if file_system(tmp_path) not in ("tmpfs", "ramfs"):  # what never meets a disk is not counted
        assert burner.BEFORE * burner.BYTES <= before.write_bytes < burner.BEFORE * burner.BYTES + 500_000
        assert everything * burner.BYTES <= account.write_bytes < everything * burner.BYTES + 500_000


@needs_wrk
@pytest.mark.parametrize(
    ("numbers", "rate_per_s", "why"),
    [((202, 300, 1), 0.0, "1 × status 202"), ((503, 100), 200.0, "151 × status 503")],
)
def test_a_round_with_any_answer_but_200_is_void_repeated_once_and_given_up(
    bench: Bench, numbers: tuple[int, ...], rate_per_s: float, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One among thousands, seen by wrk; and all but the first, seen by the open-loop client."""
    cell = replace(CELL, rate_per_s=rate_per_s)
    rounds = list(bench.alternate([peer(*numbers)], cell, rounds=3))
    assert [(measured.void, measured.figures) for measured in rounds] == [(why, {})] * 2
    assert capsys.readouterr().out.count("VOID") == 2
    assert "void" in table(rounds)


def test_a_server_that_takes_fewer_reports_than_it_was_sent_is_seen(tmp_path: Path) -> None:
    """Its status is 200, but the answer says so; netwatch's own does, to NDJSON with a broken line."""
    contestant = Contestant(
        "netwatch", "{python} -m netwatch serve --bind {address} --data-dir {dir} --workers 1", takes_ndjson=True
    )
    (body,) = make_bodies(SIZES["small"]._replace(bodies=1))
    with Server(contestant, tmp_path) as server:
        server.check([body + b"\n" + body], "application/x-ndjson", 2)
        with pytest.raises(Void, match=r'200 to a body of 2 reports: .*"accepted":1'):
            server.check([body + b"\n{}"], "application/x-ndjson", 2)
        server.stop()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("/no/such/program {address}", "No such file"),
        ("{python} -c 'raise SystemExit(\"my disk is gone\")'", "my disk is gone"),
        ("{python} -m tests.peer_server {address} 500 1", "500"),
        pytest.param(
            "{python} -c 'import os, sys, threading; from tests.peer_server import Server; "
            "threading.Timer(1, os._exit, [3]).start(); Server(sys.argv[1]).serve_forever()' {address}",
            "exit code 3",
            marks=needs_wrk,
        ),
    ],
)
def test_a_server_that_cannot_be_measured_makes_the_round_void_and_says_why(
    bench: Bench, command: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netwatch.bench.servers._START_TIMEOUT_S", 0.5)
    assert why in bench.round(Contestant("peer", command, takes_ndjson=False), CELL, 1).void


@needs_wrk
def test_wrk_posts_every_body_as_it_is_in_turn(listening: peer_server.Server, tmp_path: Path) -> None:
    bodies = make_bodies(SIZES["small"]._replace(bodies=20)) + make_bodies(SIZES["ndjson"]._replace(bodies=2))
    write_bodies(tmp_path / "bodies", bodies)
    assert read_bodies(tmp_path / "bodies") == bodies
    url = f"http://127.0.0.1:{listening.server_port}/api/v1/reports"
    load = loads.run(loads.wrk_command(url, tmp_path / "bodies", "text/plain", 1, 1, 1), lambda: None, 0.0)
    assert load.faults == {}
    assert load.requests > len(bodies)
    # wrk asks the script for one request that it does not send
    assert listening.bodies[: len(bodies)] == bodies[1:] + bodies[:1]
    assert 0 < load.p50_ms <= load.p99_ms <= load.p999_ms <= load.max_ms


def test_latency_counts_from_the_due_time_so_that_a_stall_shows(listening: peer_server.Server) -> None:
    """One answer of 200 takes half a second, and one connection carries all: what was due meanwhile waited too."""
    listening.stall_at, listening.stall_s = 20, 0.5
    request = b"POST /api/v1/reports HTTP/1.1\r\nHost: peer\r\nContent-Length: 2\r\n\r\n{}"
    seen = open_loop.run(f"127.0.0.1:{listening.server_port}", [request], 1, rate_per_s=100, seconds=1)
    assert (seen["requests"], seen["faults"]) == (100, {})
    assert seen["p99_ms"] > 400
    assert seen["max_ms"] >= seen["p99.9_ms"] >= seen["p99_ms"] >= seen["p50_ms"]


@needs_wrk
def test_a_short_run_of_netwatch_beside_another_netwatch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docutils = pytest.importorskip("docutils.core")
    options = ["--sizes", "small", "--connections", "8", "--rounds", "2", "--seconds", "1", "--warmup", "0"]
    options += ["--peer", str(NETWATCH), "--peer-command", "{path} serve --bind {address} --data-dir {dir} --workers 1"]
    options += ["--dir", str(tmp_path), "--json", str(tmp_path / "x.json"), "--plot", str(tmp_path / "x.png")]
    code = main(options)
    out, progress = capsys.readouterr()
    assert code == 0, progress
    docutils.publish_string(out, writer="null", settings_overrides={"halt_level": 2, "report_level": 2})
    rows = [line.split() for line in out.splitlines() if " netwatch " in line or " peer " in line]
    assert [row[:2] for row in rows] == [["small", "netwatch"], ["\\", "peer"]]
    assert all(
        name in out for name in (":kernel:", ":Python: 3.", ":machine:", ":command: scripts/bench --sizes small")
    )

    result = json.loads((tmp_path / "x.json").read_text())
    assert [measured["server"] for measured in result["rounds"]] == ["netwatch", "peer", "peer", "netwatch"]
    for measured in result["rounds"]:
        figures = measured["figures"]
        assert figures["requests_per_s"] == figures["reports_per_s"] > 0
        assert figures["mb_per_s"] == pytest.approx(figures["reports_per_s"] * 617e-6, rel=0.05)
        assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["p999_ms"]
        assert figures["cpu_us"] > 1
        assert figures["pss_mb"] > 10
        assert figures["compression"] > 3
        assert len(measured["connections"]) == (2 if measured["server"] == "netwatch" else 1)
        if file_system(tmp_path) not in ("tmpfs", "ramfs"):
            assert figures["disk_bytes"] > 50
    # One look may come when a hurried wrk has not begun or has ended.
    assert max(sum(measured["connections"]) for measured in result["rounds"]) == 8
    for row, median in zip(rows, result["medians"], strict=True):
        own = [m["figures"]["requests_per_s"] for m in result["rounds"] if m["server"] == median["server"]]
        assert row[2] == f"{statistics.median(own):,.0f}"
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", "x.png"}, "nothing is left behind"


@needs_wrk
def test_what_other_programs_take_from_the_machine_is_told(bench: Bench) -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            disturbed = bench.round(peer(), CELL, 1)
        finally:
            other.kill()
    assert others_cpu_share([disturbed]) > 0.2


@needs_wrk
def test_stay_tells_the_last_minute_from_the_second(tmp_path: Path) -> None:
    minutes = list(stay(peer(), CELL, 3, tmp_path, 1, print, minute_s=1))
    assert [minute.number for minute in minutes] == [1, 2, 3]
    quotient = minutes[2].requests_per_s / minutes[1].requests_per_s
    assert f"Minute 3 beside minute 2: requests/s × {quotient:.3f}" in stay_table(CELL, minutes)


def measured(server: str, requests_per_s: float, void: str = "") -> Round:
    figures = {} if void else {"requests_per_s": requests_per_s, "cpu_us": 1e6 / requests_per_s}
    return Round(server, CELL, 1, void, figures, [2, 2])


def test_the_table_shows_medians_and_their_ratio_without_void_rounds() -> None:
    rounds = [measured("peer", 100), measured("netwatch", 300), measured("peer", 400), measured("netwatch", 100)]
    rounds += [measured("peer", 200), measured("netwatch", 200), measured("netwatch", 1, "1 × status 503")]
    assert medians(rounds, "netwatch", CELL)["requests_per_s"] == 200
    ours, theirs, ratio = (
        line.split()[2:] for line in table(rounds).splitlines() if re.match(r"small|\\ +(peer|ratio)", line)
    )
    assert (ours[0], theirs[0], ratio[0]) == ("200", "200", "1.00")
    rounds.append(measured("peer", 400))
    assert "0.67 ×" in table(rounds)  # of 300


def test_the_compression_ratio_is_that_of_all_whole_files(tmp_path: Path) -> None:
    assert compression_ratio(tmp_path) is None
    for number in range(40):
        subprocess.run(["zstd", "-q", "-o", tmp_path / f"{number}.jsonl.zst"], input=b"x" * 100_000, check=True)
    assert compression_ratio(tmp_path) == pytest.approx(100_000 / (tmp_path / "1.jsonl.zst").stat().st_size)
    (tmp_path / "0.jsonl.zst").write_bytes(b"not zstd")
    assert compression_ratio(tmp_path) == pytest.approx(100_000 / (tmp_path / "1.jsonl.zst").stat().st_size)


def test_bodies_are_of_their_size_differ_and_outrun_every_window() -> None:
    for name, mean_bytes in {"small": 617, "medium": 5800, "large": 30_000, "ndjson": 617_000}.items():
        bodies = make_bodies(WHOLE[name]._replace(bodies=20))
        assert len(set(bodies)) == 20
        assert statistics.mean(map(len, bodies)) == pytest.approx(mean_bytes, rel=0.1)
        assert statistics.mean(map(len, bodies)) * WHOLE[name].bodies > 16 << 20
        assert {len(body.splitlines()) for body in bodies} == {SIZES[name].reports}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--peer", "/no/such/program"], "/no/such/program is no program"),
        (["--peer", sys.executable, "--peer-command", "{path} --bind {adress}"], "adress"),
        (["--sizes", "small,huge"], "huge is none of small, medium, large, ndjson"),
        (["--workers", "0"], "0 is less than 1"),
        (["--seconds", "0"], "0 is not more than 0"),
        (["--rounds", "0"], "at least 1"),
        (["--open-loop", "--sizes", "small"], "needs medium"),
        (["--dir", "/no/such/directory"], "is no directory"),
        (["--plot", "x.pdf"], ".png or .svg"),
    ],
)
def test_wrong_usage_is_refused_with_what_to_do(
    options: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(options)
    assert refused.value.code == 2
    assert why in capsys.readouterr().err


def test_a_peer_of_no_known_version_is_called_so() -> None:
    assert "not known" in peer_version("/bin/true")
