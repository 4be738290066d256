"""`netwatch cat` and `netwatch tail`: which lines they print, in which form, and how much memory they take."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from netwatch.cli import main
from netwatch.commands.options import since
from netwatch.commands.pretty import Pretty
from netwatch.reports import Lines
from netwatch.storage.files import Files
from netwatch.storage.layout import SegmentId
from tests.doubles import made_store

MIB = 1024 * 1024
Show = Callable[..., list[str]]
START_NS = 1_795_342_800_000_000_000  # 2026-11-22T10:20:00Z
LINES = Lines("host1", max_report_bytes=MIB, max_depth=32)


def host(name: str, *, error: str | None = None, latency: float | None = 12.5) -> dict[str, object]:
    return {
        "name": name,
        "url": f"https://{name}:8443/path",
        "status": "error" if error else "online",
        "history": [{"t": 1, "latency": latency, "error": error}],
    }


def report_line(minute: int, client: str, *hosts: dict[str, object]) -> bytes:
    raw = json.dumps({"clientId": client, "hosts": hosts}).encode()
    return LINES.line(raw, START_NS + minute * 60_000_000_000)


def browser_line(minute: int, kind: str, url: str) -> bytes:
    raw = json.dumps({"type": kind, "url": url, "age": 0, "body": {"phase": "dns", "type": "dns.failed"}}).encode()
    line_id = "0193a5b0-0000-7000-8000-00000000000b"
    return LINES.browser_line(raw, START_NS + minute * 60_000_000_000, line_id, b"", ("all",))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four sealed files, one a minute, and a line in an open segment."""
    path = tmp_path / "data"
    path.mkdir()
    root = os.open(path, os.O_RDONLY)
    store = made_store(Files(root))
    store.start(0.0)
    for line in (
        report_line(0, "agent-1", host("a.example")),
        report_line(1, "agent-2", host("b.example", error="connect: refused", latency=None)),
        browser_line(2, "network-error", "https://shop.example/cart"),
        report_line(3, "agent-1", host("a.example"), host("b.example")),
    ):
        store.commit([line], 0.0)
        store.seal("asked")
        store.tend(0.0)
    store.commit([report_line(4, "agent-3")], 0.0)
    os.close(root)
    return path


@pytest.fixture
def show(data: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Show:
    """`show(command, …)`: the minutes of the lines that it prints."""

    def show(*arguments: str) -> list[str]:
        assert main([*arguments, "--format", "json", "--data-dir", str(data)]) == 0
        printed = capsysbinary.readouterr()
        assert printed.err == b""
        return [json.loads(line)["receivedAt"][15] for line in printed.out.splitlines()]

    return show


@pytest.mark.parametrize(
    ("wanted", "minutes"),
    [
        ([], "01234"),
        (["--client", "agent-1"], "03"),
        (["--client", "agent-1", "--client", "agent-3"], "034"),
        (["--client", "agent"], ""),
        (["--host", "b.example"], "13"),
        (["--host", "b.example:8443"], "13"),
        (["--host", "shop.example"], "2"),
        (["--kind", "network-error"], "2"),
        (["--kind", "report", "--client", "agent-1", "--host", "b.example"], "3"),
        (["--since", "2026-11-22T10:21:00Z"], "1234"),
        (["--since", "2026-11-22 12:23:00+02:00"], "34"),
        (["--since", "2026-11-22T10:25:00"], ""),
    ],
)
def test_what_is_wanted_is_printed_by_cat_and_by_tail(show: Show, wanted: list[str], minutes: str) -> None:
    assert "".join(show("cat", *wanted)) == minutes
    assert "".join(show("tail", "-n", "100", *wanted)) == minutes
    assert "".join(show("tail", "-n", "2", *wanted)) == minutes[-2:]
    assert "".join(show("tail", *wanted)) == minutes


@pytest.mark.parametrize("count", range(7))
def test_tail_prints_the_last_lines(show: Show, count: int) -> None:
    assert "".join(show("tail", "-n", str(count))) == "01234"[5 - min(count, 5) :]


def test_a_client_with_any_name_is_found(data: Path, show: Show) -> None:
    name = 'ä "quoted" \\ \x1b[31m\u2028'
    root = os.open(data, os.O_RDONLY)
    store = made_store(Files(root))
    store.start(0.0)
    store.commit([report_line(9, name)], 0.0)
    store.close(0.0)
    os.close(root)
    assert show("cat", "--client", name) == ["9"]


def test_files_that_hold_nothing_newer_are_not_read(
    data: Path, show: Show, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """By the day and the time in the name, unless a file was changed since."""
    oldest = min(data.glob("reports/*/*"))
    oldest.write_bytes(b"broken")
    os.utime(oldest, (0, 0))
    assert main(["cat", "--data-dir", str(data)]) == 1
    capsysbinary.readouterr()
    assert "".join(show("cat", "--since", "2026-11-22T10:21:06Z")) == "234"
    assert main(["cat", "--data-dir", str(data), "--since", "2026-11-22T10:21:05Z"]) == 1
    os.utime(oldest)
    assert main(["cat", "--data-dir", str(data), "--since", "2026-11-22T10:21:06Z"]) == 1


def test_a_broken_file_is_named_and_the_rest_is_printed(data: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    oldest = min(data.glob("reports/*/*"))
    oldest.write_bytes(oldest.read_bytes()[:-1])
    pipe, directory = (oldest.with_name(oldest.name.replace("-000001", f"-00010{digit}")) for digit in "01")
    os.mkfifo(pipe)
    directory.mkdir()
    assert main(["cat", "--data-dir", str(data)]) == 1
    printed = capsysbinary.readouterr()
    assert len(printed.out.splitlines()) == 5
    for path in (oldest, pipe, directory):
        assert path.relative_to(data).as_posix() in printed.err.decode()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("2 h", 7200), ("1.5d", 129600), ("1w", 604800)]
)
def test_since_may_be_so_long_ago(text: str, seconds: float) -> None:
    import time

    assert abs(time.time() - seconds - since(text)) < 5


@pytest.mark.parametrize("text", ["", "10", "10 parsecs", "yesterday", "2026-13-01", "-5m"])
def test_a_time_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["cat", f"--since={text}"])
    assert ended.value.code == 2
    assert "10m" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["-1", "x", ""])
