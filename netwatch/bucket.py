"""The bucket of an S3-compatible store that holds shipped reports: its flags and variables, its keys, its errors.

A sealed file stands below the bucket's prefix under the path that it has below ``reports/``. The library for it,
obstore, comes with ``netwatch[s3]`` and is imported only when a bucket is opened.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from netwatch.errors import StartError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Store

_URL: Final = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?\Z")
_CREDENTIAL: Final = "aws"
_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_STATUS: Final = re.compile(r"status code: ([0-9]{3} [A-Za-z -]+)")
_S3_CODE: Final = re.compile(r"<Code>([^<]*)</Code>(?:.*?<Message>([^<]*)</Message>)?", re.DOTALL)
_TIMED_OUT: Final = re.compile(r"\bTimedOut\b|kind: Timeout\b")
_OS_MESSAGE: Final = re.compile(r'message: "([^"]+)"')
_NO_ROOTS: Final = "No CA certificates"
_KEYS_ASKED: Final = re.compile(
    r"/latest/(?:api/token|meta-data/iam/security-credentials/)|//169\.254\.170\.\d+[:/]|performing POST REDACTED "
)
"""Whom obstore asks for keys when nobody has given it any: the services of instances, containers and identities."""

KINDS: Final = ("denied", "no_bucket", "missing", "refused", "busy", "failed", "timeout", "unreachable")
"""What can be wrong with a request: see :func:`kind`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucket:
    """A bucket and the prefix of all that is netwatch's in it.

    ``endpoint`` None is Amazon's; ``keys`` are empty where obstore itself finds them: in the variables ``AWS_…``, or as
    the role of the instance or container, anew some minutes before they end.
    """

    name: str
    prefix: str = ""
    """Without slashes at its ends."""
    endpoint: str | None = None
    region: str | None = None
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    """By the names of the variables, ``AWS_ACCESS_KEY_ID`` …"""

    def __str__(self) -> str:
        return f"s3://{self.name}{'/' * bool(self.prefix)}{self.prefix}"

    def open(self, *, timeout_s: float = 30.0, retries: int = 10) -> S3Store:
        """The store, below the prefix; nothing is asked of it yet. What is put there has its SHA-256 checked.

        A request that takes ``timeout_s`` fails; obstore itself tries it again so many times if that is safe.
        """
        try:
            from obstore.store import S3Store
        except ImportError:
            raise StartError("A bucket needs another library: pip install 'netwatch[s3]'.", 2) from None
        config: S3Config = {"checksum_algorithm": "SHA256"}  # without it a bit that flips on the way is stored
        if self.endpoint:
            config["endpoint"] = self.endpoint
        if self.region:
            config["region"] = self.region
        if self.keys:
            config["access_key_id"] = self.keys["AWS_ACCESS_KEY_ID"]
            config["secret_access_key"] = self.keys["AWS_SECRET_ACCESS_KEY"]
        if token := self.keys.get("AWS_SESSION_TOKEN"):
            config["session_token"] = token
        options: ClientConfig = {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=min(timeout_s, 5.0)),
            "timeout": timedelta(seconds=timeout_s),
        }
        retry: RetryConfig = {"max_retries": retries, "retry_timeout": timedelta(seconds=timeout_s)}
        made = functools.partial(S3Store, self.name, prefix=self.prefix or None, config=config, retry_config=retry)
        try:
            try:
                return made(client_options=options)
            except Exception as error:
                if _NO_ROOTS not in str(error):
                    raise
            import certifi  # for a host without Debian's ca-certificates

            return made(client_options={**options, "root_certificate": Path(certifi.where()).read_bytes()})
        except Exception as error:  # a variable AWS_… that obstore does not understand
            raise StartError(
                f"The bucket {self} cannot be opened: {reason(error)}. Check the variables AWS_….", 2
            ) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--bucket``, ``--endpoint`` and ``--region``, which are also the variables ``NETWATCH_BUCKET`` …"""
    for name, metavar, help_ in (
        ("bucket", "s3://NAME/PREFIX", "the bucket with the shipped reports, and the prefix of all that is netwatch's"),
        ("endpoint", "URL", "the S3-compatible store that has it; by default Amazon's"),
        ("region", "REGION", "its region"),
    ):
        parser.add_argument(f"--{name}", metavar=metavar, help=f"{help_} (${_variable(name)})")


def is_named(args: argparse.Namespace) -> bool:
    """Whether a flag or a variable names a bucket."""
    return bool(_given(args, "bucket")[0])


def chosen(args: argparse.Namespace) -> Bucket:
    """The bucket that :func:`add_arguments`' flags and variables name. Raises :class:`StartError`."""
    url, source = _given(args, "bucket")
    if not url:
        raise StartError("Name the bucket (--bucket s3://name/prefix, or NETWATCH_BUCKET).", 2)
    match = _URL.match(url)
    if not match or ".." in match[1]:
        raise StartError(
            f"{source} cannot be {url!r}: give s3://name or s3://name/prefix, the name of 3 to 63 small letters, "
            "digits, dots and dashes.",
            2,
        )
    prefix = (match[2] or "").strip("/")
    if prefix and not all(re.fullmatch(r"(?!\.\.?\Z)[A-Za-z0-9!_.'()=-]+", part) for part in prefix.split("/")):
        raise StartError(
            f"The prefix in {source}, {url!r}, needs letters, digits and ! - _ . ' ( ) = between slashes.", 2
        )
    endpoint, source = _given(args, "endpoint")
    if endpoint:
        _demand_endpoint(endpoint, source)
    return Bucket(
        name=match[1],
        prefix=prefix,
        endpoint=endpoint.rstrip("/") or None,
        region=_given(args, "region")[0] or None,
        keys=_credential(os.environ.get("CREDENTIALS_DIRECTORY")),
    )


