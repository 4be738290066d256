from __future__ import annotations

import ipaddress
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from netwatch import queue, reports
from netwatch.errors import StartError
from netwatch.settings import FIELDS, KIB, MIB, Settings, flag, load, split_address, variable

DEFAULTS: dict[str, Any] = {
    "bind": "127.0.0.1:8080",
    "admin_bind": None,
    "data_dir": Path("data"),
    "name": socket.gethostname(),
    "workers": len(os.sched_getaffinity(0)),
    "durability": "synced",
    "seal_bytes": 10 * MIB,
    "seal_after_s": 60.0,
    "compression_level": 1,
    "max_body_bytes": 20 * MIB,
    "max_report_bytes": 1 * MIB,
    "max_reports": 10_000,
    "max_depth": 32,
    "in_flight_bytes": 64 * MIB,
    "commit_bytes": 8 * MIB,
    "ack_timeout_s": 4.0,
    "drain_timeout_s": 3.0,
    "tokens": {},
    "tokens_file": None,
    "allowed_origins": (),
    "trusted_proxies": (),
    "address": "none",
    "kept_kinds": ("all",),
    "retire_browser_reports": False,
    "page_reserve_bytes": 8 * MIB,
    "idempotency_window_s": 900.0,
    "idempotency_keys": 200_000,
    "max_connections": 4096,
    "header_timeout_s": 10.0,
    "body_timeout_s": 60.0,
    "idle_timeout_s": 75.0,
    "tls_certificate": None,
    "tls_key": None,
    "log_format": "auto",
    "slow_request_s": 1.0,
    "access_log_sample": 0.0,
    "min_free_bytes": 256 * MIB,
    "retention_days": None,
    "retention_bytes": None,
    "retention_only_shipped": False,
}
"""The design's list, whole."""

TOKEN = "0123456789abcdef"
TOKENS_FILE = Path(os.devnull)
CERTIFICATE = Path(__file__).parent / "certificate.pem"  # with its key; it serves nothing
"""A file that can be read, and holds no token."""

