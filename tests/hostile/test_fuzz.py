"""The decoder under a coverage-guided fuzzer, and the fuzzer under a planted bug: it must find that."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.decoder import check
from tests.system.server import ROOT

CORPUS = Path(__file__).with_name("corpus")
WHOLE_S = 600
needs_atheris = pytest.mark.skipif(
    not importlib.util.find_spec("atheris"), reason="atheris has no wheel for this Python"
)


def fuzz(root: Path, scratch: Path, seeds: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    """Fuzz the package in ``root``, from ``seeds``; what is new goes into ``scratch``."""
    found = scratch / "found"
    found.mkdir()
    limits = ["-timeout=10", "-rss_limit_mb=1024", "-max_len=4096", "-seed=1", f"-artifact_prefix={scratch}/"]
    words = f"-dict={CORPUS.with_name('json.dict')}"
    command = [sys.executable, "-m", "tests.hostile.fuzz", f"-max_total_time={seconds}", *limits, words]
    return subprocess.run(
        [*command, str(found), str(seeds)], cwd=root, capture_output=True, text=True, timeout=seconds + 60, check=False
    )


def test_the_corpus_makes_lines_and_refusals() -> None:
    made = [check(path.read_bytes()) for path in sorted(CORPUS.iterdir())]
    assert made.count(0) > 5
    assert sum(made) > 20


@needs_atheris
@pytest.mark.timeout(WHOLE_S + 100)
def test_fuzzing_the_decoder_finds_nothing(
    tmp_path: Path, full_sweeps: bool, thinned: Callable[[int, int, str], None]
) -> None:
    seconds = WHOLE_S if full_sweeps else 10
    thinned(WHOLE_S, seconds, "seconds that the decoder is fuzzed")
    run = fuzz(ROOT, tmp_path, CORPUS, seconds)
    print(run.stderr[-2000:])
    assert run.returncode == 0, run.stderr[-5000:]
    assert "INITED" in run.stderr  # or it was never guided by anything


PLANTED = {
    "no check of UTF-8": [
        ("reports.py", "if not (text := bytes(raw)).isascii():", "if False and (text := bytes(raw)):"),
        (
            "reports.py",
            "except (msgspec.DecodeError, UnicodeDecodeError) as error",
            "except msgspec.DecodeError as error",
        ),
    ],
    "a report stored as it was sent": [
        (
            "reports.py",
            "_check(value, max_depth)\n    return _encode(value)\n\n\ndef encode_b",
            "_check(value, max_depth)\n    return bytes(raw)\n\n\ndef encode_b",
        )
    ],
    "a cut stream is no refusal": [("http/encoding.py", "ZstdError, EOFError)", "ZstdError)")],
}
"""In a copy. None shows in the two seeds that this is started from."""


@needs_atheris
@pytest.mark.parametrize("bug", PLANTED)
def test_fuzzing_finds_a_planted_bug(bug: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "netwatch", copy / "netwatch")
    shutil.copytree(
        ROOT / "tests/hostile", copy / "tests/hostile", ignore=shutil.ignore_patterns("test_*", "conftest.py")
    )
    (copy / "tests/__init__.py").touch()
    for name, right, wrong in PLANTED[bug]:
        source = copy / "netwatch" / name
        text = source.read_text()
        assert right in text
        source.write_text(text.replace(right, wrong))
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    for seed in ("extra", "gzip-object"):
        shutil.copy(CORPUS / seed, seeds)
    run = fuzz(copy, tmp_path, seeds, 60)
    assert "INITED" in run.stderr
    assert run.returncode != 0
    assert "Uncaught Python exception" in run.stdout, run.stdout[-2000:]
    assert list(tmp_path.glob("crash-*")), run.stdout[-2000:] + run.stderr[-2000:]