def test_a_number_of_lines_that_is_none_is_refused(count: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tail", f"-n={count}"])
    assert ended.value.code == 2


def test_a_pretty_line_says_what_went_wrong_first() -> None:
    pretty = Pretty(is_coloured=False).text
    line = report_line(1, "agent-2", host("a.example"), host("b.example", error="connect: refused", latency=None))
    assert pretty(line) == (
        "2026-11-22 10:21:00.000Z  agent-2  b.example error connect: refused · a.example online 12.5 ms"
    )
    assert pretty(report_line(1, "agent-2")) == "2026-11-22 10:21:00.000Z  agent-2  no hosts"
    many = report_line(1, "agent-2", *(host(f"{number}.example") for number in range(9)))
    assert pretty(many).endswith(" and 3 more")
    assert pretty(browser_line(1, "network-error", "https://a.example/")) == (
        "2026-11-22 10:21:00.000Z  network-error  https://a.example/  phase=dns type=dns.failed"
    )


@pytest.mark.parametrize("is_coloured", [False, True])
def test_nothing_a_client_sends_can_command_the_terminal(is_coloured: bool) -> None:
    evil = "\x1b[2J\x9b31m\r\n\u202e\u2028\x00end"
    for line in (
        report_line(1, evil, {**host(evil, error=evil), "url": evil}),
        browser_line(1, f"kind{evil}"[:100], evil),
    ):
        text = re.sub(r"\x1b\[[0-9]+m", "", Pretty(is_coloured=is_coloured).text(line))
        assert text.isprintable()
        assert "\\x1b[2J" in text


def test_every_shape_of_browser_report_is_printed() -> None:
    for body in ("[1,2]", "null", '"text"', "{}", '{"a":{"b":[1]}}'):
        raw = b'{"type":"odd","body":%b,"hosts":7,"clientId":[]}' % body.encode()
        line = LINES.browser_line(raw, START_NS, "0193a5b0-0000-7000-8000-00000000000b", b"", ("all",))
        assert "odd" in Pretty(is_coloured=False).text(line)
    raw = b'{"csp-report":{"blocked-uri":"https://evil.example"}}'
    line = LINES.browser_line(raw, START_NS, "0193a5b0-0000-7000-8000-00000000000b", b"", ("all",))
    assert "blocked-uri=https://evil.example" in Pretty(is_coloured=False).text(line)


@pytest.mark.parametrize(
    ("environ", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_on_a_terminal_it_is_pretty_and_coloured_unless_no_color_is_set(
    data: Path, environ: dict[str, str], is_coloured: bool
) -> None:
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "netwatch", "tail", "--data-dir", str(data)],
        stdout=theirs,
        check=True,
        timeout=20,
        env={name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"} | environ,
    )
    printed = os.read(ours, 65536).decode()
    os.close(ours)
    os.close(theirs)
    assert printed.count("\n") == 5
    assert "agent-2" in printed
    assert "{" not in printed
    assert ("\x1b[" in printed) == is_coloured


@pytest.mark.parametrize(
    "arguments", [["cat"], ["cat", "--client", "nobody"], ["tail", "-n", "3"], ["verify"]], ids=" ".join
)
def test_no_file_is_held_in_memory(tmp_path: Path, arguments: list[str]) -> None:
    """192 MiB of lines in one file are read in much less."""
    data = tmp_path / "data"
    (data / "open").mkdir(parents=True)
    line = report_line(0, "agent", *(host(f"{number}.example") for number in range(100)))
    path = data / SegmentId("0a1b2c3d", 1).sealed_path("2026-11-22T10:20:00.000000Z")
    path.parent.mkdir(parents=True)
    count = 192 * MIB // len(line)
    compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    with path.open("wb") as file:
        for _ in range(count):
            file.write(compressor.compress(line))
        file.write(compressor.flush())
    program = (  # not getrusage's figure, which begins with that of the process that started this one
        "import pathlib, re, sys\nfrom netwatch.cli import main\ncode = main(sys.argv[1:])\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(re.search(r'VmHWM:\\s*(\\d+)', status)[1], file=sys.stderr)\nsys.exit(code)"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--data-dir", str(data)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    assert int(process.stderr) * 1024 < 96 * MIB
