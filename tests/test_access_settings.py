"""The settings of who may post: tokens, which nothing may show, and the certificate of HTTPS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from netwatch.errors import StartError
from netwatch.settings import Settings, load

A, B = "token-a-0123456789", "token-b-0123456789"


def refused(flags: dict[str, object]) -> str:
    with pytest.raises(StartError) as caught:
        load(flags, {}, None)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("text", [f"a:{A},b:{B}", f" a:{A} , b:{B} ,", f"a:{A},,b:{B}"])
def test_several_tokens_have_names(text: str) -> None:
    assert load({"tokens": text}, {}, None).tokens == {"a": A, "b": B}


def test_two_names_for_one_token_are_refused() -> None:
    with pytest.raises(StartError, match="a token of its own"):
        load({"tokens": "a:0123456789abcdef,b:0123456789abcdef"}, {}, None)


@pytest.mark.parametrize(
    "origin",
    [
        "https://www.example.org",
        "http://localhost:3000",
        "http://[::1]:8080",
        "https://xn--bcher-kva.example",
        "chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb",
        "null",
        "*",
        "https://example.org:8443",
        "http://example.org:443",
    ],
)
def test_an_origin_is_taken_as_browsers_write_it(origin: str) -> None:
    assert load({"allowed_origins": origin}, {}, None).allowed_origins == (origin,)


@pytest.mark.parametrize(
    "origin",
    [
        "https://www.example.org/",
        "https://www.example.org:443",
        "http://www.example.org:80",
        "https://WWW.example.org",
        "https://*.example.org",
        "https://bücher.example",
        "https://www.example.org:",
        "https://user@www.example.org",
        "www.example.org",
        "//www.example.org",
    ],
)
def test_an_origin_that_no_browser_sends_is_refused_by_name(origin: str) -> None:
    with pytest.raises(StartError, match="as browsers write them"):
        load({"allowed_origins": f"https://a.example,{origin}"}, {}, None)


@pytest.mark.parametrize("token", ["x" * 16, "x" * 512, "AZaz09._~+/=-AZaz"])
def test_a_token_has_the_characters_of_a_bearer_token(token: str) -> None:
    assert load({"tokens": f"a:{token}"}, {}, None).tokens == {"a": token}


def test_tokens_are_read_from_a_file_beside_those_of_the_setting(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# who may post\n\n  b:{B}  \n#c:{B}\n")
    settings = load({"tokens": f"a:{A}", "tokens_file": str(file)}, {}, None)
    assert settings.tokens == {"a": A, "b": B}


def test_the_credential_of_systemd_is_the_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert (load({}, {}, None).tokens_file, load({}, {}, None).tokens) == (None, {})
    (tmp_path / "tokens").write_text(f"a:{A}\n")
    assert (load({}, {}, None).tokens_file, load({}, {}, None).tokens) == (tmp_path / "tokens", {"a": A})
    assert load({"tokens_file": ""}, {}, None).tokens == {}


def test_a_file_of_tokens_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    assert "absent" in refused({"tokens_file": str(tmp_path / "absent")})
    (tmp_path / "latin").write_bytes(b"a:\xff")
    assert "latin" in refused({"tokens_file": str(tmp_path / "latin")})


SECRETS = [
    "SECRET!SECRET!SECRET!",
    "a:SECRET",
    "a:SECRET!SECRET!SECRET!",
    "a b:SECRETSECRETSECRET",
    ":SECRETSECRETSECRET",
]
SECRETS += ["a:SECRETSECRETSECRET,a:SECRETSECRETSECRET2"]


@pytest.mark.parametrize("secret", SECRETS)
def test_no_sentence_shows_a_token_wherever_it_came_from(secret: str, tmp_path: Path) -> None:
    file, config = tmp_path / "tokens", tmp_path / "netwatch.toml"
    file.write_text(secret.replace(",", "\n"))
    config.write_text(f'tokens = "{secret}"\n')
    messages = [refused({"tokens": secret}), refused({"tokens_file": str(file)})]
    for environ, path in (({"NETWATCH_TOKENS": secret}, None), ({}, config)):
        with pytest.raises(StartError) as caught:
            load({}, environ, path)
        messages.append(str(caught.value))
    assert not any("SECRET" in message for message in messages)
    run = subprocess.run(
        [sys.executable, "-m", "netwatch", "serve"],
        env=os.environ | {"NETWATCH_TOKENS": secret},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert run.returncode == 2
    assert "SECRET" not in run.stdout + run.stderr


def test_settings_show_no_token() -> None:
    assert A not in repr(Settings(tokens={"a": A}))


# HTTPS


def test_half_of_https_is_refused() -> None:
    file = Path(__file__).parent / "certificate.pem"  # and its key
    for name in ("tls_certificate", "tls_key"):
        message = refused({name: str(file)})
        assert "tls_certificate" in message
        assert "tls_key" in message
    settings = load({"tls_certificate": str(file), "tls_key": str(file)}, {}, None)
    assert (settings.tls_certificate, settings.tls_key) == (file, file)


def test_a_certificate_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "file.pem"
    file.touch()
    absent = tmp_path / "absent.pem"
    assert str(absent) in refused({"tls_certificate": str(file), "tls_key": str(absent)})
    assert str(absent) in refused({"tls_certificate": str(absent), "tls_key": str(file)})
