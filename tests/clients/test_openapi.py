"""Schemathesis asks the running server what /openapi.json promises."""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path

import pytest

from tests.clients.collector import Collector
from tests.clients.conftest import Collect
from tests.system.server import ROOT

SCHEMATHESIS = ROOT / ".venv/bin/schemathesis"
PROMISES = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)
TOKEN = "tester-0123456789abcdef"

# No schema can say that a body is what its Content-Encoding says.
CONFIG = """
[parameters]
"header.Content-Encoding" = "identity"
"""

pytestmark = pytest.mark.skipif(not SCHEMATHESIS.exists(), reason="schemathesis is not installed in .venv")


def ask(collector: Collector, directory: Path, *options: str) -> None:
    config = directory / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [
        str(SCHEMATHESIS),
        "--config-file",
        str(config),
        "run",
        f"{collector.url}/openapi.json",
        "--continue-on-failure",
    ]
    environ = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
    done = subprocess.run([*command, *options], cwd=directory, env=environ, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout.decode()
    assert b" generated, " in done.stdout, done.stdout.decode()


@pytest.fixture(scope="module")
def collector(collect: Collect) -> Collector:
    return collect()


def test_every_answer_is_one_that_the_document_promises(collector: Collector, tmp_path: Path) -> None:
    ask(collector, tmp_path, "--checks", ",".join(PROMISES), "--max-time", "8", "--no-shrink")
    assert collector.logged("request_failed") == []


def test_valid_reports_are_taken_and_others_refused(collector: Collector, tmp_path: Path) -> None:
    # Only its fixed cases: JSON Schema cannot tell long integers, which we refuse, from doubles. And browser reports
    # are all answered 204.
    checks = "positive_data_acceptance,negative_data_rejection"
    ask(collector, tmp_path, "--phases", "coverage", "--checks", checks, "--include-path", "/api/v1/reports")
    for t in (b"1.0", b"1e3"):  # which are integers to it
        body = b'{"clientId":"c","hosts":[{"name":"","url":"","status":"","history":[{"t":%b}]}]}' % t
        assert collector.ask("POST", "/api/v1/reports", body, {"Content-Type": "application/json"}).status == 200


def test_a_token_is_asked_for_where_the_document_says_so(collect: Collect, tmp_path: Path) -> None:
    collector = collect("--tokens", f"tester:{TOKEN}")
    basic = base64.b64encode(f"tester:{TOKEN}".encode()).decode()
    for given in (f"Bearer {TOKEN}", f"Basic {basic}"):
        header = ("-H", f"Authorization: {given}")
        ask(collector, tmp_path, "--phases", "coverage", "--checks", ",".join(PROMISES), *header)
    document = collector.ask("GET", f"/openapi.json?token={TOKEN}").json
    assert document["security"] == [{"bearer": []}, {"basic": []}, {"query": []}]
    assert collector.ask("POST", f"/api/v1/reports?token={TOKEN}", b"[]").status == 200
