"""A certificate for the names that the tests use, signed by itself, made afresh for each run."""

from __future__ import annotations

import base64
import hashlib
import ssl
import subprocess
from pathlib import Path

NAMES = ("www.example", "collector.example", "localhost")


class Certificate:
    """The files and what clients need to trust them."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "certificate.pem"
        self.key = directory / "key.pem"
        names = ",".join([*(f"DNS:{name}" for name in NAMES), "IP:127.0.0.1"])
        kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
        files = ("-keyout", str(self.key), "-out", str(self.path))
        extensions = ("-addext", f"subjectAltName={names}")
        _openssl("req", "-x509", *kind, *files, "-subj", "/CN=netwatch test", *extensions)

    @property
    def flags(self) -> tuple[str, ...]:
        """What the server is started with."""
        return ("--tls-certificate", str(self.path), "--tls-key", str(self.key))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its public key, as Chromium's list of trusted ones takes it."""
        pem = _openssl("x509", "-in", str(self.path), "-pubkey", "-noout")
        der = _openssl("pkey", "-pubin", "-outform", "der", stdin=pem)
        return base64.b64encode(hashlib.sha256(der).digest()).decode()

    def context(self) -> ssl.SSLContext:
        """For a server of the test's own."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path, self.key)
        return context


def _openssl(*arguments: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *arguments], input=stdin, check=True, capture_output=True, timeout=10).stdout
