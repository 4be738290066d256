"""scripts/install on a fresh Debian: what it makes, the quick start on it, again, upwards, and away."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from netwatch import __version__
from tests.systemd import machine
from tests.systemd.conftest import Boot
from tests.systemd.machine import ROOT, Machine
from tests.systemd.test_service import load, show, status_of, stored, wait_until_it_serves

pytestmark = pytest.mark.timeout(300)  # the first one makes Debian and the wheels, once

README = (ROOT / "README.rst").read_text("utf-8")
INSTALL = "/src/scripts/install --wheels /wheels"


def quick_start() -> list[str]:
    """The commands of the README's first page, each as it stands there."""
    blocks = re.findall(r"^    \$ ((?:.*\n)(?:      .*\n)*)", README.partition("The promise\n")[0], re.MULTILINE)
    return [re.sub(r"\n      ", "", block).strip() for block in blocks]


def test_install_and_one_enable_then_the_quick_start_works_as_written(make_machine: Boot) -> None:
    host = make_machine().boot()
    said = host.run(INSTALL)
    assert "systemctl enable --now netwatch" in said
    host.run("systemctl enable --now netwatch")
    post, read = quick_start()
    assert post.startswith("curl ")
    answer = json.loads(host.run(f"cd /var/lib/netwatch && {post.replace('curl ', 'curl --silent --fail-with-body ')}"))
    assert answer["accepted"] == 1
    host.run("cd /var/lib/netwatch && netwatch probe http://127.0.0.1:8080/livez")
    host.run("systemctl kill --signal USR1 --kill-whom main netwatch")
    host.wait_for("ls /var/lib/netwatch/data/reports/*/*.zst")
    lines = [json.loads(line) for line in host.run(f"cd /var/lib/netwatch && {read}").splitlines()]
    assert lines[0]["id"] == answer["id"]
    assert len(lines) == 2


@pytest.fixture
def other_wheels(wheelhouse: Path, tmp_path: Path) -> Path:
    """A directory of wheels to which a test adds another netwatch with :func:`add_version`."""
    directory = tmp_path / "other"
    directory.mkdir()
    for wheel in wheelhouse.glob("*.whl"):
        if not wheel.name.startswith("netwatch-"):
            shutil.copy(wheel, directory)
    return directory


def add_version(wheels: Path, version: str, source: Path, *, broken: bool = False) -> None:
    """Add the netwatch of the work tree under another version; a broken one cannot serve."""
    machine.copy_source(source)
    init = source / "netwatch/__init__.py"
    init.write_text(init.read_text("utf-8").replace(__version__, version), "utf-8")
    if broken:
        server = source / "netwatch/server.py"
        server.write_text(server.read_text("utf-8") + "\n\nraise RuntimeError('broken')\n", "utf-8")
    machine.make_wheel(source, wheels)


def test_an_upgrade_under_load_fails_no_request_and_keeps_the_configuration(
    make_machine: Boot, installed: Path, other_wheels: Path, tmp_path: Path
) -> None:
    add_version(other_wheels, "99.0", tmp_path / "source")
    host = make_machine(installed, more_binds=(f"--bind-ro={other_wheels}:/other",)).boot()
    wait_until_it_serves(host)
    host.run("echo 'workers = 1' > /etc/netwatch/netwatch.toml; systemctl reload netwatch")
    with load(host, 12.0, "--keys", "--new-connections", "0.5", "--expect-only-200"):
        said = host.run("/src/scripts/install --wheels /other")
    assert "netwatch 99.0 is in /opt/netwatch" in said
    assert host.run("netwatch --version").strip() == "netwatch 99.0"
    running = host.run(
        "readlink /proc/$(systemctl show --value --property MainPID netwatch)/cwd; ls /opt/netwatch/releases"
    )
    assert running.splitlines()[0] == "/var/lib/netwatch"
    assert len(running.splitlines()) == 3, "the one before stays"
    assert host.run("cat /etc/netwatch/netwatch.toml") == "workers = 1\n"
    host.run(INSTALL)
    assert len(host.run("ls /opt/netwatch/releases").split()) == 2, "the one before that goes"
    assert show(host, "ActiveState", "NRestarts") == "active,0"