# Of each setting: as a flag or a variable, as TOML, and what it then is.
GIVEN: dict[str, tuple[str, str, object]] = {
    "bind": ("[::1]:9000", '"[::1]:9000"', "[::1]:9000"),
    "admin_bind": ("127.0.0.1:9100", '"127.0.0.1:9100"', "127.0.0.1:9100"),
    "data_dir": ("/srv/data", '"/srv/data"', Path("/srv/data")),
    "name": ("edge 1", '"edge 1"', "edge 1"),
    "workers": ("3", "3", 3),
    "durability": ("written", '"written"', "written"),
    "seal_bytes": ("64MiB", '"64MiB"', 64 * MIB),
    "seal_after_s": ("0.5", "0.5", 0.5),
    "compression_level": ("19", "19", 19),
    "max_body_bytes": ("1024", "1024", 1024),
    "max_report_bytes": ("2 kib", '"2 kib"', 2048),
    "max_reports": ("5", "5", 5),
    "max_depth": ("64", "64", 64),
    "in_flight_bytes": ("1GiB", '"1GiB"', 1024 * MIB),
    "commit_bytes": ("2m", '"2m"', 2 * MIB),
    "ack_timeout_s": ("1e1", "10", 10.0),
    "drain_timeout_s": ("0", "0", 0.0),
    "tokens": (f"a:{TOKEN}", f'{{a = "{TOKEN}"}}', {"a": TOKEN}),
    "tokens_file": (str(TOKENS_FILE), f'"{TOKENS_FILE}"', TOKENS_FILE),
    "allowed_origins": ("https://a.example, *", '["https://a.example", "*"]', ("https://a.example", "*")),
    "trusted_proxies": (
        "10.0.0.0/8,::1",
        '["10.0.0.0/8", "::1"]',
        (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1")),
    ),
    "address": ("truncated", '"truncated"', "truncated"),
    "kept_kinds": ("network-error,crash", '["network-error", "crash"]', ("network-error", "crash")),
    "retire_browser_reports": ("yes", "true", True),
    "page_reserve_bytes": ("1MiB", '"1MiB"', MIB),
    "idempotency_window_s": ("60", "60", 60.0),
    "idempotency_keys": ("0", "0", 0),
    "max_connections": ("1", "1", 1),
    "header_timeout_s": ("0.5", "0.5", 0.5),
    "body_timeout_s": ("0.5", "0.5", 0.5),
    "idle_timeout_s": ("5", "5", 5.0),
    "tls_certificate": (str(CERTIFICATE), f'"{CERTIFICATE}"', CERTIFICATE),
    "tls_key": (str(CERTIFICATE), f'"{CERTIFICATE}"', CERTIFICATE),
    "log_format": ("json", '"json"', "json"),
    "slow_request_s": ("0", "0", 0.0),
    "access_log_sample": ("0.25", "0.25", 0.25),
    "min_free_bytes": ("0", "0", 0),
    "retention_days": ("30", "30", 30.0),
    "retention_bytes": ("100GiB", '"100GiB"', 100 * 1024 * MIB),
    "retention_only_shipped": ("yes", "true", True),
}
NEEDED: dict[str, dict[str, object]] = {
    "tls_certificate": {"tls_key": str(CERTIFICATE)},
    "tls_key": {"tls_certificate": str(CERTIFICATE)},
}
"""What a setting cannot be without."""

BAD: dict[str, list[object]] = {
    "bind": [
        "",
        "8080",
        "127.0.0.1",
        "127.0.0.1:",
        ":8080",
        "host:65536",
        "host:-1",
        "host:http",
        "::1:8080",
        "a..b:80",
    ],
    "admin_bind": ["9100", "::1:9100"],
    "data_dir": ["", "a\nb", "\0", "~nobody-of-that-name/data", "\udcff"],
    "name": ["", "a\nb", "\x1b[31m", "n" * 254, "\u2028"],
    "workers": ["0", "-1", "1.5", "many", "513", "", True, 1.5],
    "durability": ["written ", "", "none", "SYNCED"],
    "seal_bytes": ["0", "-1", "10MB", "10 MiBs", "1.5MiB", "MiB", "", "1e6", True, 1.5],
    "seal_after_s": ["0", "-1", "60s", "nan", "inf", "", "1e9", True],
    "compression_level": ["0", "20", "fast"],
    "max_body_bytes": ["1023", "257MiB"],
    "max_report_bytes": ["1023", "1025MiB"],
    "max_reports": ["0", "100001"],
    "max_depth": ["4", "65"],
    "in_flight_bytes": ["1023"],
    "commit_bytes": ["1023", "1025MiB"],
    "ack_timeout_s": ["0", "0.09"],
    "drain_timeout_s": ["-0.1"],
    "tokens": [
        "0123456789abcdef",
        "a:",
        "a:0123456789abcde",
        f"a:{'x' * 513}",
        "a:0123456789abcde!",
        "a:0123456789 abcdef",
        ":0123456789abcdef",
        "a b:0123456789abcdef",
        f"{'n' * 65}:0123456789abcdef",
        "a:0123456789abcdef,a:0123456789abcdeg",
        ",",
        " , ",
        True,
        5,
    ],
    "tokens_file": ["~nobody-of-that-name/tokens", "a\nb", True],
    "allowed_origins": [
        "www.example.org",
        "https://www.example.org/",
        "https://www.example.org/path",
        "https://",
        "https://a b",
        "HTTPS://www.example.org",
        "https://*.example.org/*",
        ",",
        True,
    ],
    "trusted_proxies": [",", "proxy.example.org", "10.0.0.1/8", "10.0.0.0/33", "1", True],
    "address": ["", "no", "FULL", True],
    "kept_kinds": [",", True, 5],
    "retire_browser_reports": ["", "maybe", "1", "YES", 5],
    "page_reserve_bytes": ["-1", "many"],
    "idempotency_window_s": ["-1", "15min"],
    "idempotency_keys": ["-1", "1.5"],
    "max_connections": ["0", "-1"],
    "header_timeout_s": ["0", "0.09"],
    "body_timeout_s": ["0", "0.09"],
    "idle_timeout_s": ["0", "0.9"],
    "tls_certificate": ["a\nb", True],
    "tls_key": ["a\nb", True],
    "log_format": ["", "xml", 1],
    "slow_request_s": ["-1", "soon", True],
    "access_log_sample": ["-0.1", "1.1", "all", True],
    "min_free_bytes": ["-1"],
    "retention_days": ["0", "-1", "30d", True],
    "retention_bytes": ["0", "1023", "-1", "many"],
    "retention_only_shipped": ["perhaps", ""],
}


def refused(
    flags: dict[str, object] | None = None, environ: dict[str, str] | None = None, config: Path | None = None
) -> str:
    with pytest.raises(StartError) as caught:
        load(flags or {}, environ or {}, config)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "netwatch.toml"


def test_the_settings_and_their_defaults_are_the_designs() -> None:
    assert set(FIELDS) == set(DEFAULTS)
    settings = load({}, {}, None)
    assert {name: getattr(settings, name) for name in FIELDS} == DEFAULTS


@pytest.mark.parametrize("name", FIELDS)
def test_each_setting_is_a_flag_a_variable_and_a_member_of_the_file(name: str, config: Path) -> None:
    text, toml, value = GIVEN[name]
    assert flag(name) == "--" + name.replace("_", "-")
    assert variable(name) == "NETWATCH_" + name.upper()
    config.write_text(f"{name} = {toml}\n")
    needed = NEEDED.get(name, {})
    for settings in (
        load({name: text, **needed}, {}, None),
        load(needed, {variable(name): text}, None),
        load(needed, {}, config),
    ):
        assert getattr(settings, name) == value
        assert type(getattr(settings, name)) is type(value)
        others = set(FIELDS) - {name} - set(needed)
        assert all(getattr(settings, other) == DEFAULTS[other] for other in others)


def test_flags_win_over_the_environment_over_the_file_over_the_default(config: Path) -> None:
    config.write_text("workers = 2\nmax_depth = 10\nmax_reports = 7\n")
    environ = {"NETWATCH_WORKERS": "3", "NETWATCH_MAX_DEPTH": "11", "PATH": "/bin", "NETWATCHER": "1"}
    settings = load({"workers": "4"}, environ, config)
    assert (settings.workers, settings.max_depth, settings.max_reports, settings.compression_level) == (4, 11, 7, 1)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_an_impossible_value_is_refused_by_name_wherever_it_stands(name: str, value: object, config: Path) -> None:
    assert flag(name) in refused({name: value})
    if isinstance(value, str):
        assert variable(name) in refused({}, {variable(name): value})
        if value.isprintable():
            config.write_text(f"{name} = {value!r}\n")
            assert f"{name} in {config}" in refused(config=config)
    else:
        config.write_text(f"{name} = {str(value).lower()}\n")
        assert f"{name} in {config}" in refused(config=config)


def test_a_bad_value_is_refused_even_where_another_wins(config: Path) -> None:
    config.write_text("workers = 0\n")
    assert "workers" in refused({"workers": "1"}, {}, config)


@pytest.mark.parametrize("name", FIELDS)
def test_bounds_are_taken_and_what_lies_beyond_is_refused_with_them(name: str) -> None:
    low, high = FIELDS[name].metadata["low"], FIELDS[name].metadata["high"]
    for bound, beyond, word in (
        (low, low is not None and low - 1, "least"),
        (high, high is not None and high + 1, "most"),
    ):
        if bound is not None:
            assert getattr(load({name: bound}, {}, None), name) == bound
            message = refused({name: beyond})
            assert re.search(rf"give at {word} [0-9.]+(MiB)?\.$", message) or beyond < 0, message


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        (" 7 ", 7),
        ("7B", 7),
        ("1K", KIB),
        ("1KiB", KIB),
        ("3M", 3 * MIB),
        ("3 MiB", 3 * MIB),
        ("2G", 2048 * MIB),
        ("2gib", 2048 * MIB),
        (12, 12),
    ],
)
def test_sizes_may_have_a_binary_unit(text: object, size: int) -> None:
    assert load({"seal_bytes": text}, {}, None).seal_bytes == size


@pytest.mark.parametrize(
    "key",
    ["NETWATCH_", "NETWATCH_SEAL", "NETWATCH_SEAL_AFTER", "NETWATCH_workers", "NETWATCH_Workers", "NETWATCH_config"],
)
def test_an_unknown_variable_is_refused_by_name(key: str) -> None:
    assert f"{key}," in refused({}, {key: "1"})


def test_the_files_own_variable_is_no_setting() -> None:
    assert load({}, {"NETWATCH_CONFIG": "/etc/netwatch.toml"}, None) == load({}, {}, None)


@pytest.mark.parametrize("name", ["seal_after", "seal-after-s", "Workers", "config", "server"])
def test_an_unknown_member_of_the_file_is_refused_by_name(name: str, config: Path) -> None:
    config.write_text(f'"{name}" = 1\n')
    assert f"{name!r}," in refused(config=config)
    config.write_text(f'["{name}"]\nworkers = 1\n')
    assert f"{name!r}," in refused(config=config)


@pytest.mark.parametrize("content", [b"workers = ", b"workers 2", b"workers = 2\nworkers = 3\n", b"name = '\xff'"])
def test_a_file_that_is_no_toml_is_refused(content: bytes, config: Path) -> None:
    config.write_bytes(content)
    assert str(config) in refused(config=config)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(config=tmp_path / "absent.toml")
    assert "Is a directory" in refused(config=tmp_path)


