"""Every setting, declared once: name, default, unit, bounds; read from flags over environment over file over default.

``seal_after_s`` is ``--seal-after-s``, ``NETWATCH_SEAL_AFTER_S`` and ``seal_after_s`` in the TOML file. A setting
that is unknown or impossible is refused by name (:class:`~netwatch.errors.StartError`, exit code 2), never ignored.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from netwatch.errors import StartError

KIB: Final = 1024
MIB: Final = 1024 * KIB
_DATA_DIR: Final = Path("data")
_SIZE: Final = re.compile(r"([0-9]+)\s*(B|KIB|MIB|GIB|K|M|G)?\Z", re.IGNORECASE)
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


def _size(value: object) -> int:
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


def _path(value: object) -> Path:
    try:
        return Path(_text(value)).expanduser()
    except RuntimeError:
        raise ValueError("the user after ~ has no home directory") from None


def _address(value: object) -> str:
    split_address(_text(value))
    return str(value)


def _durability(value: object) -> str:
    if value != "synced":
        raise ValueError("the only durability is 'synced' (fdatasync before the answer)")
    return "synced"


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


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _setting(
    default: object, parse: Callable[[object], Any], help_: str, *, low: float | None = None, high: float | None = None
) -> Any:
    text = None if callable(default) else _size_text(default) if parse is _size else str(default)
    metadata = {"parse": parse, "help": help_, "low": low, "high": high, "default_text": text}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one server; sizes are bytes, ``_s`` are seconds."""

    bind: str = _setting("127.0.0.1:8080", _address, "where to listen, host:port")
    data_dir: Path = _setting(_DATA_DIR, _path, "where the files go")  # noqa: RUF009 - a Path is immutable
    name: str = _setting(socket.gethostname, _name, "the `server` member of each line; by default the host's name")
    workers: int = _setting(_cores, _count, "worker processes; by default one a core", low=1, high=512)
    durability: str = _setting("synced", _durability, "what a report has survived when it is answered: synced")
    seal_bytes: int = _setting(10 * MIB, _size, "seal a segment at this many bytes of lines", low=1)
    seal_after_s: float = _setting(60.0, _seconds, "seal a segment this long after its first line", low=0.05)
    compression_level: int = _setting(1, _count, "zstd's level", low=1, high=19)
    max_body_bytes: int = _setting(20 * MIB, _size, "largest body of a request", low=KIB, high=256 * MIB)
    max_report_bytes: int = _setting(MIB, _size, "largest report, as a line", low=KIB, high=1024 * MIB)
    max_reports: int = _setting(10_000, _count, "most reports in a request", low=1, high=100_000)
    max_depth: int = _setting(32, _count, "deepest nesting of a report", low=5, high=64)
    in_flight_bytes: int = _setting(64 * MIB, _size, "bytes being worked on, shared out over the workers", low=KIB)
    commit_bytes: int = _setting(8 * MIB, _size, "most bytes of lines in one commit", low=KIB, high=1024 * MIB)
    ack_timeout_s: float = _setting(4.0, _seconds, "answer 503 when a report is not safe after this long", low=0.1)
    drain_timeout_s: float = _setting(3.0, _seconds, "at a stop, cut off requests still being read after this long")
    min_free_bytes: int = _setting(256 * MIB, _size, "refuse reports when the disk has less free than this", low=0)

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
    values: dict[str, Any] = {}
    for name, value in _from_file(config).items():
        values[name] = _parsed(name, value, f"{name} in {config}")
    for key, value in environ.items():
        name = key.removeprefix("NETWATCH_").lower()
        if key.startswith("NETWATCH_") and key != "NETWATCH_CONFIG":
            if name not in FIELDS or key != variable(name):
                raise StartError(f"The environment has {key}, but there is no such setting: unset it.", 2)
            values[name] = _parsed(name, value, key)
    for name, value in flags.items():
        values[name] = _parsed(name, value, flag(name))
    return Settings(**values)


def _from_file(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise StartError(f"Cannot read the configuration {path}: {error.strerror}.", 2) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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
        text = _size_text if metadata["parse"] is _size else str
        if low is not None and parsed < low:
            raise ValueError(f"give at least {text(low)}")
        if high is not None and parsed > high:
            raise ValueError(f"give at most {text(high)}")
    except ValueError as error:
        raise StartError(f"{origin} cannot be {value!r}: {error}.", 2) from None
    return parsed
