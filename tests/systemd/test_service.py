"""netwatch under a real systemd: started by its socket, restarted, killed, hung, locked in; and the audit after it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.machine import ROOT, Machine, wait_until

pytestmark = pytest.mark.timeout(300)  # the first one makes Debian and the wheels, once

README = (ROOT / "README.rst").read_text("utf-8")
URL = "http://127.0.0.1:8080"
POST = (
    "curl --silent --show-error --max-time 20 --output /dev/null --write-out '%{http_code}\n' "
    '--header \'Content-Type: application/json\' --data \'{"clientId":"a","hosts":[]}\' ' + f"{URL}/api/v1/reports"
)
CAT = "netwatch cat --data-dir /var/lib/netwatch/data"


def status_of(host: Machine, *headers: str) -> str:
    """The status that a report is answered with."""
    return host.run(POST + "".join(f" --header '{header}'" for header in headers)).strip()


def show(host: Machine, *names: str, unit: str = "netwatch") -> str:
    """Properties of the unit, in this order and with commas between."""
    shown = host.run(f"systemctl show {' '.join(f'--property {name}' for name in names)} {unit}")
    values = dict(line.split("=", 1) for line in shown.splitlines())
    return ",".join(values[name] for name in names)


def pids_of(host: Machine, role: str) -> list[str]:
    return host.run(f"pgrep --full '^netwatch: {role}$'").split()


def stored(host: Machine) -> list[dict[str, Any]]:
    return [json.loads(line) for line in host.run(CAT).splitlines()]


def wait_until_it_serves(host: Machine) -> None:
    host.wait_for("systemctl is-active --quiet netwatch")


@contextmanager
def load(host: Machine, duration_s: float, *flags: str) -> Iterator[None]:
    """Clients post from the machine's own network meanwhile; in the end every report is where its answer says."""
    command = [*host.network, sys.executable, "-m", "netwatch.loadtest", URL, "--duration", str(duration_s), *flags]
    command += ["--clients", "16", "--audit", str(host.root / "var/lib/netwatch/data")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as clients:
        try:
            yield
            said, _ = clients.communicate(timeout=duration_s + 60)
        finally:
            clients.kill()
    assert clients.returncode == 0, f"{said}\n{host.journal()}"
    assert int(re.findall(r"^requests +sent ([\d,]+)", said, re.MULTILINE)[0].replace(",", "")) > 100, said


@pytest.fixture(scope="module")
def quiet(
    debian: Path, binds: list[str], installed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """A machine on which netwatch serves, for tests that change nothing."""
    machine = Machine([debian, installed], tmp_path_factory.mktemp("quiet"), binds)
    try:
        wait_until_it_serves(machine.boot())
        yield machine
    finally:
        machine.end()


def test_it_is_ready_when_a_report_is_stored(quiet: Machine) -> None:
    assert show(quiet, "Type", "ActiveState", "Result", "NRestarts") == "notify,active,success,0"
    assert status_of(quiet) == "200"
    assert "Serving" in show(quiet, "StatusText")


def test_every_process_is_locked_in(quiet: Machine) -> None:
    pids = quiet.run("systemctl show --value --property MainPID netwatch; pgrep --full '^netwatch: '").split()
    assert len(set(pids)) >= 4
    for pid in set(pids):
        status = dict(re.findall(r"^(\w+):\s+(.*)$", quiet.run(f"cat /proc/{pid}/status"), re.MULTILINE))
        assert (status["Seccomp"], status["NoNewPrivs"], int(status["CapEff"], 16)) == ("2", "1", 0)
        assert status["Uid"].split()[0] != "0"
    assert re.search(r"^Max core file size +0 ", quiet.run(f"cat /proc/{pids[0]}/limits"), re.MULTILINE)
    seen = quiet.run(f"nsenter --target {pids[0]} --mount -- findmnt --noheadings --output OPTIONS --target /etc")
    assert seen.startswith("ro,")


def test_the_writer_is_the_last_that_an_empty_memory_takes(quiet: Machine) -> None:
    def score(role: str) -> set[int]:
        return {int(quiet.run(f"cat /proc/{pid}/oom_score_adj")) for pid in pids_of(quiet, role)}

    (writer,) = score("writer")  # -900 but where the container, as its host, may not lower it
    assert score("worker") == {writer + 500}
    assert score("supervisor") == {writer}
    assert show(quiet, "OOMScoreAdjust", "OOMPolicy", "LimitNOFILE") == "-900,continue,65536"


def test_the_probe_posts_what_it_measured_and_where_the_time_went(quiet: Machine) -> None:
    quiet.run("systemctl start netwatch-probe")
    assert show(quiet, "Result", unit="netwatch-probe") == "success"
    (host,) = stored(quiet)[-1]["report"]["hosts"]
    assert host["url"] == f"{URL}/readyz"
    assert host["status"] == "online"
    assert len(host["history"]) == 3
    assert all({"latency", "connectMs", "firstByteMs"} <= set(sample) for sample in host["history"])


def test_an_operator_in_the_group_reads_the_files_and_others_do_not(quiet: Machine) -> None:
    status_of(quiet)
    quiet.run("useradd alice && useradd bob && usermod --append --groups netwatch alice")
    as_user = "setpriv --reuid {0} --regid {0} --init-groups -- " + CAT
    assert quiet.run(as_user.format("alice")).startswith('{"id":')
    assert "Permission denied" in quiet.try_(as_user.format("bob"))
    assert quiet.run("stat --format '%A %U %G' /etc/netwatch/tokens").strip() == "-rw------- root root"


def test_reload_with_a_bad_configuration_says_why_and_the_old_one_serves(host: Machine) -> None:
    before = pids_of(host, "worker")
    host.run("echo 'workers = 0' > /etc/netwatch/netwatch.toml")
    assert "failed" in host.try_("systemctl reload netwatch")
    assert "workers in /etc/netwatch/netwatch.toml cannot be 0" in host.journal()
    assert pids_of(host, "worker") == before
    assert status_of(host) == "200"
    host.run("echo 'workers = 3' > /etc/netwatch/netwatch.toml; systemctl reload netwatch")
    assert len(pids_of(host, "worker")) >= 3
    assert not set(before) & set(pids_of(host, "worker")[-3:])


def test_the_first_request_starts_it(host: Machine) -> None:
    host.run("systemctl --quiet stop netwatch.service")
    assert show(host, "ActiveState", "Result") == "inactive,success"
    assert status_of(host) == "200"
    wait_until_it_serves(host)


def test_restart_and_reload_under_load_fail_no_request(host: Machine, full_sweeps: bool) -> None:
    duration_s = 120.0 if full_sweeps else 10.0
    flags = ("--clients", "32", "--keys", "--new-connections", "0.5", "--expect-only-200")
    with load(host, duration_s, *flags):
        end_s = time.monotonic() + duration_s
        rounds = 0
        while time.monotonic() < end_s:
            host.run("systemctl restart netwatch && sleep 0.5 && systemctl reload netwatch && sleep 0.5")
            rounds += 1
    assert rounds > duration_s / 8
    assert show(host, "ActiveState", "NRestarts") == "active,0"


def test_a_stop_under_load_drains_and_seals(host: Machine) -> None:
    with load(host, 3.0):
        host.wait_for(f"{CAT} | grep --quiet .")
        host.run("systemctl stop netwatch.socket netwatch")  # the socket too, or a client would start it again
    assert show(host, "ActiveState", "Result", "ExecMainStatus") == "inactive,success,0"
    assert host.run("ls /var/lib/netwatch/data/open") == ""


def test_what_runs_in_one_machine_is_out_of_the_other_ones_reach(quiet: Machine, host: Machine) -> None:
    host.run("systemctl stop netwatch.socket netwatch")
    assert "control group" not in host.journal()
    assert show(quiet, "ActiveState") == "active"


def test_whatever_is_killed_comes_back_and_nothing_is_lost(host: Machine) -> None:
    with load(host, 9.0, "--keys"):
        for role in ("worker", "writer", "gunicorn", "supervisor"):
            time.sleep(1)
            host.run(f"kill -KILL {pids_of(host, role)[0]}")
    wait_until_it_serves(host)
    assert int(show(host, "NRestarts")) == 1  # only the supervisor is systemd's to restart
    assert status_of(host) == "200"


def test_a_hung_supervisor_is_restarted_by_the_watchdog(host: Machine) -> None:
    host.run("mkdir -p /run/systemd/system/netwatch.service.d")
    host.run(
        "printf '[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n' > /run/systemd/system/netwatch.service.d/fast.conf"
    )
    host.run("systemctl daemon-reload && systemctl restart netwatch")
    time.sleep(3)
    assert show(host, "NRestarts") == "0", "it feeds the watchdog"
    before = show(host, "MainPID")
    assert status_of(host) == "200"
    host.run(f"kill -STOP {before}")
    wait_until(lambda: show(host, "NRestarts") == "1" and show(host, "ActiveState") == "active", 20)
    assert "Watchdog timeout" in host.journal()
    assert show(host, "MainPID") != before
    assert status_of(host) == "200"
    assert len(stored(host)) == 2


def test_without_its_credential_it_does_not_serve_and_goes_on_by_itself(host: Machine) -> None:
    host.run("mv /etc/netwatch/tokens /etc/netwatch/kept")
    assert "failed" in host.try_("systemctl restart netwatch")
    assert "status=243/CREDENTIALS" in host.journal()
    waiting = subprocess.Popen([*host.inside, "bash", "-c", POST], stdout=subprocess.PIPE, text=True)
    time.sleep(2.5)
    assert waiting.poll() is None, "it waits in the socket"
    assert int(show(host, "NRestarts")) < 10, "once a second, however many wait"
    host.run("mv /etc/netwatch/kept /etc/netwatch/tokens")
    assert waiting.communicate(timeout=20)[0].strip() == "200"


def test_a_bad_setting_fails_the_start_with_its_reason_and_is_tried_again(host: Machine) -> None:
    host.run("echo 'sealbytes = 1' > /etc/netwatch/netwatch.toml")
    assert "failed" in host.try_("systemctl restart netwatch")
    assert "'sealbytes', but there is no such setting" in host.journal()
    host.run("echo > /etc/netwatch/netwatch.toml")
    wait_until_it_serves(host)


def test_tokens_come_as_a_credential_and_the_probe_has_its_own(host: Machine) -> None:
    token = "0123456789abcdef"
    host.run(f"echo 'agents:{token}' > /etc/netwatch/tokens; systemctl restart netwatch")
    assert status_of(host) == "401"
    assert status_of(host, f"Authorization: Bearer {token}") == "200"
    assert "failed" in host.try_("systemctl start netwatch-probe")
    host.run(f"echo '{token}' > /etc/netwatch/probe-token; systemctl start netwatch-probe")
    assert token not in host.run("journalctl --no-pager; systemctl show netwatch netwatch-probe; ps -eo args,environ")


def test_the_network_less_layout_serves(host: Machine) -> None:
    host.run("/src/scripts/install --wheels /wheels --network-less", 120)
    wait_until_it_serves(host)
    assert show(host, "PrivateNetwork") == "yes"
    for role in ("supervisor", "writer", "worker"):
        net = host.run(f"readlink /proc/{pids_of(host, role)[0]}/ns/net /proc/1/ns/net").split()
        assert net[0] != net[1]
    with load(host, 3.0, "--keys", "--new-connections", "0.5", "--expect-only-200"):
        host.run("systemctl reload netwatch && systemctl restart netwatch")


def test_without_the_disk_of_its_own_it_does_not_start(host: Machine) -> None:
    host.run("systemctl --quiet stop netwatch.socket netwatch; rm -r /var/lib/netwatch/data")
    disk = "[Mount]\\nWhat=away\\nWhere=/var/lib/netwatch\\nType=ext4\\n"
    host.run(f"printf '{disk}' > /etc/systemd/system/var-lib-netwatch.mount; systemctl daemon-reload")
    assert "Dependency failed" in host.try_("systemctl start netwatch; journalctl --no-pager --unit netwatch")
    assert host.run("ls /var/lib/netwatch") == "", "the root must not fill with what belongs on that disk"


def test_what_the_manual_asks_the_log_and_the_metrics_is_answered_as_it_shows(host: Machine) -> None:
    for body, kind in (("{}", "application/json"), ("x", "application/json"), ("x", "text/html")):
        host.run(f"curl --silent --header 'Content-Type: {kind}' --data {body} {URL}/api/v1/reports")
    assert status_of(host) == "200"
    host.run("systemctl kill --signal USR1 --kill-whom main netwatch")
    host.wait_for("ls /var/lib/netwatch/data/reports/*/*.zst")
    (section,) = re.findall(r"\nLogs\n-.*?\nTry to break it\n", README, re.DOTALL)
    shown = re.findall(r"^    \$ (.*(?:\n      .*)*)((?:\n    [^$].*)*)", section, re.MULTILINE)
    assert len(shown) == 12
    for command, answer in shown:
        said = host.run(f"set -o pipefail; cd /var/lib/netwatch; {command}")
        assert lines_of(said) >= lines_of(answer), command
        assert answer or not said or "-p warning" in command, command


def lines_of(text: str) -> set[str]:
    """The lines without what differs from host to host and from time to time."""
    return {re.sub(r"[0-9]+", "0", re.sub(r"-[0-9a-f]{8}-", "-0-", line)).strip() for line in text.splitlines()} - {""}


def test_elsewhere_it_says_where_everybody_may_post(host: Machine) -> None:
    host.run(
        "mkdir /etc/systemd/system/netwatch.socket.d; cd /etc/systemd/system/netwatch.socket.d;"
        r"printf '[Socket]\nListenStream=\nListenStream=0.0.0.0:9090\n' > override.conf;"
        "systemctl daemon-reload; systemctl restart netwatch.socket netwatch"
    )
    assert host.run("curl --silent --fail http://127.0.0.1:9090/livez")
    host.fail(f"curl --silent {URL}/livez")
    warnings = host.run("journalctl --unit netwatch --priority warning --output cat --grep everybody_may_post")
    assert json.loads(warnings)["address"] == "http://0.0.0.0:9090"


def test_without_a_network_systemd_brings_the_connections_for_metrics_too(host: Machine) -> None:
    host.run(
        "/src/scripts/install --wheels /wheels --network-less;"
        "echo 'admin_bind = \"127.0.0.1:8081\"' > /etc/netwatch/netwatch.toml;"
        r"printf '[Socket]\nListenStream=127.0.0.1:8081\nFileDescriptorName=admin\nService=netwatch.service\n"
        r"[Install]\nWantedBy=sockets.target\n' > /etc/systemd/system/netwatch-admin.socket;"
        "systemctl stop netwatch.socket netwatch; systemctl enable --quiet --now netwatch-admin.socket netwatch"
    )
    for _ in range(2):
        assert "netwatch_build_info" in host.run("curl --silent --fail http://127.0.0.1:8081/metrics")
        host.fail(f"curl --silent --fail {URL}/metrics")
        assert status_of(host) == "200"
        host.run("systemctl restart netwatch")