def _variable(name: str) -> str:
    return f"NETWATCH_{name.upper()}"


def _given(args: argparse.Namespace, name: str) -> tuple[str, str]:
    """The value, "" without one, and what gave it: the flag, else the variable."""
    flag: str | None = getattr(args, name)
    return (os.environ.get(_variable(name), ""), _variable(name)) if flag is None else (flag, f"--{name}")


def reason(error: Exception) -> str:
    """What went wrong, from one of obstore's errors, in a few words without a URL or a dump."""
    text = str(error)
    if _is_about_keys(text):
        return f"no keys: give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or this host a role ({_said(text)})"
    return _said(text)


def _said(text: str) -> str:
    status, code = _STATUS.search(text), _S3_CODE.search(text)
    if status and code:
        return f"{status[1].strip()}, {code[1]}{': ' * bool(code[2])}{(code[2] or '').rstrip('.')}"
    if status:
        return status[1].strip()
    if _TIMED_OUT.search(text):
        return "no answer in time"
    if message := _OS_MESSAGE.search(text):
        return message[1].lower()
    return text.partition("\n")[0].rpartition(" - ")[2]


def advice(error: Exception, bucket: Bucket) -> str:
    """What to do about it, for who gave the bucket by hand; "" where nothing but the reason can be said."""
    match kind(error):
        case "denied" if not _is_about_keys(str(error)):  # else the reason says it
            return " Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do there."
        case "no_bucket":
            return " Check the bucket's name, or make it."
        case "unreachable" | "timeout":
            return f" Check the endpoint, {bucket.endpoint or 'which is Amazon: --endpoint names another store'}."
        case _:
            return ""


def kind(error: Exception) -> str:
    """Which of :data:`KINDS` one of obstore's errors is.

    ``denied``: wrong keys, or no right to do it; ``missing``: no such object; ``refused``: a fault of ours, or a bit
    that flipped on the way; ``busy``: asked to come later; ``failed``: a fault of the store.
    """
    text = str(error)
    if _is_about_keys(text):
        return "denied"
    status, code = _STATUS.search(text), _S3_CODE.search(text)
    if status is None:
        return "timeout" if _TIMED_OUT.search(text) else "unreachable"
    if code and code[1] == "NoSuchBucket":
        return "no_bucket"
    number = int(status[1][:3])
    known = {401: "denied", 403: "denied", 404: "missing", 408: "timeout", 429: "busy", 503: "busy"}
    return known.get(number, "failed" if number >= 500 else "refused")


def _is_about_keys(text: str) -> bool:
    """Whether the error comes from whom obstore asks for keys, and not from the store."""
    container = os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    return bool(_KEYS_ASKED.search(text)) or bool(container and f" {container} " in text)


def _demand_endpoint(endpoint: str, source: str) -> None:
    try:
        parts = urlsplit(endpoint)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_good = False
    if not is_good or parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise StartError(f"{source} cannot be {endpoint!r}: give a URL such as https://s3.example.org:9000.", 2)


def _credential(directory: str | None) -> dict[str, str]:
    """The keys in the systemd credential ``aws`` (systemd.exec(5), LoadCredential=): lines as of an environment file.

    Without that credential, or with an empty one, there are none. The errors never show a key.
    """
    path = Path(directory, _CREDENTIAL) if directory else None
    if path is None or not path.exists():
        return {}
    try:
        lines = [line.strip() for line in path.read_text("ascii").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"Cannot read the keys in {path}: {error}.", 2) from None
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    keys = {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}
    if keys and (not {*_KEYS[:2]} <= keys.keys() <= {*_KEYS} or not all(keys.values())):
        raise StartError(f"{path} needs the lines {_KEYS[0]}=… and {_KEYS[1]}=…, and may have {_KEYS[2]}=….", 2)
    return keys
