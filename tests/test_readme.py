"""README.rst is the manual: each setting, error and command stands in it, and nothing stands there that is gone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from netwatch import cli
from netwatch.errors import ERRORS
from netwatch.log import LEVELS
from netwatch.metrics.__main__ import readme_table
from netwatch.settings import FIELDS
from netwatch.ship.metrics import SHIPPER

README = (Path(__file__).parent.parent / "README.rst").read_text("utf-8")


def section(title: str) -> str:
    """The text under the heading ``title``."""
    match = re.search(rf"^{re.escape(title)}\n-+\n(.*?)(?=^[^\n]+\n-{{3,}}\n|\Z)", README, re.MULTILINE | re.DOTALL)
    assert match, f"README.rst has no section {title}"
    return match[1]


def rows(text: str) -> dict[str, str]:
    """The first cell of each table row, without its backquotes, and the rest of its first line."""
    return dict(re.findall(r"^``([^`]+)``\s{2,}(.*)$", text, re.MULTILINE))


def test_every_setting_stands_with_its_default() -> None:
    documented = rows(section("Settings"))
    assert list(documented) == list(FIELDS)
    for name, field in FIELDS.items():
        if (default := field.metadata["default_text"]) is not None:
            assert re.match(rf"{re.escape(default)}\s", documented[name]), f"{name} is {default}"


def test_what_waits_for_a_restart_is_named() -> None:
    (named,) = re.findall(r"in the log names\nit: (.*?)\.\n", section("Reload"), re.DOTALL)
    assert re.findall("``(.*?)``", named) == [name for name, field in FIELDS.items() if field.metadata["needs_restart"]]


def test_every_error_stands_with_its_status_and_title() -> None:
    documented = {code: tuple(rest.split(maxsplit=1)) for code, rest in rows(section("Errors")).items()}
    assert documented == {code: (str(status), title) for code, (status, title) in ERRORS.items()}


def test_the_table_of_the_metrics_is_the_one_that_is_made_from_them() -> None:
    assert readme_table() in section("Metrics"), "paste what python -m netwatch.metrics prints"


def test_so_is_the_shippers() -> None:
    assert readme_table(SHIPPER.metrics) in section("Ship to a bucket")


def events() -> dict[str, set[str]]:
    """Every event that the source logs, and its levels."""
    found: dict[str, set[str]] = {}
    for path in (Path(__file__).parent.parent / "netwatch").rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        for call in calls:
            for name in [argument.value for argument in call.args if isinstance(argument, ast.Constant)]:
                for level in levels(call.func):
                    found.setdefault(str(name), set()).add(level)
    return found


def levels(func: ast.expr) -> set[str]:
    """What `log.info`, `(log.error if … else log.info)`, and the functions that log for others, log at."""
    if isinstance(func, ast.IfExp):
        return levels(func.body) | levels(func.orelse)
    if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name) and func.value.id == "log":
        return {func.attr} & set(LEVELS)
    if isinstance(func, ast.Attribute) and func.attr == "_give_up":
        return {"error"}
    if isinstance(func, ast.Call) and isinstance(func.func, ast.Name) and func.func.id == "_log":
        return {"info", "warning"}
    if isinstance(func, ast.Name) and func.id == "error":  # in log itself
        return {"error"}
    return set()


def test_every_event_of_the_log_stands_with_its_level() -> None:
    documented = {name: set(rest.split()[0].split("/")) for name, rest in rows(section("Logs")).items()}
    assert documented == {**events(), "library": {"any"}}


def test_every_command_stands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    commands = re.findall(r"^    ([\w-]+)(?: |$)", capsys.readouterr().out, re.MULTILINE)
    documented = [name.partition(" ")[2] for name in rows(section("Commands")) if name.startswith("netwatch ")]
    assert sorted(documented) == sorted(commands)


def test_every_script_that_is_named_exists() -> None:
    root = Path(__file__).parent.parent
    for script in set(re.findall(r"\bscripts/\w+", README)):
        assert (root / script).exists(), script


def test_it_is_valid_restructuredtext() -> None:
    docutils = pytest.importorskip("docutils.core")
    docutils.publish_string(README, writer="null", settings_overrides={"halt_level": 2, "report_level": 2})
