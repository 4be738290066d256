"""The manual page is made from the parser, names every command and option, and the formatters have nothing to say."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from netwatch.cli import main
from netwatch.settings import FIELDS, flag


@pytest.fixture
def page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["man"]) == 0
    path = tmp_path / "netwatch.1"
    path.write_text(capsys.readouterr().out)
    return path


@pytest.mark.parametrize(
    "command", [["mandoc", "-T", "lint", "-W", "warning"], ["groff", "-man", "-Tutf8", "-ww", "-z"]], ids=lambda c: c[0]
)
def test_the_formatters_find_nothing_wrong(page: Path, command: list[str]) -> None:
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    checked = subprocess.run([*command, str(page)], capture_output=True, text=True, timeout=20, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_it_names_every_command_and_every_setting(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text().replace("\\-", "-")
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    ([\w-]+)(?: |$)", capsys.readouterr().out, re.MULTILINE)
    assert re.findall(r"^\.SS netwatch (.*)$", text, re.MULTILINE) == commands
    for name in FIELDS:
        assert f"\\fB{flag(name)}\\fR" in text
    assert "--follow" in text
    assert "json|pretty" in text
    assert "%(default)s" not in text


def test_whatis_finds_its_name(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert re.fullmatch(r"netwatch \\- [a-z].*", lines[lines.index(".SH NAME") + 1])
