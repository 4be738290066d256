"""Which bucket flags, variables and credentials name, and what is said of ones that cannot be."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from obstore.store import S3Store

from netwatch import bucket
from netwatch.bucket import Bucket
from netwatch.errors import StartError


def chosen(*flags: str) -> Bucket:
    parser = argparse.ArgumentParser()
    bucket.add_arguments(parser)
    return bucket.chosen(parser.parse_args(flags))


def test_flags_name_it() -> None:
    found = chosen("--bucket", "s3://telemetry/all/hosts/", "--endpoint", "http://127.0.0.1:8333/", "--region", "eu-1")
    assert (found.name, found.prefix, found.endpoint, found.region) == (
        "telemetry",
        "all/hosts",
        "http://127.0.0.1:8333",
        "eu-1",
    )
    assert str(found) == "s3://telemetry/all/hosts"
    store = found.open()
    assert store.prefix == "all/hosts"
    assert store.config["checksum_algorithm"].upper() == "SHA256"


def test_variables_name_it_and_flags_have_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETWATCH_BUCKET", "s3://telemetry")
    monkeypatch.setenv("NETWATCH_ENDPOINT", "https://s3.example.org")
    assert chosen() == Bucket(name="telemetry", endpoint="https://s3.example.org")
    assert str(chosen("--bucket", "s3://other/x")) == "s3://other/x"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "Name the bucket"),
        (["--bucket", "telemetry"], "give s3://name"),
        (["--bucket", "s3://ab"], "3 to 63"),
        (["--bucket", "s3://Telemetry"], "small letters"),
        (["--bucket", "s3://telemetry/a//b"], "The prefix"),
        (["--bucket", "s3://telemetry/../b"], "The prefix"),
        (["--bucket", "s3://telemetry/a b"], "The prefix"),
        (["--bucket", "s3://telemetry", "--endpoint", "s3.example.org"], "give a URL"),
        (["--bucket", "s3://telemetry", "--endpoint", "https://s3.example.org/path"], "give a URL"),
        (["--bucket", "s3://telemetry", "--endpoint", "https://key:secret@s3.example.org"], "give a URL"),
        (["--bucket", "s3://telemetry", "--endpoint", "http://[::1"], "give a URL"),
    ],
)
def test_what_cannot_be_is_refused_with_advice(flags: list[str], said: str) -> None:
    with pytest.raises(StartError, match=re.escape(said)) as caught:
        chosen(*flags)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "value"), [("bucket", "telemetry"), ("bucket", "s3://telemetry/a b"), ("endpoint", "s3.example.org")]
)
def test_the_error_names_what_gave_the_value(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETWATCH_BUCKET", "s3://telemetry")
    with pytest.raises(StartError) as by_flag:
        chosen(f"--{name}", value)
    variable = f"NETWATCH_{name.upper()}"
    monkeypatch.setenv(variable, value)
    with pytest.raises(StartError) as by_variable:
        chosen()
    assert f"--{name}" in str(by_flag.value)
    assert variable not in str(by_flag.value)
    assert variable in str(by_variable.value)
    assert f"--{name}" not in str(by_variable.value)


def test_the_systemd_credential_has_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert not chosen("--bucket", "s3://telemetry").keys
    credential = tmp_path / "aws"
    credential.write_text("# of the shipper\nAWS_ACCESS_KEY_ID=one\nAWS_SECRET_ACCESS_KEY='two'\n")
    found = chosen("--bucket", "s3://telemetry")
    assert found.keys == {"AWS_ACCESS_KEY_ID": "one", "AWS_SECRET_ACCESS_KEY": "two"}
    assert "two" not in repr(found)
    assert found.open().config["access_key_id"] == "one"


@pytest.mark.parametrize("text", ["AWS_ACCESS_KEY_ID=one", "hunter2", "AWS_ACCESS_KEY_ID=one\nAWS_SECRET_ACCESS_KEY="])
def test_a_credential_that_cannot_be_is_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "aws").write_text(text)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(StartError, match="needs the lines") as caught:
        chosen("--bucket", "s3://telemetry")
    assert "hunter2" not in str(caught.value)
    assert "=one" not in str(caught.value)


def test_a_host_without_certificates_of_its_own_can_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minimal Debian has none, and then obstore refuses even http://."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    with pytest.raises(Exception, match="builder error"):
        S3Store("telemetry", region="eu-1")
    assert Bucket(name="telemetry").open().prefix is None


def test_a_variable_of_obstore_that_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "perhaps")
    with pytest.raises(StartError, match="Check the variables AWS_"):
        Bucket(name="telemetry").open()


def test_who_does_not_answer_is_said_in_few_words() -> None:
    store = Bucket(
        name="telemetry",
        endpoint="http://127.0.0.1:1",
        keys={"AWS_ACCESS_KEY_ID": "one", "AWS_SECRET_ACCESS_KEY": "two"},
    ).open(retries=0)
    with pytest.raises(Exception, match="Generic") as caught:
        store.head("x")
    assert bucket.reason(caught.value) == "connection refused"


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (
            "404 Not Found: <?xml…?>\n<Error><Code>NoSuchBucket</Code><Message>There is none.</Message></Error>",
            "no_bucket",
            "404 Not Found, NoSuchBucket: There is none",
        ),
        ("403 Forbidden: \n\nDebug source:\n…", "denied", "403 Forbidden"),
        ("404 Not Found: ", "missing", "404 Not Found"),
        ("400 Bad Request: <Error><Code>BadDigest</Code></Error>", "refused", "400 Bad Request, BadDigest"),
        ("503 Service Unavailable: <Error><Code>SlowDown</Code></Error>", "busy", "503 Service Unavailable, SlowDown"),
        ("500 Internal Server Error: ", "failed", "500 Internal Server Error"),
    ],
)
def test_an_answer_has_a_kind_and_few_words(answer: str, kind: str, said: str) -> None:
    error = Exception(
        f"Generic S3 error: Error performing PUT http://… in 3ms - Server returned non-2xx status code: {answer}"
    )
    assert (bucket.kind(error), bucket.reason(error)) == (kind, said)
    assert kind in bucket.KINDS


def test_so_has_one_that_never_came() -> None:
    late = Exception("Generic S3 error: … in 5s - HTTP error: request or response body error\n\nkind: Timeout")
    assert (bucket.kind(late), bucket.reason(late)) == ("timeout", "no answer in time")
    new = Exception("Something new")
    assert (bucket.kind(new), bucket.reason(new)) == ("unreachable", "Something new")


def test_without_keys_the_advice_is_to_give_some() -> None:
    """obstore asks for the role of the instance then, at an address of the link, which a host elsewhere has not."""
    error = Exception(
        "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error"
    )
    assert bucket.kind(error) == "denied"
    assert "AWS_ACCESS_KEY_ID" in bucket.reason(error)