def test_a_version_that_does_not_start_gives_way_to_the_old_one(
    make_machine: Boot, installed: Path, other_wheels: Path, tmp_path: Path
) -> None:
    add_version(other_wheels, "99.0", tmp_path / "source", broken=True)
    host = make_machine(installed, more_binds=(f"--bind-ro={other_wheels}:/other",)).boot()
    wait_until_it_serves(host)
    host.run("rm /opt/netwatch/current/systemd/netwatch-compact.*")  # as if the old one had known no such unit
    host.run("mkdir /tmp/newer; cp -r /src/scripts /src/systemd /tmp/newer")
    host.run("sed -i 's/ serve / serve --new-setting /' /tmp/newer/systemd/netwatch.service")
    assert "the old one is back" in host.fail("/tmp/newer/scripts/install --wheels /other --network-less")
    assert status_of(host) == "200"
    host.run("cmp /src/systemd/netwatch.service /usr/local/lib/systemd/system/netwatch.service")
    assert show(host, "PrivateNetwork") == "no"
    host.fail("systemctl cat netwatch-compact.timer")
    assert host.run("netwatch --version").strip() == f"netwatch {__version__}"
    assert len(host.run("ls /opt/netwatch/releases").split()) == 1


def test_with_a_bad_configuration_nothing_is_changed(host: Machine) -> None:
    before = host.run("readlink /opt/netwatch/current; ls /opt/netwatch/releases")
    pid = show(host, "MainPID")
    host.run("echo 'agents:short' > /etc/netwatch/tokens")
    said = host.fail(INSTALL)
    assert "The tokens in /etc/netwatch/tokens cannot be what they are" in said
    assert "nothing was changed" in said
    assert host.run("readlink /opt/netwatch/current; ls /opt/netwatch/releases") == before
    assert show(host, "MainPID") == pid


def test_uninstall_leaves_the_data_and_nothing_else_and_it_can_come_back(host: Machine) -> None:
    host.run("systemctl --quiet enable --now netwatch-probe.timer")
    assert status_of(host) == "200"
    before = stored(host)
    assert "/var/lib/netwatch, /etc/netwatch and the user netwatch stay" in host.run("/src/scripts/install --uninstall")
    left = host.run("find / -xdev -path /src -prune -o -name '*netwatch*' -print").split()
    assert sorted(name for name in left if "/netwatch/" not in name) == [
        "/etc/netwatch",
        "/var/lib/netwatch",
    ]
    assert host.run("systemctl list-units --all --no-legend 'netwatch*'; pgrep --full '^netwatch:' || true") == ""
    host.fail("curl --silent http://127.0.0.1:8080/livez")
    host.run(f"{INSTALL} && systemctl --quiet enable --now netwatch")
    assert stored(host) == before


def test_what_it_needs_it_names(make_machine: Boot) -> None:
    bare = make_machine().boot()
    assert "install Debian's package python3-venv, or give --wheels" in bare.fail("/src/scripts/install")
    assert "run it as root" in bare.fail("setpriv --reuid 65534 --clear-groups /src/scripts/install")
    assert "no directory '/nowhere' of wheels\nusage:" in bare.fail("/src/scripts/install --wheels /nowhere")
    assert "usage:" in bare.fail("/src/scripts/install --quick")
    assert "lacks pip itself" in bare.fail("/src/scripts/install --wheels /src/systemd")
    assert "Python" in bare.fail("PYTHON=/bin/false /src/scripts/install --wheels /wheels")
    assert bare.run("ls /opt/netwatch/releases 2>/dev/null || true; ls -d /etc/netwatch 2>/dev/null || true") == ""
