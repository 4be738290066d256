"""The capacity plan: its arithmetic, its measuring, and the table in the README."""

from __future__ import annotations

from pathlib import Path

import pytest

from netwatch.bench.capacity import Measured, day, main, objects_an_hour, sealing
from tests.stored import line, zstd

MIB = 1024 * 1024
ROUND = Measured(rate=10, report_us=100, line_bytes=1000, ratio=10, query_cpu_s=36)


def test_a_day_follows_from_what_was_measured() -> None:
    assert day(ROUND, 1000, 60) == [
        *("1,000", "864 M", "864 GB", "86.4 GB", "60 k", "1.44 M", "60 kB", "1.44 k", "1", "8.64"),
    ]


@pytest.mark.parametrize(
    ("rate", "line_bytes", "seal_after_s", "an_hour"),
    [
        (10, 1000, 60, 60),  # by age
        (10, 1000, 3600, 36_000_000 / (10 * MIB)),  # by size
        (1 / 3600, 1000, 60, 1),  # a report an hour makes an object an hour
    ],
)
def test_a_file_is_sealed_by_age_by_size_or_when_there_is_one(
    rate: float, line_bytes: float, seal_after_s: float, an_hour: float
) -> None:
    assert objects_an_hour(Measured(rate, 100, line_bytes, 10, 36), seal_after_s) == pytest.approx(an_hour)


def test_an_interval_says_how_large_an_object_is() -> None:
    assert sealing(ROUND, 10, 300) == ["300 s", "12", "2.88 k", "300 kB", "3 k"]


def test_bytes_and_ratio_are_measured_on_sealed_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = line({"clientId": "a", "hosts": [], "padding": "x" * 1000})
    path = tmp_path / "reports/date=2026-11-22/reports-2026-11-22T10-24-10.123Z-9f3a0c12-000001.jsonl.zst"
    path.parent.mkdir(parents=True)
    path.write_bytes(zstd([one] * 50))
    main(["--data-dir", str(tmp_path)])
    ratio = 50 * len(one) / path.stat().st_size
    assert f"{len(one):,} bytes a report, compressed {ratio:.3g} times" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--hosts", "ten"], ["--rate", "0"], ["--data-dir", "/nowhere"]])
def test_nonsense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_readme_has_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    printed = capsys.readouterr().out
    readme = (Path(__file__).parent.parent / "README.rst").read_text("utf-8")
    tables = [part for part in printed.split("\n\n") if part.startswith("==")]
    assert len(tables) == 2
    assert all(part.strip() in readme for part in tables), "paste what scripts/capacity prints"
    assert printed.split("\n\n")[0].replace("\n", " ") in readme.replace("\n", " ")
