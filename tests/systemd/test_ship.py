"""netwatch-ship.service under a real systemd: with all that it is denied, it brings what is sealed into a bucket."""

from __future__ import annotations

import pytest

from tests.bucket.store import WEED
from tests.systemd.conftest import Boot
from tests.systemd.machine import Machine
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


def test_it_ships_with_keys_that_only_root_reads_and_an_upgrade_keeps_it(make_machine: Boot, installed: object) -> None:
    host = make_machine(installed, more_binds=(f"--bind-ro={WEED}:/usr/local/bin/weed",)).boot()
    host.wait_for("systemctl is-active --quiet netwatch")
    host.run(INSTALL.replace("install ", "install --ship "))
    assert host.run("stat --format %a /etc/netwatch/aws").strip() == "600"
    host.run(STORE)
    host.run(f"printf '{KEYS}' > /etc/netwatch/aws")
    host.run(f"printf '{ENVIRONMENT}' >> /etc/netwatch/ship.env")
    host.run("systemctl start netwatch-ship")
    seal(host)
    wait_for(host, f"{MARK} | grep 's3://telemetry/all '")
    assert "netwatch_ship_waiting_segments 0" in host.run("curl --silent http://127.0.0.1:8082/metrics")
    host.run(INSTALL)  # the newer version, without the flag
    assert show(host, "ActiveState", unit="netwatch-ship") == "active"
    host.run("systemctl stop store")
    seal(host)
    wait_for(host, 'journalctl --unit netwatch-ship --output cat | grep \'"kind":"unreachable"\'')
    assert show(host, "ActiveState", "NRestarts", unit="netwatch-ship") == "active,0"
    host.run("/src/scripts/install --uninstall")
    host.fail("systemctl cat netwatch-ship")
