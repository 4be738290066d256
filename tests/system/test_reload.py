"""FAULTS.md row 16: a reload loses no request, and a bad configuration leaves what serves as it is."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Serve
from tests.system.server import NETWATCH, ROOT, Server, read_answer, report, wait_until

OLD, NEW = "a" * 20, "b" * 20
HEAD = b"POST /api/v1/reports HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(autouse=True)
def runtime_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where the servers have their sockets, and `netwatch reload` finds them; short, as sockets must have it."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("RUNTIME_DIRECTORY", directory)
        yield


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "netwatch.toml"
    path.write_text("workers = 2\n")
    return path


def ends(server: Server) -> int:
    """How many reloads are over."""
    return len(server.logged("reloaded")) + len(server.logged("reload_failed"))


def hang_up(server: Server) -> None:
    """HUP, and wait until that reload is over."""
    before = ends(server)
    server.send(signal.SIGHUP)
    assert wait_until(lambda: ends(server) > before, 15), server.log_text()
    server.processes()


def reload(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([NETWATCH, "reload", *arguments], capture_output=True, text=True, timeout=60, check=False)


def with_token(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_row_16_hup_in_a_loop_under_load_loses_nothing(serve: Serve, config: Path, tmp_path: Path) -> None:
    """Keep-alive clients see only 200 and no cut, and the audit finds every report once."""
    server = serve("--config", str(config))
    command = [sys.executable, "-m", "netwatch.loadtest", server.url, "--audit", str(server.data_dir)]
    options = ["--clients", "8", "--duration", "5", "--expect-only-200", "--expect-no-cut"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT) as load:
        while load.poll() is None:
            hang_up(server)
        assert load.stdout
        assert load.returncode == 0, load.stdout.read().decode() + server.log_text()
    assert len(server.logged("reloaded")) >= 3
    assert server.logged("reload_failed") == []
    assert server.stop() < 3


def test_row_16_hup_refuses_no_new_connection(serve: Serve, config: Path) -> None:
    server = serve("--config", str(config))
    outcomes: Counter[int | str] = Counter()
    is_over = threading.Event()

    def post() -> None:
        while not is_over.is_set():
            try:
                outcomes[server.post(report("new")).status] += 1
            except OSError as error:
                outcomes[repr(error)] += 1

    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        hang_up(server)
    is_over.set()
    for thread in threads:
        thread.join()
    assert list(outcomes) == [200], outcomes
    server.stop()
    assert len(server.stored_clients()) == outcomes[200] > 20


def test_row_16_hup_with_a_broken_configuration_leaves_the_old_one_serving(serve: Serve, config: Path) -> None:
    server = serve("--config", str(config))
    workers = wait_until(lambda: found if len(found := server.find("worker")) == 2 else [], 10)
    for broken in ("workers = \n", "workers = 0\n", "no_such = 1\n", "\0", None):
        if broken is None:
            config.unlink()
        else:
            config.write_text(broken)
        hang_up(server)
        (*_, failed) = server.logged("reload_failed")
        assert str(config) in failed["error"]
        assert failed["level"] == "error"
        assert server.post(report("on")).status == 200
    assert server.find("worker") == workers
    config.write_text("workers = 1\n")
    hang_up(server)
    assert server.logged("reloaded")[-1]["changed"] == ["workers"]
    assert wait_until(lambda: len(server.find("worker")) == 1, 10)
    assert server.post(report("on")).status == 200
    server.stop()
    assert server.stored_clients() == ["on"] * 6


def test_row_16_a_check_that_hangs_is_given_up(serve: Serve, config: Path) -> None:
    server = serve("--config", str(config))
    config.unlink()
    os.mkfifo(config)  # whoever reads it waits for ever
    hang_up(server)
    assert "could not be read" in server.logged("reload_failed")[-1]["error"]
    assert server.post(report("on")).status == 200
    assert server.stop() < 2


def test_row_11_a_reload_without_descriptors_fails_and_harms_nothing(serve: Serve, config: Path) -> None:
    server = serve("--config", str(config))
    before = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{server.pid}/fd")) + 1, before[1]))
    hang_up(server)
    assert "No process could be started" in server.logged("reload_failed")[-1]["error"]
    assert server.post(report("on")).status == 200
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
    hang_up(server)
    assert len(server.logged("reloaded")) == 1
    server.stop()


def test_row_16_new_tokens_are_taken_and_old_ones_are_not(serve: Serve, config: Path) -> None:
    config.write_text(f'workers = 2\ntokens = {{ agent = "{OLD}" }}\n')
    server = serve("--config", str(config))
    assert server.post(report("1"), headers=with_token(OLD)).status == 200
    assert server.post(report("2"), headers=with_token(NEW)).status == 401
    config.write_text(f'workers = 2\ntokens = {{ agent = "{NEW}" }}\n')
    assert reload().returncode == 0
    for _ in range(20):
        assert server.post(report("3"), headers=with_token(OLD)).status == 401
        assert server.post(report("4"), headers=with_token(NEW)).status == 200
    server.stop()
    assert sorted(set(server.stored_clients())) == ["1", "4"]
    assert OLD not in server.log_text()
    assert NEW not in server.log_text()


def test_what_the_writer_and_the_sockets_need_waits_for_a_restart_and_is_named(serve: Serve, config: Path) -> None:
    server = serve("--config", str(config))
    config.write_text("workers = 2\nseal_bytes = 1\nmax_body_bytes = 2048\nmax_depth = 7\n")
    hang_up(server)
    assert server.logged("settings_wait_for_restart")[-1]["settings"] == ["seal_bytes", "max_body_bytes"]
    assert server.logged("reloaded")[-1]["changed"] == ["max_depth"]
    assert server.post(report("large", padding_bytes=4096)).status == 200
    assert server.sealed_files() == []
    deep = b'{"clientId":"deep","hosts":[],"x":[[[[[[[[]]]]]]]]}'
    assert server.post(deep).status == 400
    server.stop()


def test_a_body_that_is_still_coming_is_waited_for(serve: Serve, config: Path) -> None:
    """A stop cuts it off after drain_timeout_s; a reload has time."""
    server = serve("--config", str(config), "--drain-timeout-s", "0.2")
    body = b'{"clientId":"slow","hosts":[]}'
    with server.connect(15) as slow:
        slow.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:10])
        wait_until(lambda: False, 0.2)  # a worker reads it
        hang_up(server)
        assert len(server.find("gunicorn")) == 2
        until_s = time.monotonic() + 2.5  # more than a drain may take at a stop
        while time.monotonic() < until_s:
            assert server.post(report("other")).status == 200
        slow.sendall(body[10:])
        answer = read_answer(slow)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert wait_until(lambda: len(server.find("gunicorn")) == 1, 5)
    server.stop()
    assert "slow" in server.stored_clients()


def test_a_stop_does_not_wait_for_what_a_reload_waits_for(serve: Serve, config: Path) -> None:
    server = serve("--config", str(config), "--drain-timeout-s", "0.2")
    with server.connect(15) as stalled:
        stalled.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
        wait_until(lambda: False, 0.2)
        hang_up(server)
        assert len(server.find("gunicorn")) == 2
        assert server.stop() < 5


@pytest.mark.parametrize("moment_s", [0.0, 0.2, 0.5])
def test_a_stop_in_the_middle_of_a_reload_is_a_stop(serve: Serve, config: Path, moment_s: float) -> None:
    server = serve("--config", str(config))
    assert server.post(report("one")).status == 200
    server.send(signal.SIGHUP)
    wait_until(lambda: server.processes() and False, moment_s)
    assert server.stop() < 3
    assert server.stored_clients() == ["one"]
    assert server.logged("reload_failed") == []


def test_many_hups_at_once_end_with_the_last_configuration(serve: Serve, config: Path) -> None:
    server = serve("--config", str(config))
    for number in range(30):
        config.write_text(f"workers = {1 + number % 2}\nmax_depth = {10 + number}\n")
        server.send(signal.SIGHUP)
        server.processes()
    assert reload().returncode == 0
    assert server.post(b'{"clientId":"c","hosts":[],"x":' + b"[" * 36 + b"]" * 36 + b"}").status == 200
    assert 1 <= len(server.logged("reloaded")) < 30
    assert wait_until(lambda: len(server.find("gunicorn")) == 1, 10)
    server.stop()


@pytest.mark.parametrize("role", ["gunicorn", "worker", "writer"])
def test_what_dies_in_a_reload_takes_nothing_with_it(serve: Serve, config: Path, role: str) -> None:
    server = serve("--config", str(config))
    wait_until(lambda: len(server.find("worker")) == 2, 10)
    old = {one.pid for one in server.processes() if role != "writer"}
    server.send(signal.SIGHUP)
    (new, *_) = wait_until(lambda: [one for one in server.find(role) if one.pid not in old], 10, 0.001)
    os.kill(new.pid, signal.SIGKILL)
    assert wait_until(lambda: ends(server) == 1, 20)
    assert wait_until(lambda: server.post(report("on")).status == 200, 5)
    if role == "gunicorn":
        assert "could not be started" in server.logged("reload_failed")[0]["error"]
    assert reload().returncode == 0
    assert wait_until(lambda: len(server.find("gunicorn")) == 1, 10)
    server.stop()


def test_the_command_returns_when_the_new_workers_serve(serve: Serve, config: Path) -> None:
    server = serve("--config", str(config))
    before = wait_until(lambda: found if len(found := server.find("worker")) == 2 else [], 10)
    done = reload()
    assert (done.returncode, done.stdout, done.stderr) == (0, "netwatch: The new settings are in use.\n", "")
    assert [one for one in server.find("worker") if one in before] == []
    config.write_text("workers = nonsense\n")
    bad = reload("--pid", str(server.pid))
    assert (bad.returncode, bad.stdout) == (2, "")
    assert str(config) in bad.stderr
    server.stop()
    gone = reload()
    assert gone.returncode == 1
    assert "is it running?" in gone.stderr


def test_the_command_asks_which_of_several_servers(serve: Serve, tmp_path: Path) -> None:
    servers = [serve("--workers", "1", data_dir=tmp_path / name) for name in "ab"]
    unsure = reload()
    assert unsure.returncode == 2
    assert "--pid" in unsure.stderr
    assert all(str(server.pid) in unsure.stderr for server in servers)
    assert reload("--pid", str(servers[1].pid)).returncode == 0
    assert [len(server.logged("reloaded")) for server in servers] == [0, 1]
    servers[0].kill()  # what it leaves in the runtime directory is nobody's
    assert reload().returncode == 0


def test_the_command_believes_no_socket_of_somebody_else(serve: Serve, config: Path) -> None:
    server = serve("--config", str(config))
    base = Path(os.environ["RUNTIME_DIRECTORY"])
    for name in ("netwatch-1-x", "netwatch-abc-x"):
        (base / name).mkdir()
        with socket.socket(socket.AF_UNIX) as planted:
            planted.bind(str(base / name / "reload.sock"))
    os.chown(base / "netwatch-1-x" / "reload.sock", 65534, 65534)
    assert reload().returncode == 0
    server.stop()


def test_the_command_says_when_the_server_ends_meanwhile(serve: Serve, config: Path) -> None:
    server = serve("--config", str(config))
    config.unlink()
    os.mkfifo(config)
    with subprocess.Popen([NETWATCH, "reload"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asked:
        assert wait_until(lambda: server.find("check"), 10)
        server.stop()
        _, said = asked.communicate(timeout=20)
    assert (asked.returncode, said) == (1, "netwatch: The server is stopping.\n")


def test_a_terminal_that_is_closed_stops_what_was_started_in_it(tmp_path: Path) -> None:
    """HUP means so there; a server without a terminal reloads."""
    log = tmp_path / "log"
    program = (
        "import os, pty, sys, time\n"
        "pid, terminal = pty.fork()\n"
        "if pid == 0:\n"
        "    os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)\n"
        "    os.execv(sys.argv[2], sys.argv[2:])\n"
        "while b'listening' not in os.read(terminal, 4096):\n"
        "    pass\n"
        "os.close(terminal)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    command = [NETWATCH, "serve", "--bind", "127.0.0.1:0", "--data-dir", str(tmp_path / "data"), "--workers", "1"]
    ended = subprocess.run([sys.executable, "-c", program, str(log), *command], timeout=30, check=False)
    assert ended.returncode == 0, log.read_text()
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert "draining" in events
    assert "reload_started" not in events
