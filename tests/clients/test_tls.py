"""HTTPS by the server itself, and certificates that cannot work."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.clients.certificate import Certificate
from tests.clients.collector import Collector
from tests.clients.conftest import Collect
from tests.clients.curl import curl
from tests.system.server import report


@pytest.fixture(scope="module")
def collector(collect: Collect, certificate: Certificate) -> Collector:
    return collect(certificate=certificate)


def test_a_client_that_trusts_the_certificate_posts(collector: Collector, certificate: Certificate) -> None:
    json_body = ("-H", "Content-Type: application/json", "-d", json.dumps(report("tls")))
    done = curl("--cacert", certificate.path, *json_body, collector.reports_url)
    assert (done.status, done.json["accepted"]) == (200, 1)
    assert 'subjectAltName: host "127.0.0.1" matched' in done.talk
    collector.wait_for_client("tls")


def test_a_large_body_passes(collector: Collector, certificate: Certificate, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"".join(json.dumps(report("large", padding_bytes=200_000)).encode() + b"\n" for _ in range(50)))
    headers = ("-H", "Content-Type: application/x-ndjson")
    done = curl("--cacert", certificate.path, *headers, "--data-binary", f"@{body}", collector.reports_url)
    assert (done.status, done.json["accepted"]) == (200, 50)
    collector.wait_for_client("large", 50)


def test_a_client_that_does_not_trust_it_sends_nothing(collector: Collector) -> None:
    done = curl("-d", json.dumps(report("untrusting")), collector.reports_url)
    assert (done.code, done.status) == (60, 0)


def test_plain_http_is_not_answered_and_does_no_harm(collector: Collector, certificate: Certificate) -> None:
    done = curl(collector.url.replace("https:", "http:") + "/livez")
    assert done.code != 0
    assert curl("--cacert", certificate.path, f"{collector.url}/livez").status == 200


def test_handshakes_are_bounded_in_number_and_in_time(collect: Collect, certificate: Certificate) -> None:
    flags = ("--max-connections", "4", "--header-timeout-s", "1")
    collector = collect(*flags, certificate=certificate)
    with contextlib.ExitStack() as stack:
        began_s = time.monotonic()
        silent = [stack.enter_context(collector.connect()) for _ in range(40)]
        time.sleep(0.5)
        assert len(select.select(silent, [], [], 0)[0]) == 36  # closed at once
        assert {connection.recv(1) for connection in silent} == {b""}
        assert 1.0 <= time.monotonic() - began_s < 3.0
    assert curl("--cacert", certificate.path, f"{collector.url}/readyz").status == 200


def test_a_stop_ends_it(collect: Collect, certificate: Certificate) -> None:
    collector = collect(certificate=certificate)
    assert curl("--cacert", certificate.path, f"{collector.url}/readyz").status == 200
    collector.stop(signal.SIGTERM)


@pytest.mark.parametrize("fault", ["no certificate", "no key", "not PEM", "another's key", "password", "directory"])
def test_a_pair_that_cannot_work_is_refused_at_the_start(certificate: Certificate, tmp_path: Path, fault: str) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("this is no certificate\n")
    (tmp_path / "other").mkdir()
    locked = tmp_path / "locked.pem"
    command = ["openssl", "pkey", "-in", str(certificate.key), "-aes256", "-passout", "pass:secret"]
    subprocess.run([*command, "-out", str(locked)], check=True, timeout=10)
    flags = {
        "no certificate": ("--tls-key", str(certificate.key)),
        "no key": ("--tls-certificate", str(certificate.path)),
        "not PEM": ("--tls-certificate", str(broken), "--tls-key", str(certificate.key)),
        "another's key": (
            *("--tls-certificate", str(certificate.path)),
            *("--tls-key", str(Certificate(tmp_path / "other").key)),
        ),
        "password": ("--tls-certificate", str(certificate.path), "--tls-key", str(locked)),
        "directory": ("--tls-certificate", str(tmp_path), "--tls-key", str(certificate.key)),
    }
    collector = Collector(tmp_path, *flags[fault])
    try:
        collector.spawn()
        assert collector.wait() == 2
    finally:
        collector.end()
    said = collector.log_text()
    assert said.count("\n") == 1
    assert said.startswith("netwatch: ")
    assert "tls_certificate" in said
    assert "tls_key" in said
    assert "Traceback" not in said
