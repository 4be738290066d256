"""The promise broken on purpose: with any of its parts taken out of a copy of the package, a named test must fail."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import planted_bucket, planted_counting, planted_door, planted_faults, planted_queue, planted_storage

ROOT = Path(__file__).parents[1]

PLANTED = (
    planted_storage.PLANTED
    | planted_queue.PLANTED
    | planted_door.PLANTED
    | planted_counting.PLANTED
    | planted_faults.PLANTED
    | planted_bucket.PLANTED
)

RUN = """
import sys
from pathlib import Path
import netwatch, pytest
assert Path(netwatch.__file__).is_relative_to(Path.cwd()), netwatch.__file__
sys.exit(pytest.main(sys.argv[1:]))
"""

COMMAND = """#!/bin/sh
PYTHONPATH={project}${{PYTHONPATH:+:$PYTHONPATH}} exec {python} -P -B -m netwatch "$@"
"""


def run(project: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the tests of the copied project with its own copy of the package."""
    options = ["-q", "-rf", "--tb=line", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    return subprocess.run(
        [sys.executable, "-B", "-c", RUN, *options, *(f"tests/{test}" for test in tests)],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what the tests run on."""
    without_caches = shutil.ignore_patterns("__pycache__")
    for name in ("netwatch", "tests"):
        shutil.copytree(ROOT / name, tmp_path / "project" / name, ignore=without_caches)
    shutil.copy(ROOT / "setup.cfg", tmp_path / "project")
    command = tmp_path / "project/.venv/bin/netwatch"  # what tests of whole servers start
    command.parent.mkdir(parents=True)
    command.write_text(COMMAND.format(project=tmp_path / "project", python=sys.executable))
    command.chmod(0o755)
    return tmp_path / "project"


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, project: Path) -> None:
    file, old, new, tests = PLANTED[name]
    path = project / "netwatch" / file
    source = path.read_text(encoding="utf-8")
    assert source.count(old) == 1, f"the text that {name!r} replaces is not there once: update the table"
    planted = source.replace(old, new)
    compile(planted, file, "exec")
    path.write_text(planted, encoding="utf-8")
    done = run(project, tests)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    failed = re.findall(r"^FAILED tests/(.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    for test in tests:
        assert any(node.startswith(test) for node in failed), f"{test} does not see it:\n{done.stdout}"


def test_without_a_bug_the_same_tests_pass(project: Path) -> None:
    """What the bugs are found by does not fail for another reason, such as the copy itself: one test of each file.

    Of the fault suite and the bucket's, whose files take long, one is enough to see that they run from the copy.
    """
    tests = [test for _, _, _, tests in PLANTED.values() for test in tests]
    slow = ("faults", "bucket")
    chosen = {folder if (folder := test.partition("/")[0]) in slow else test.partition("::")[0]: test for test in tests}
    done = run(project, list(chosen.values()))
    assert done.returncode == pytest.ExitCode.OK, done.stdout
