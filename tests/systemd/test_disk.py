"""The disk under the service: one that fills up, and a power cut with all that was not synced gone."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.systemd.conftest import Boot
from tests.systemd.machine import MIB, ROOT, Machine, wait_until
from tests.systemd.test_service import URL, status_of, stored, wait_until_it_serves

pytestmark = pytest.mark.timeout(300)  # the first one makes Debian and the wheels, once

_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = b"\x02\x00\x00\x00"


class Disk:
    """An ext4 of its own, which can lose its power."""

    def __init__(self, directory: Path) -> None:
        self.image, self.path = directory / "disk.img", directory / "disk"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(64 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(self.image)], check=True)
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.path)], check=True)

    def unmount(self) -> None:
        """Returns when nothing has it mounted any more, the machine's own view of it included."""
        subprocess.run(["umount", str(self.path)], check=True)
        wait_until(lambda: not subprocess.check_output(["losetup", "--associated", str(self.image)]), 20)

    def cut_off(self) -> None:
        """Take its power: what is not on the disk by now never will be."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, _NO_LOG_FLUSH)
        finally:
            os.close(fd)


@pytest.fixture
def disk(debian: Path, tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    subprocess.run(["umount", "--lazy", str(made.path)], capture_output=True, check=False)


@pytest.fixture
def host(make_machine: Boot, installed: Path, disk: Disk) -> Machine:
    """A machine whose reports go to a disk of their own."""
    made = make_machine(installed, more_binds=(f"--bind={disk.path}:/var/lib/netwatch",))
    (made.root / "etc/netwatch/netwatch.toml").write_text('min_free_bytes = "16MiB"\n')
    wait_until_it_serves(made.boot())
    return made


@contextmanager
def clients(host: Machine, log: Path) -> Iterator[None]:
    """They post, and write down every answer, until the block ends."""
    command = [*host.network, sys.executable, "-m", "netwatch.loadtest", URL, "--duration", "60", "--log", str(log)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def acked(log: Path) -> list[str]:
    """The reports that were answered 200."""
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines() if line.endswith("}")]
    return [line["id"] for line in lines if line["outcome"] == 200]


def test_no_acked_report_is_lost_in_a_power_cut(host: Machine, disk: Disk, tmp_path: Path) -> None:
    log = tmp_path / "clients.log"
    with clients(host, log):
        time.sleep(3)
        disk.cut_off()
        host.cut_off()
    disk.unmount()
    disk.mount()
    wait_until_it_serves(host.boot())
    ids = [line["report"]["clientId"] for line in stored(host)]
    safe = acked(log)
    assert len(safe) > 100
    assert len(set(ids)) == len(ids)
    assert set(safe) <= set(ids)
    host.run(
        "systemctl stop netwatch.socket netwatch.service && zstd --test --quiet /var/lib/netwatch/data/reports/*/*"
    )
    assert host.run("ls /var/lib/netwatch/data/open /var/lib/netwatch/data/quarantine | grep zst || true") == ""


def test_a_full_disk_is_said_and_over_when_there_is_room(host: Machine) -> None:
    assert status_of(host) == "200"
    host.run(
        "fallocate --length 50MiB /var/lib/netwatch/filler || dd if=/dev/zero of=/var/lib/netwatch/filler bs=1M || true"
    )
    host.wait_for("! curl --silent --fail http://127.0.0.1:8080/readyz")
    assert status_of(host) == "503"
    assert "disk_full" in host.run("curl --silent http://127.0.0.1:8080/readyz")
    pid = host.run("systemctl show --value --property MainPID netwatch")
    host.run("rm /var/lib/netwatch/filler")
    host.wait_for("curl --silent --fail http://127.0.0.1:8080/readyz")
    assert status_of(host) == "200"
    assert len(stored(host)) == 2
    assert host.run("systemctl show --value --property MainPID netwatch") == pid, "without a restart"
