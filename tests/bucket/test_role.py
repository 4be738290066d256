"""A host that is given no keys has those of its role, anew before they end; without a role it is told what to do."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from netwatch.bucket import Bucket
from netwatch.cli import main
from tests.bucket.conftest import MakeData
from tests.bucket.role import CONTAINER, IAM, TOKEN, Role, assumed
from tests.bucket.shipping import Shipping, local, ship
from tests.bucket.store import Store, objects

SOON_S = 240.0
"""Within the five minutes before their end obstore asks for new keys, at each request."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One that knows the role, and gives it keys for a session."""
    (config := tmp_path_factory.mktemp("role") / "iam.json").write_text(json.dumps(IAM))
    started = Store(config.parent / "store", f"-s3.iam.config={config}")
    try:
        yield started.start()
    finally:
        started.kill()


@pytest.fixture
def bucket(store: Store, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The test's own part of the bucket; no keys stand in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    return store.bucket(f"role/{os.urandom(4).hex()}")


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """For 127.0.0.1, and the certificate to trust."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=netwatch test"]
    extensions = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *kind, *extensions, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


Serve = Callable[[str, float], tuple[Role, Mapping[str, str]]]


@pytest.fixture
def serve(store: Store, tmp_path: Path, tls: tuple[ssl.SSLContext, Path]) -> Iterator[Serve]:
    """`serve(service, lasts_s)`: a service that gives keys, and the variables by which it is found."""
    started: list[Role] = []
    (token := tmp_path / "token").write_text(TOKEN)
    context, certificate = tls

    def start(service: str, lasts_s: float) -> tuple[Role, Mapping[str, str]]:
        started.append(role := Role(assumed(store), lasts_s, context if service == "web" else None))
        return role, {
            "instance": {"AWS_METADATA_ENDPOINT": role.endpoint},
            "container": {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": role.endpoint + CONTAINER,
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token),
            },
            "web": {
                "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
                "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/netwatch",
                "AWS_ENDPOINT_URL_STS": role.endpoint,
                "SSL_CERT_FILE": str(certificate),
            },
        }[service]

    yield start
    for role in started:
        role.close()


@pytest.mark.parametrize("service", ["instance", "container", "web"])
def test_it_ships_with_the_keys_of_its_role_and_takes_new_ones_before_they_end(
    service: str, serve: Serve, make_data: MakeData, store: Store, bucket: Bucket, tmp_path: Path
) -> None:
    role, variables = serve(service, SOON_S)
    data = make_data(2)
    shipping = Shipping(data, bucket, tmp_path / "log", environ={**os.environ, **variables})
    try:
        shipping.wait_for(lambda found: found["segments_total"] == 2)
        role.keys = {**role.keys, "AWS_SESSION_TOKEN": "of another time"}
        make_data(1, first=10)
        shipping.wait_for(lambda found: found['failures_total{kind="denied"}'] > 0)
        role.keys = assumed(store)
        shipping.wait_for(lambda found: found["segments_total"] == 3)
    finally:
        assert shipping.stop() == 0
    assert set(role.given) == {service}
    assert objects(bucket) == local(data)


def test_keys_that_last_are_asked_for_once(
    serve: Serve, make_data: MakeData, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    role, variables = serve("instance", 3600.0)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ship(make_data(5), bucket) == 0
    assert role.given == {"instance": 1}


@pytest.mark.parametrize(
    ("service", "answered"),
    [("instance", "404 Not Found"), ("container", "401 Unauthorized"), ("web", "400 Bad Request")],
)
def test_without_a_role_it_is_told_what_to_do(
    service: str,
    answered: str,
    serve: Serve,
    make_data: MakeData,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    role, variables = serve(service, SOON_S)
    role.has_role = False
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ship(make_data(1), bucket, "--again") == 1
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "ship_refused" in line]
    assert '"kind":"denied","error":"no keys: give AWS_ACCESS_KEY_ID' in said
    assert f"or this host a role ({answered})" in said
    assert main(["compact", "--bucket", str(bucket), "--endpoint", str(bucket.endpoint)]) == 1
    assert "cannot be compacted: no keys: give AWS_ACCESS_KEY_ID" in capfd.readouterr().err
