"""What is shipped: metadata, data files, and nothing that belongs to one machine only."""

from __future__ import annotations

import configparser
import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

import netwatch

ROOT = Path(__file__).parents[1]

# Written so that this file does not hold what it looks for.
MACHINE_ONLY = [
    r"/wor[k]/",
    r"/roo[t]\b",
    r"/tm[p]/w\b",
    r"py[p]i\.org",
    r"python[h]osted",
    r"npm[j]s",
    r"crates[.]io",
    r"de[b]ian\.org",
]


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_the_installed_package_is_this_one() -> None:
    assert metadata.version("netwatch") == netwatch.__version__
    (command,) = metadata.entry_points(group="console_scripts", name="netwatch")
    assert command.value == "netwatch.cli:main"
    assert metadata.metadata("netwatch")["Requires-Python"] == ">=3.11"


def test_every_dependency_is_bounded_and_has_its_reason() -> None:
    # The raw text: a parser drops the comments.
    (block,) = re.findall(
        r"^install_requires =\n((?:    .*\n)+)", (ROOT / "setup.cfg").read_text(encoding="utf-8"), re.MULTILINE
    )
    lines = [line.strip() for line in block.splitlines()]
    for reason, requirement in zip(lines[::2], lines[1::2], strict=True):
        assert re.match(r"# \S+ \S+", reason), f"{requirement} needs a reason in the line above"
        assert re.fullmatch(r"[a-z-]+ ~= [0-9.]+", requirement), requirement


def test_uvicorn_is_pinned_to_its_minor_version(setup_cfg: configparser.ConfigParser) -> None:
    assert "uvicorn ~= 0.54.0" in setup_cfg["options"]["install_requires"].splitlines()


def test_types_and_alert_rules_are_shipped(setup_cfg: configparser.ConfigParser) -> None:
    assert (ROOT / "netwatch/py.typed").read_bytes() == b""
    assert (ROOT / "netwatch/alerts.yml").exists()
    assert setup_cfg["options.package_data"]["netwatch"].split() == ["py.typed", "alerts.yml"]


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "netwatch").rglob("*.py")}
    without = [folder for folder in folders if not (folder / "__init__.py").exists()]
    assert without == [], "find: would leave it out of what is installed"


def test_nothing_of_one_machine_is_tracked() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.check_output(["git", "-C", ROOT, "ls-files", "-z"], text=True).split("\0")
    pattern = re.compile("|".join(MACHINE_ONLY))
    found = [
        f"{name}:{number}: {line}"
        for name in names
        if name and (ROOT / name).is_file()
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []
