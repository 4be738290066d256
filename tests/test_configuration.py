"""``netwatch check-config``, and what a reload makes of settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from netwatch.cli import main
from netwatch.settings import FIELDS, Settings, load, reloaded, text, trace

TOKEN = "s3cret-" * 4


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "netwatch.toml"
    path.write_text(f'workers = 3\nseal_bytes = "1MiB"\ntokens = {{ agents = "{TOKEN}" }}\n')
    return path


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Each setting's value and origin."""
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    return {name: rest for name, *rest in lines}


def test_each_value_is_shown_with_its_origin(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETWATCH_SEAL_BYTES", "5MiB")
    monkeypatch.setenv("NETWATCH_MAX_DEPTH", "9")
    assert main(["check-config", "--config", str(config), "--max-depth", "8"]) == 0
    rows = shown(capsys)
    assert list(rows) == list(FIELDS)
    assert rows["workers"] == ["3", str(config)]
    assert rows["seal_bytes"] == ["5MiB", "NETWATCH_SEAL_BYTES"]
    assert rows["max_depth"] == ["8", "--max-depth"]
    assert rows["bind"] == ["127.0.0.1:8080", "default"]
    assert rows["allowed_origins"] == ["none", "default"]


def test_no_secret_is_shown(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"pages:{TOKEN[::-1]}\n")
    assert main(["check-config", "--config", str(config), "--tokens-file", str(file)]) == 0
    out = capsys.readouterr().out
    assert TOKEN not in out
    assert TOKEN[::-1] not in out
    (row,) = [line.split(maxsplit=2) for line in out.splitlines() if line.startswith("tokens ")]
    assert row == ["tokens", "agents:***,pages:***", f"{config}, {file}"]


@pytest.mark.parametrize(
    "content", ["workers = 0\n", "nonsense", "no_such = 1\n", f'tokens = {{ a = "{TOKEN}\\u0000" }}\n']
)
def test_what_is_bad_is_said_as_at_a_start(config: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(content)
    assert main(["check-config", "--config", str(config)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert str(config) in said.err
    assert TOKEN not in said.err


def test_what_is_shown_can_be_given_again() -> None:
    settings = Settings()
    given = {
        name: shown
        for name, field in FIELDS.items()
        if (shown := text(name, getattr(settings, name))) != "none" and not field.metadata["is_secret"]
    }
    assert load(given, {}, None) == settings
    assert trace(given, {}, None)[1]["bind"] == "--bind"


def test_a_reload_takes_what_it_can_and_names_what_waits() -> None:
    old = Settings(workers=2, seal_bytes=10)
    new = dataclasses.replace(old, workers=3, seal_bytes=20, tokens={"a": TOKEN}, data_dir=Path("elsewhere"))
    settings, changed, waiting = reloaded(old, new)
    assert settings == dataclasses.replace(old, workers=3, tokens={"a": TOKEN})
    assert (changed, waiting) == (["workers", "tokens"], ["data_dir", "seal_bytes"])
    assert reloaded(old, old) == (old, [], [])


def test_what_the_writer_is_started_with_waits() -> None:
    """Among it how large a batch may be: a worker that sent a larger one would be cut off for ever."""
    waiting = {name for name, field in FIELDS.items() if field.metadata["needs_restart"]}
    old = Settings(workers=1)
    for name in ("commit_bytes", "max_body_bytes", "max_reports"):
        assert name in waiting
        new = dataclasses.replace(old, **{name: 2 * getattr(old, name)})
        assert new.max_batch_bytes > old.max_batch_bytes
        assert reloaded(old, new)[0].max_batch_bytes == old.max_batch_bytes
