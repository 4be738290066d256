"""Every setting, declared once: name, default, unit, bounds; read from flags over environment over file over default.

``seal_after_s`` is ``--seal-after-s``, ``NETWATCH_SEAL_AFTER_S`` and ``seal_after_s`` in the TOML file. A setting
that is unknown or impossible is refused by name (:class:`~netwatch.errors.StartError`, exit code 2), never ignored.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import socket
import ssl
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from netwatch.errors import StartError

KIB: Final = 1024
MIB: Final = 1024 * KIB
_DATA_DIR: Final = Path("data")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_SIZE: Final = re.compile(r"([0-9]+)\s*(B|KIB|MIB|GIB|K|M|G)?\Z", re.IGNORECASE)
_OTHER_VARIABLES: Final = frozenset({"NETWATCH_CONFIG", "NETWATCH_BUCKET", "NETWATCH_ENDPOINT", "NETWATCH_REGION"})
"""Those that are no settings of a server, but of what may share its environment."""
_SIZE_UNITS: Final = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": 1024 * MIB}


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("give a printable text")
    return value


def _name(value: object) -> str:
    text = _text(value)
    if len(text) > 253:
        raise ValueError("give at most 253 characters")
    return text


def _count(value: object) -> int:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("give a whole number")
    return value


def size(value: object) -> int:
    """A number of bytes, from one or from a text such as ``10MiB``. Raises ValueError with a sentence."""
    match = _SIZE.match(value.strip()) if isinstance(value, str) else None
    if match:
        return int(match[1]) * _SIZE_UNITS[(match[2] or "").upper().removesuffix("IB")]
    try:
        return _count(value)
    except ValueError:
        raise ValueError("give a number of bytes, or one with a unit such as 10MiB") from None


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("give a number of seconds")
    try:
        seconds = float(value)
    except ValueError:
        raise ValueError("give a number of seconds") from None
    if not 0 <= seconds < 1e9:
        raise ValueError("give a number of seconds")
    return seconds


def _days(value: object) -> float | None:
    if value in ("", "none"):
        return None
    try:
        return _seconds(value)
    except ValueError:
        raise ValueError("give a number of days, or none") from None


def _size_or_none(value: object) -> int | None:
    return None if value in ("", "none") else size(value)


def _path(value: object) -> Path:
    try:
        return Path(_text(value)).expanduser()
    except RuntimeError:
        raise ValueError("the user after ~ has no home directory") from None


def _address(value: object) -> str:
    split_address(_text(value))
    return str(value)


def _address_or_none(value: object) -> str | None:
    return _address(value) if value != "" else None


def _durability(value: object) -> str:
    if value not in ("synced", "written"):
        raise ValueError("give synced (it survives a power cut) or written (it survives the death of every process)")
    return str(value)


def _texts(value: object) -> tuple[str, ...]:
    """A TOML array of texts, or texts with commas between them."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError("give texts with commas between them")
    texts = tuple(item.strip() for item in items if item.strip())
    if value and not texts:  # who meant to write some would have a server without: for tokens, an open door
        raise ValueError("give texts with commas between them, or nothing at all")
    return texts


_ORIGIN: Final = re.compile(
    r"(?!http://.*:80\Z|https://.*:443\Z)[a-z][a-z0-9+.-]*://([a-z0-9._~-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]*)?"
)
"""An origin as a browser writes it; one written otherwise would never be the same."""


def _origins(value: object) -> tuple[str, ...]:
    origins = _texts(value)
    for origin in origins:
        if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
            raise ValueError(
                "give origins as browsers write them, such as https://www.example.org: no path, no capitals, no port "
                "80 or 443, xn-- names; or * for all"
            )
    return origins


def _networks(value: object) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(network) for network in _texts(value))
    except ValueError:
        raise ValueError("give addresses or networks such as 10.0.0.0/8") from None


