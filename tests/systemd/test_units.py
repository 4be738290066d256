"""The unit files as systemd's own tools judge them, and the example configuration against the settings."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from netwatch import settings
from tests.systemd.machine import ROOT

UNITS = (
    "netwatch.service",
    "netwatch.socket",
    "netwatch-probe.service",
    "netwatch-probe.timer",
    "netwatch-ship.service",
    "netwatch-compact.service",
    "netwatch-compact.timer",
)
PROGRAM = "/opt/netwatch/current/bin/netwatch"

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program that this host has."""
    for name in UNITS:
        text = (ROOT / "systemd" / name).read_text("utf-8")
        (tmp_path / name).write_text(text.replace(PROGRAM, "/bin/true"), "utf-8")
    return tmp_path


def analyze(*arguments: str | Path) -> tuple[str, int]:
    done = subprocess.run(
        ["systemd-analyze", "--no-pager", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout, done.returncode


@needs_systemd
def test_systemd_takes_the_units_without_a_word(units: Path) -> None:
    # It prints what it does not know and exits 0 all the same.
    assert analyze("verify", "--man=no", *(units / name for name in UNITS)) == ("", 0)
    add_drop_in(units)
    assert analyze("verify", "--man=no", *(units / name for name in UNITS)) == ("", 0)


def add_drop_in(units: Path) -> None:
    (units / "netwatch.service.d").mkdir()
    shutil.copy(ROOT / "systemd/network-less.conf", units / "netwatch.service.d")


@needs_systemd
@pytest.mark.parametrize(
    ("unit", "is_network_less", "most"),
    [
        ("netwatch.service", False, 1.5),
        ("netwatch.service", True, 0.5),
        ("netwatch-probe.service", False, 1.5),
        ("netwatch-ship.service", False, 1.5),
        ("netwatch-compact.service", False, 1.5),
    ],
)
def test_what_is_exposed_is_little(units: Path, unit: str, is_network_less: bool, most: float) -> None:
    if is_network_less:
        add_drop_in(units)
    said, code = analyze("security", "--offline=true", f"--threshold={round(most * 10)}", units / unit)
    assert code == 0, said
    (score,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert float(score) <= most


def test_every_group_of_lines_has_its_reason() -> None:
    for name in UNITS:
        text = (ROOT / "systemd" / name).read_text("utf-8")
        hardening = text.partition("[Service]")[2].partition("[Install]")[0]
        groups = [group for group in hardening.strip().split("\n\n") if "Protect" in group or "Restrict" in group]
        assert [group for group in groups if not group.startswith("#")] == [], name


def test_the_program_is_the_one_that_is_installed() -> None:
    for name in [name for name in UNITS if name.endswith(".service")]:
        text = (ROOT / "systemd" / name).read_text("utf-8")
        commands = re.findall(r"^Exec\w+=(\S+)", text, re.MULTILINE)
        assert set(commands) == {PROGRAM}
    assert "prefix=/opt/netwatch\n" in (ROOT / "scripts/install").read_text("utf-8")


EXAMPLE = ROOT / "systemd/netwatch.toml"


def test_the_example_configuration_sets_nothing_and_has_every_setting(tmp_path: Path) -> None:
    text = EXAMPLE.read_text("utf-8")
    assert tomllib.loads(text) == {}
    uncommented = re.sub(r"^#(\w+ = )", r"\1", text, flags=re.MULTILINE)
    values = tomllib.loads(uncommented)
    assert list(values) == list(settings.FIELDS), "systemd/netwatch.toml has each setting, in the order of settings.py"
    for name, field in settings.FIELDS.items():
        parsed = field.metadata["parse"](values[name])
        if field.metadata["default_text"] is not None and name != "data_dir":
            assert parsed == field.default, f"{name} shows its default"


def test_every_setting_of_the_example_stands_below_its_reason() -> None:
    for paragraph in EXAMPLE.read_text("utf-8").strip().split("\n\n"):
        lines = paragraph.splitlines()
        assert lines[0].startswith("# "), paragraph
        assert all(line.startswith("#") for line in lines), paragraph


def test_the_drain_ends_before_systemd_gives_up() -> None:
    unit = (ROOT / "systemd/netwatch.service").read_text("utf-8")
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(stop_s) > settings.Settings().drain_timeout_s + 6


def test_the_limit_of_files_is_above_the_connections() -> None:
    unit = (ROOT / "systemd/netwatch.service").read_text("utf-8")
    (files,) = re.findall(r"^LimitNOFILE=(\d+)$", unit, re.MULTILINE)
    assert int(files) > 2 * settings.Settings().max_connections