@pytest.mark.parametrize("value", ['["a"]', "{a = 1}", "2026-11-22", "nan"])
@pytest.mark.parametrize("name", FIELDS)
def test_a_value_of_another_type_is_refused(name: str, value: str, config: Path) -> None:
    config.write_text(f"{name} = {value}\n")
    if (name, value) == ("kept_kinds", '["a"]'):  # which is what it should be
        assert load({}, {}, config).kept_kinds == ("a",)
    else:
        assert name in refused(config=config)


def test_a_path_may_begin_with_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load({"data_dir": "~/data"}, {}, None).data_dir == Path("/home/someone/data")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("example.org:80", ("example.org", 80)),
    ],
)
def test_an_address_is_taken_apart(text: str, address: tuple[str, int]) -> None:
    assert split_address(text) == address


@pytest.mark.parametrize("place", ["flag", "variable", "file"])
def test_serve_ends_with_2_and_one_sentence(place: str, config: Path) -> None:
    config.write_text("workers = 0\n" if place == "file" else "")
    run = subprocess.run(
        [sys.executable, "-m", "netwatch", "serve", "--config", config, *(["--workers=0"] if place == "flag" else [])],
        env=os.environ | ({"NETWATCH_WORKERS": "0"} if place == "variable" else {}),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert {"flag": "--workers", "variable": "NETWATCH_WORKERS", "file": f"workers in {config}"}[place] in run.stderr


# What the settings promise each other


@pytest.mark.parametrize(
    ("in_flight", "workers", "body", "share"),
    [(64, 2, 20, 32), (64, 4, 20, 20), (64, 1, 20, 64), (1, 8, 20, 20), (100, 3, 1, 100 * MIB // 3)],
)
def test_a_workers_share_of_the_bytes_in_flight_holds_a_body(
    in_flight: int, workers: int, body: int, share: int
) -> None:
    settings = Settings(in_flight_bytes=in_flight * MIB, workers=workers, max_body_bytes=body * MIB)
    assert settings.worker_in_flight_bytes == (share * MIB if share < 1024 else share)


def extremes() -> list[Settings]:
    """Settings with each size at its lowest and at its highest bound."""
    sizes = ["commit_bytes", "max_body_bytes", "max_report_bytes", "max_reports", "max_depth"]
    bounds = [{name: FIELDS[name].metadata[bound] for name in sizes} for bound in ("low", "high")]
    mixed: list[dict[str, Any]] = [{**bounds[0], name: bounds[1][name]} for name in sizes]
    return [Settings(**values) for values in (*bounds, *mixed, {})]


@pytest.mark.parametrize("settings", extremes())
def test_a_batch_fits_the_queues_format(settings: Settings) -> None:
    queue._BATCH.pack(settings.max_batch_bytes, 1, 1, 0)
    with pytest.raises(struct.error):
        queue._BATCH.pack(2**32, 1, 1, 0)


def test_no_line_has_more_around_its_report_than_a_batch_allows_for() -> None:
    for name in ("🚀" * 253, '"' * 253):
        made = reports.Lines(name, max_report_bytes=MIB, max_depth=5)
        raw = b'{"clientId":"c","hosts":[]}'
        assert len(made.line(raw, 2**62)) - len(raw) < 2 * KIB


def test_the_shallowest_limit_takes_every_plain_report() -> None:
    raw = b'{"clientId":"c","hosts":[{"name":"n","url":"u","status":"s","history":[{"t":1%b}]}]}'
    for more in (b"", b',"x":1'):
        assert reports.encode_report(raw % more, FIELDS["max_depth"].metadata["low"]) == raw % more