def _tokens(value: object) -> Mapping[str, str]:
    """``name:token`` texts, or a TOML table of names and tokens. The errors never show a token."""
    pairs = list(value.items()) if isinstance(value, dict) else [item.partition(":")[::2] for item in _texts(value)]
    for name, token in pairs:
        if not isinstance(token, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
            raise ValueError("give name:token, the name of 1 to 64 letters, digits, dots, dashes and underscores")
        if not re.fullmatch(r"[A-Za-z0-9._~+/=-]{16,512}", token):
            raise ValueError(f"the token {name} needs 16 to 512 of the characters A-Z a-z 0-9 . _ ~ + / = -")
    if len(dict(pairs)) < len(pairs):
        raise ValueError("give each token a name of its own")
    if len(set(dict(pairs).values())) < len(pairs):
        raise ValueError("give each name a token of its own")
    return dict(pairs)


def _file(value: object) -> Path | None:
    return _path(value) if value != "" else None


def _address_detail(value: object) -> str:
    if value not in ("none", "truncated", "full"):
        raise ValueError("give none, truncated or full")
    return str(value)


def _log_format(value: object) -> str:
    if value not in ("auto", "json", "text"):
        raise ValueError("give auto, json or text")
    return str(value)


def _share(value: object) -> float:
    try:
        share = _seconds(value)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError("give a number from 0 to 1")
    return share


def _yes_or_no(value: object) -> bool:
    words = {"yes": True, "true": True, "no": False, "false": False, True: True, False: False}
    if not isinstance(value, str | bool) or value not in words:
        raise ValueError("give yes or no")
    return words[value]


def split_address(address: str) -> tuple[str, int]:
    """The host and port of ``host:port`` or ``[ipv6]:port``; port 0 asks for a free one. Raises ValueError."""
    host, separator, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("write an IPv6 address in brackets: [::1]:8080")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("give host:port, such as 127.0.0.1:8080")
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError("this is no name of a host") from None
    return host, int(port)


def _size_text(value: object) -> str:
    assert isinstance(value, int)
    return f"{value // MIB}MiB" if value and value % MIB == 0 else str(value)


def _default_text(value: object, parse: Callable[[object], Any]) -> str | None:
    if parse is size:
        return _size_text(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(value) or None
    return None if value is None else str(value)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _credential() -> Path | None:
    """The systemd credential ``tokens``, where the unit has it (systemd.exec(5), LoadCredential=)."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(directory, "tokens") if directory else None
    return path if path and path.exists() else None


def _setting(
    default: object,
    parse: Callable[[object], Any],
    help_: str,
    *,
    low: float | None = None,
    high: float | None = None,
    is_secret: bool = False,
    needs_restart: bool = False,
) -> Any:
    text = None if callable(default) else _default_text(default, parse)
    metadata = {
        "parse": parse,
        "help": help_,
        "low": low,
        "high": high,
        "default_text": text,
        "is_secret": is_secret,
        "needs_restart": needs_restart,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata, repr=not is_secret)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one server; sizes are bytes, ``_s`` are seconds."""

    bind: str = _setting("127.0.0.1:8080", _address, "where to listen, host:port", needs_restart=True)
    admin_bind: str | None = _setting(
        None,
        _address_or_none,
        "where to serve metrics and details, host:port; by default at bind, to holders of a token",
        needs_restart=True,
    )
    data_dir: Path = _setting(_DATA_DIR, _path, "where the files go", needs_restart=True)
    name: str = _setting(socket.gethostname, _name, "the `server` member of each line; by default the host's name")
    workers: int = _setting(_cores, _count, "worker processes; by default one a core", low=1, high=512)
    durability: str = _setting(
        "synced", _durability, "what an answered report survives: synced or written", needs_restart=True
    )
    seal_bytes: int = _setting(10 * MIB, size, "seal a segment at this many bytes of lines", low=1, needs_restart=True)
    seal_after_s: float = _setting(
        60.0, _seconds, "seal a segment this long after its first line", low=0.05, needs_restart=True
    )
    compression_level: int = _setting(1, _count, "zstd's level", low=1, high=19, needs_restart=True)
    max_body_bytes: int = _setting(
        20 * MIB, size, "largest body of a request", low=KIB, high=256 * MIB, needs_restart=True
    )
    max_report_bytes: int = _setting(MIB, size, "largest report, as a line", low=KIB, high=1024 * MIB)
    max_reports: int = _setting(10_000, _count, "most reports in a request", low=1, high=100_000, needs_restart=True)
    max_depth: int = _setting(32, _count, "deepest nesting of a report", low=5, high=64)
    in_flight_bytes: int = _setting(64 * MIB, size, "bytes being worked on, shared out over the workers", low=KIB)
    commit_bytes: int = _setting(
        8 * MIB, size, "most bytes of lines in one commit", low=KIB, high=1024 * MIB, needs_restart=True
    )
    ack_timeout_s: float = _setting(4.0, _seconds, "answer 503 when a report is not safe after this long", low=0.1)
    drain_timeout_s: float = _setting(
        3.0, _seconds, "at a stop, cut off requests still being read after this long", needs_restart=True
    )
    tokens: Mapping[str, str] = _setting(
        dict, _tokens, "who may post, name:token with commas between; by default everybody", is_secret=True
    )
    tokens_file: Path | None = _setting(
        _credential, _file, "a file of name:token lines; by default the systemd credential `tokens`, if there is one"
    )
    allowed_origins: tuple[str, ...] = _setting(
        (), _origins, "origins whose pages may post, with commas between, or * for all; by default only our own"
    )
    trusted_proxies: tuple[Network, ...] = _setting(
        (), _networks, "proxies whose Forwarded or X-Forwarded-For is believed, as networks; by default none"
    )
    address: str = _setting(
        "none", _address_detail, "how much of the client's address is stored: none, truncated, full"
    )
    kept_kinds: tuple[str, ...] = _setting(
        ("all",), _texts, "the types of browser reports that are kept, with commas between, or all"
    )
    retire_browser_reports: bool = _setting(False, _yes_or_no, "answer browser reports with 410, so that they end")
    page_reserve_bytes: int = _setting(8 * MIB, size, "of in_flight_bytes, what is kept for reports from pages", low=0)
    idempotency_window_s: float = _setting(
        900.0, _seconds, "how long an Idempotency-Key is remembered", needs_restart=True
    )
    idempotency_keys: int = _setting(
        200_000, _count, "how many Idempotency-Keys are remembered", low=0, needs_restart=True
    )
    max_connections: int = _setting(4096, _count, "most connections, shared out over the workers", low=1)
    header_timeout_s: float = _setting(10.0, _seconds, "close a connection whose request header takes longer", low=0.1)
    body_timeout_s: float = _setting(60.0, _seconds, "close a connection whose request body takes longer", low=0.1)
    idle_timeout_s: float = _setting(75.0, _seconds, "close a connection on which nothing comes for so long", low=1)
    tls_certificate: Path | None = _setting(
        None, _file, "serve HTTPS with this certificate (PEM, with its chain); by default HTTP"
    )
    tls_key: Path | None = _setting(None, _file, "the certificate's private key (PEM); by default none")
    log_format: str = _setting(
        "auto", _log_format, "json, text, or auto: text on a terminal, else JSON", needs_restart=True
    )
    slow_request_s: float = _setting(1.0, _seconds, "log each request that takes longer; 0 logs none")
    access_log_sample: float = _setting(0.0, _share, "log this share of the requests, 0 to 1")
    min_free_bytes: int = _setting(
        256 * MIB, size, "refuse reports when the disk has less free than this", low=0, needs_restart=True
    )
    retention_days: float | None = _setting(
        None, _days, "delete sealed files older than this many days; by default none", low=1 / 24, needs_restart=True
    )
    retention_bytes: int | None = _setting(
        None,
        _size_or_none,
        "delete the oldest sealed files past this many bytes; by default none",
        low=MIB,
        needs_restart=True,
    )
    retention_only_shipped: bool = _setting(
        False, _yes_or_no, "delete only what `netwatch ship` has brought into a bucket", needs_restart=True
    )

    @property
    def worker_in_flight_bytes(self) -> int:
        """One worker's share of ``in_flight_bytes``, at least one body."""
        return max(self.in_flight_bytes // self.workers, self.max_body_bytes)

    @property
    def max_batch_bytes(self) -> int:
        """More than any batch has: a commit's worth and one request (encoded afresh, JSON grows up to fourfold)."""
        return self.commit_bytes + 4 * self.max_body_bytes + 2 * KIB * self.max_reports


FIELDS: Final = {field.name: field for field in dataclasses.fields(Settings)}


def flag(name: str) -> str:
    """The command-line flag of the setting ``name``."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The environment variable of the setting ``name``."""
    return "NETWATCH_" + name.upper()


def load(flags: Mapping[str, object], environ: Mapping[str, str], config: Path | None) -> Settings:
    """The settings from ``flags`` (by name) over ``environ`` over the TOML file ``config`` over the defaults."""
    return trace(flags, environ, config)[0]


def trace(
    flags: Mapping[str, object], environ: Mapping[str, str], config: Path | None
) -> tuple[Settings, dict[str, str]]:
    """The same, and where each value comes from: a flag, a variable, the file or "default"."""
    values: dict[str, Any] = {}
    origins = dict.fromkeys(FIELDS, "default")

    def take(name: str, value: object, origin: str, said: str) -> None:
        values[name] = _parsed(name, value, said)
        origins[name] = origin

    for name, value in _from_file(config).items():
        take(name, value, str(config), f"{name} in {config}")
    for key, value in environ.items():
        name = key.removeprefix("NETWATCH_").lower()
        if key.startswith("NETWATCH_") and key not in _OTHER_VARIABLES:
            if name not in FIELDS or key != variable(name):
                raise StartError(f"The environment has {key}, but there is no such setting: unset it.", 2)
            take(name, value, key, key)
    for name, value in flags.items():
        take(name, value, flag(name), flag(name))
    settings = Settings(**values)
    if settings.tokens_file:
        tokens = {**settings.tokens, **_tokens_from(settings.tokens_file)}
        own = "" if origins["tokens"] == "default" else f"{origins['tokens']}, "
        origins["tokens"] = f"{own}{settings.tokens_file}"
        settings = dataclasses.replace(settings, tokens=tokens)
    if settings.admin_bind == settings.bind and split_address(settings.bind)[1]:
        raise StartError("admin_bind needs an address of its own, not the one of bind.", 2)
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise StartError("HTTPS needs both settings, tls_certificate and tls_key.", 2)
    if settings.tls_certificate and settings.tls_key:
        _demand_pair(settings.tls_certificate, settings.tls_key)
    return settings, origins


def text(name: str, value: Any) -> str:
    """The value of the setting ``name`` as one could give it, but for secrets."""
    if FIELDS[name].metadata["is_secret"]:
        return ",".join(f"{each}:***" for each in value) or "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return _default_text(value, FIELDS[name].metadata["parse"]) or "none"


def reloaded(old: Settings, new: Settings) -> tuple[Settings, list[str], list[str]]:
    """What a reload makes of ``old``: the settings, the names of those that are new, and of those that must wait.

    What the writer and the sockets were started with waits for a restart.
    """
    changed = [name for name in FIELDS if getattr(old, name) != getattr(new, name)]
    waiting = [name for name in changed if FIELDS[name].metadata["needs_restart"]]
    settings = dataclasses.replace(new, **{name: getattr(old, name) for name in waiting})
    return settings, [name for name in changed if name not in waiting], waiting


def _demand_pair(certificate: Path, key: Path) -> None:
    """Refuse a certificate and a key that cannot serve HTTPS: else every worker would die of them, again and again."""
    for path in (certificate, key):
        if not path.is_file() or not os.access(path, os.R_OK):
            raise StartError(f"Cannot read {path}: check tls_certificate and tls_key.", 2)
    try:  # a password that is wrong: OpenSSL would ask the terminal for one
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=str)
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)
        raise StartError(
            f"HTTPS cannot be served with tls_certificate {certificate} and tls_key {key}: "
            f"{reason.lower().replace('_', ' ')}; give a PEM certificate and its own key without a password.",
            2,
        ) from None


def _tokens_from(path: Path) -> Mapping[str, str]:
    """The tokens in a file of ``name:token`` lines; empty lines and ones that start with # say nothing."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"Cannot read the tokens in {path}: {error}.", 2) from None
    try:
        return _tokens([line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")])
    except ValueError as error:
        raise StartError(f"The tokens in {path} cannot be what they are: {error}.", 2) from None


def _from_file(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise StartError(f"Cannot read the configuration {path}: {error.strerror}.", 2) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StartError(f"The configuration {path} is not valid TOML: {error}.", 2) from None
    for name in content:
        if name not in FIELDS:
            raise StartError(f"The configuration {path} has {name!r}, but there is no such setting: remove it.", 2)
    return content


def _parsed(name: str, value: object, origin: str) -> Any:
    metadata = FIELDS[name].metadata
    try:
        parsed = metadata["parse"](value)
        low, high = metadata["low"], metadata["high"]
        text = _size_text if metadata["parse"] in (size, _size_or_none) else "{:.6g}".format
        if parsed is None:
            return None
        if low is not None and parsed < low:
            raise ValueError(f"give at least {text(low)}")
        if high is not None and parsed > high:
            raise ValueError(f"give at most {text(high)}")
    except ValueError as error:
        given = "what it is" if metadata["is_secret"] else repr(value)
        raise StartError(f"{origin} cannot be {given}: {error}.", 2) from None
    return parsed
