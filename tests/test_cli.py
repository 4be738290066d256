from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from netwatch import __version__, settings
from netwatch.cli import main

HEAVY = {
    "gunicorn",
    "falcon",
    "uvicorn",
    "uvicorn_worker",
    "uvloop",
    "httpx",
    "anyio",
    "asyncio",
    "msgspec",
    "zstandard",
}
HEAVY |= {"multiprocessing", "netwatch.server", "netwatch.writer", "netwatch.http", "netwatch.storage"}


def run(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "netwatch", *arguments],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_version() -> None:
    shown = run("--version")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"netwatch {__version__}\n", "")


def test_help_names_every_command() -> None:
    shown = run("--help", COLUMNS="200")
    assert shown.returncode == 0
    for command in ("serve", "cat", "probe"):
        assert re.search(rf"^ +{command} +\w+", shown.stdout, re.MULTILINE)


def test_the_help_of_serve_names_every_setting_and_its_default() -> None:
    shown = run("serve", "--help", COLUMNS="200")
    assert shown.returncode == 0
    assert "--config FILE" in shown.stdout
    for name, field in settings.FIELDS.items():
        (line,) = re.findall(rf"^ +{settings.flag(name)} X\s+(.*)$", shown.stdout, re.MULTILINE)
        assert field.metadata["help"] in line
        default = field.metadata["default_text"]
        assert "by default" in line if default is None else line.endswith(f"(default: {default})")


@pytest.mark.parametrize(("command", "option"), [("cat", "--data-dir"), ("probe", "--server"), ("probe", "--print")])
def test_the_help_of_the_other_commands_names_their_options(command: str, option: str) -> None:
    shown = run(command, "--help")
    assert shown.returncode == 0
    assert option in shown.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["serve", "--help"], ["cat", "--help"], ["serve", "--workers=0"]]
)
def test_nothing_heavy_is_loaded_for_a_word_of_help(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom netwatch import cli\ntry:\n    cli.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('loaded', *sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=20, check=False
    )
    loaded = set(shown.stdout.splitlines()[-1].split()[1:])
    assert "netwatch.cli" in loaded
    assert {heavy for heavy in HEAVY if any(f"{module}.".startswith(f"{heavy}.") for module in loaded)} == set()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["serve", "--no-such-setting", "1"], "--no-such-setting"),
        (["serve", "--seal-after", "5"], "--seal-after"),
        (["serve", "--workers"], "--workers"),
        (["serve", "extra"], "extra"),
        (["serve", "--bind", "nonsense"], "--bind"),
        (["serve", "--config", "/absent.toml"], "/absent.toml"),
        (["cat", "--data-dir", "/absent"], "/absent"),
        (["cat", "--workers", "1"], "--workers"),
    ],
)
def test_wrong_usage_is_named_and_ends_with_2(arguments: list[str], named: str) -> None:
    shown = run(*arguments)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert named in shown.stderr
    assert "Traceback" not in shown.stderr


def test_the_configuration_may_be_named_by_a_variable(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("workers = 0\n")
    shown = run("serve", NETWATCH_CONFIG=str(tmp_path / "bad.toml"))
    assert shown.returncode == 2
    assert str(tmp_path / "bad.toml") in shown.stderr
    shown = run("serve", "--config", str(tmp_path / "absent.toml"), NETWATCH_CONFIG=str(tmp_path / "bad.toml"))
    assert "absent.toml" in shown.stderr


def test_cat_of_a_directory_without_data_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cat", "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"netwatch: {tmp_path} is no data directory: it has no open.\n"


def test_cat_of_a_file_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["cat", "--data-dir", str(tmp_path / "file")]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_cat_of_an_empty_data_directory_prints_nothing(tmp_path: Path) -> None:
    for name in ("open", "reports"):
        (tmp_path / name).mkdir()
    shown = run("cat", "--data-dir", tmp_path)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "")


def test_cat_that_cannot_write_is_no_traceback(tmp_path: Path) -> None:
    from netwatch.storage.files import Files
    from tests.doubles import made_store

    root = os.open(tmp_path, os.O_RDONLY)
    try:
        store = made_store(Files(root), seal_bytes=10**6)
        store.start(0.0)
        from netwatch.reports import Lines

        made = Lines("h", max_report_bytes=2**20, max_depth=32)
        raw = b'{"clientId":"c","hosts":[],"x":"%b"}' % (b"x" * 10_000)
        store.commit([made.line(raw, 10**18) for _ in range(100)], 0.0)
        store.close(0.0)
    finally:
        os.close(root)
    command = [sys.executable, "-m", "netwatch", "cat", "--data-dir", str(tmp_path)]
    with open("/dev/full", "wb") as full:
        shown = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    assert (shown.returncode, shown.stderr.count("\n")) == (1, 1), shown.stderr
    assert "No space left" in shown.stderr
    # A reader that has seen enough is no fault.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as cat:
        assert cat.stdout
        assert cat.stderr
        assert cat.stdout.read(7) == b'{"id":"'
        cat.stdout.close()
        assert (cat.wait(20), cat.stderr.read()) == (0, b"")


@pytest.mark.parametrize("command", ["verify", "man", "check-config", "prune"])
def test_what_cannot_be_printed_is_no_traceback(tmp_path: Path, command: str) -> None:
    for name in ("open", "reports"):
        (tmp_path / name).mkdir()
    for number in range(1000):
        (tmp_path / "reports" / f"{number:0200}").touch()  # for verify to complain about: more than a buffer
    environ = {"NETWATCH_DATA_DIR": str(tmp_path), "NETWATCH_RETENTION_DAYS": "1"}
    with Path("/dev/full").open("wb") as full:
        shown = subprocess.run(
            [sys.executable, "-m", "netwatch", command],
            env=os.environ | environ,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=20,
            check=False,
        )
    assert (shown.returncode, shown.stderr) == (1, b"netwatch: It failed: [Errno 28] No space left on device.\n")


def test_a_verify_whose_reader_has_seen_enough_is_silent(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    for number in range(1000):
        (tmp_path / "reports" / f"{number:0200}").touch()
    command = f"{sys.executable} -m netwatch verify --data-dir {tmp_path} | head -n 1"
    shown = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=20, check=False)
    assert (shown.stdout[-11:], shown.stderr) == ("good lines\n", "")


def test_a_standard_stream_that_is_closed_leads_nowhere() -> None:
    """Else the log would be written into whichever file is opened next."""
    script = (
        "import os, subprocess, sys; from netwatch.cli import main; main(['check-config']); "
        "sys.exit([os.readlink(f'/proc/self/fd/{fd}') for fd in range(3)] != 3 * [os.devnull]"
        " or subprocess.call(['readlink', '/proc/self/fd/2'], stdout=subprocess.PIPE))"
    )
    command = f'exec {sys.executable} -c "{script}" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", command], timeout=20, check=False).returncode == 0


def test_a_reload_that_finds_no_server_says_how_systemd_has_it(tmp_path: Path) -> None:
    shown = run("reload", RUNTIME_DIRECTORY=str(tmp_path))
    assert shown.returncode == 1
    assert f"{tmp_path}: is it running? Under systemd: systemctl reload netwatch.\n" in shown.stderr
