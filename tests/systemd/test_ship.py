"""The units around a bucket under a real systemd: with all that they are denied, they ship and compact."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bucket.role import TASK
from tests.bucket.store import WEED
from tests.doubles import seal_files
from tests.systemd.conftest import Boot
from tests.systemd.machine import ROOT, Machine
from tests.systemd.test_install import INSTALL
from tests.systemd.test_service import show, status_of

pytestmark = [pytest.mark.timeout(300), pytest.mark.soak]  # the first one makes Debian and the wheels, once

KEYS = "AWS_ACCESS_KEY_ID=host1\\nAWS_SECRET_ACCESS_KEY=not-a-secret\\n"
ENVIRONMENT = "NETWATCH_BUCKET=s3://telemetry/all\\nNETWATCH_ENDPOINT=http://127.0.0.1:8333\\n"
STORE = (
    "systemd-run --quiet --unit store --property StateDirectory=store --setenv AWS_ACCESS_KEY_ID=host1 "
    "--setenv AWS_SECRET_ACCESS_KEY=not-a-secret weed mini -dir=/var/lib/store -ip=127.0.0.1 -master.telemetry=false "
    "-bucket=telemetry -s3.port=8333 -webdav=false -admin.ui=false"
)
WITH_WEED = (f"--bind-ro={WEED}:/usr/local/bin/weed",)
FILER = "http://127.0.0.1:8888/buckets/telemetry/all"
PATHS = "jq --raw-output '.Entries[].FullPath'"
METRICS = "curl --silent http://127.0.0.1:8082/metrics"
COMPACTED = "journalctl --unit netwatch-compact --output cat"
MARK = (
    "/opt/netwatch/current/bin/python -c \"import glob, os; print(*[os.getxattr(path, 'user.netwatch.shipped').decode()"
    " for path in glob.glob('/var/lib/netwatch/data/reports/*/*')])\""
)


def seal(host: Machine) -> None:
    """Have a report sealed."""
    assert status_of(host) == "200"
    host.run("systemctl kill --signal USR1 --kill-whom main netwatch")


def wait_for(host: Machine, command: str) -> None:
    """Until the command ends with 0."""
    try:
        host.wait_for(command)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{host.run('journalctl --unit netwatch-ship --unit store')}") from None


def with_store(host: Machine, environment: str = "") -> Machine:
    """The booted machine, with a store beside it and what shipping to it needs, but for a unit that is started."""
    host.wait_for("systemctl is-active --quiet netwatch")
    host.run(INSTALL.replace("install ", "install --ship "))
    assert host.run("stat --format %a /etc/netwatch/aws").strip() == "600"
    host.run(STORE)
    host.run(f"printf '{KEYS}' > /etc/netwatch/aws")
    host.run(f"printf '{ENVIRONMENT}{environment}' >> /etc/netwatch/ship.env")
    return host


def test_it_ships_with_keys_that_only_root_reads_and_an_upgrade_keeps_it(make_machine: Boot, installed: object) -> None:
    host = with_store(make_machine(installed, more_binds=WITH_WEED).boot())
    host.run("systemctl start netwatch-ship")
    seal(host)
    wait_for(host, f"{MARK} | grep 's3://telemetry/all '")
    assert "netwatch_ship_waiting_segments 0" in host.run(METRICS)
    host.run(f"{INSTALL} --network-less")  # the newer version, without the flag
    assert show(host, "ActiveState", unit="netwatch-ship") == "active"
    assert show(host, "PrivateNetwork") == "yes"
    seal(host)
    wait_for(host, f"{METRICS} | grep 'netwatch_ship_segments_total 1'")
    host.run("systemctl stop store")
    seal(host)
    wait_for(host, 'journalctl --unit netwatch-ship --output cat | grep \'"kind":"unreachable"\'')
    assert show(host, "ActiveState", "NRestarts", unit="netwatch-ship") == "active,0"
    host.run("/src/scripts/install --uninstall")
    host.fail("systemctl cat netwatch-ship")


def test_the_timer_compacts_what_was_shipped(make_machine: Boot, installed: object, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    at = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(time.time() - 5 * 3600))
    seal_files(old, range(3), 20, received_at=at)
    binds = (*WITH_WEED, f"--bind-ro={old}:/old")
    host = with_store(make_machine(installed, more_binds=binds).boot(), "COMPACT_OPTIONS=--grace-s 1 --lease-s 5\\n")
    host.run("cp --recursive /old/reports /var/lib/netwatch/data && chown --recursive netwatch: /var/lib/netwatch/data")
    host.run("systemctl start netwatch-ship")
    wait_for(host, f"{METRICS} | grep 'netwatch_ship_segments_total 3'")
    assert show(host, "UnitFileState", "ActiveState", unit="netwatch-compact.timer") == "disabled,inactive"
    # Now instead of at the next hour.
    host.run("mkdir --parents /etc/systemd/system/netwatch-compact.timer.d")
    soon = "[Timer]\\nOnActiveSec=1s\\nRandomizedDelaySec=0\\nAccuracySec=100ms\\n"
    host.run(f"printf '{soon}' > /etc/systemd/system/netwatch-compact.timer.d/soon.conf && systemctl daemon-reload")
    host.run("systemctl enable --quiet --now netwatch-compact.timer")
    wait_for(host, f"{COMPACTED} | grep '3 objects of .* became 1 '")
    host.wait_for("systemctl show --property ActiveState netwatch-compact | grep inactive")
    assert show(host, "Result", unit="netwatch-compact") == "success"
    assert show(host, "NextElapseUSecRealtime", unit="netwatch-compact.timer")  # and at the next hour
    (path,) = host.run(f"curl --silent --header 'Accept: application/json' {FILER}/date={at[:10]}/ | {PATHS}").split()
    assert "Z--" in path
    # Keys of its own, which are wrong.
    host.run(f"printf '{KEYS}' | sed s/not-a-secret/wrong/ > /etc/netwatch/aws-compact && chmod 600 /etc/netwatch/aws*")
    host.run("mkdir --parents /etc/systemd/system/netwatch-compact.service.d")
    own = "[Service]\\nLoadCredential=aws:/etc/netwatch/aws-compact\\n"
    host.run(f"printf '{own}' > /etc/systemd/system/netwatch-compact.service.d/own.conf && systemctl daemon-reload")
    host.fail("systemctl start netwatch-compact")
    assert "cannot be compacted: 403" in host.run(COMPACTED)
    stamp = "/var/lib/systemd/timers/stamp-netwatch-compact.timer"
    host.run(f"ls {stamp} && /src/scripts/install --uninstall")
    host.fail(f"ls {stamp} || systemctl cat netwatch-compact.timer")
    assert host.run("systemctl list-timers --all").count("netwatch") == 0


@pytest.fixture
def role(make_machine: Boot, installed: object, tmp_path: Path) -> Iterator[tuple[Machine, Path]]:
    """A machine with a store, beside which Amazon's services give keys; and whom they gave some, line by line."""
    host = with_store(make_machine(installed, more_binds=WITH_WEED).boot())
    host.run(": > /etc/netwatch/aws")
    for address in ("169.254.169.254", "169.254.170.2"):
        subprocess.run([*host.network, "ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    command = [*host.network, sys.executable, "-m", "tests.bucket.role", "host1", "not-a-secret"]
    with (tmp_path / "given").open("wb") as given:
        process = subprocess.Popen(command, cwd=ROOT, stdout=given)
    try:
        yield host, tmp_path / "given"
    finally:
        process.kill()
        process.wait()


def test_it_ships_with_the_role_of_the_instance_or_the_task(role: tuple[Machine, Path]) -> None:
    host, given = role
    host.run("systemctl start netwatch-ship")
    seal(host)
    wait_for(host, f"{METRICS} | grep 'netwatch_ship_segments_total 1'")
    assert given.read_text().split() == ["instance"]
    host.run(f"echo AWS_CONTAINER_CREDENTIALS_RELATIVE_URI={TASK} >> /etc/netwatch/ship.env")
    host.run("systemctl restart netwatch-ship")
    seal(host)
    wait_for(host, f"{METRICS} | grep 'netwatch_ship_segments_total 1'")
    assert given.read_text().split() == ["instance", "task"]
