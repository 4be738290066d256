"""What a report is, and how it becomes a line: validated, encoded afresh, wrapped in what the server knows.

A line is ``{"id":…,"receivedAt":…,"kind":…,"server":…,"report":{…},"crc":"xxxxxxxx"}`` and a line feed. Whatever
comes in, a line is strict JSON in strict UTF-8, without duplicate members, deep nesting or numbers that readers refuse.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import io
import itertools
import math
import os
import random
import re
import time
from binascii import hexlify
from collections.abc import Container, Iterator
from typing import Annotated, Any, Final

import msgspec
from zlib_ng.zlib_ng import crc32

from netwatch.errors import Rejected

ID: Final = slice(7, 43)
"""Where a line's id stands."""

LINE_START: Final = b'{"id":"'
"""What a line begins with."""

LINE_END: Final = b'"}\n'
"""Stands at the end of a line and nowhere else."""

_CRC_BYTES: Final = len(b',"crc":"01234567"}')
_WIDEST: Final = 2
"""A report may be this many times larger as it is sent than as a line: for white space and escapes."""
_LONG_BYTES: Final = 64 * 1024
_EXTREME: Final = re.compile(rb"[eE][+-]?0*[1-9][0-9]{2}")
"""What a number close to the ends of a double's range has: msgspec takes 10 us to decode one, 300 times the usual."""
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Timestamp = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt ]([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)"
        r"(\.[0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])\Z"
    ),
]
_Latency = Annotated[float, msgspec.Meta(ge=0)]
_ClientId = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Sample(msgspec.Struct):
    """One measurement: ``t`` in ms since the epoch, ``latency`` in ms."""

    t: _Int64
    latency: _Latency | msgspec.UnsetType | None = msgspec.UNSET
    error: str | msgspec.UnsetType | None = msgspec.UNSET


class Host(msgspec.Struct):
    """One host that the client measures, with its latest samples."""

    name: str
    url: str
    status: str
    history: list[Sample]


class Report(msgspec.Struct):
    """What a client posts. Members that are not listed here are kept as they are."""

    clientId: _ClientId  # noqa: N815 - the name on the wire
    hosts: list[Host]
    timestamp: _Timestamp | msgspec.UnsetType = msgspec.UNSET
    geo: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class BrowserReport(msgspec.Struct):
    """What browsers send (W3C Reporting API): ``age`` in ms before sending, ``body`` depends on ``type``."""

    type: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    body: Any
    age: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.0
    url: str | msgspec.UnsetType | None = msgspec.UNSET
    user_agent: str | msgspec.UnsetType | None = msgspec.UNSET


class CspReport(msgspec.Struct):
    """What older browsers send for ``report-uri`` (CSP level 2)."""

    report: dict[str, Any] = msgspec.field(name="csp-report")


# The fast way: the same shapes with nothing else in them, so that a typed decode checks everything a line must hold.
class _PlainSample(Sample, forbid_unknown_fields=True, gc=False):
    pass


class _PlainHost(Host, forbid_unknown_fields=True, gc=False):
    history: list[_PlainSample]  # type: ignore[assignment]  # a narrower list, only ever decoded


class _PlainReport(Report, forbid_unknown_fields=True, gc=False):
    hosts: list[_PlainHost]  # type: ignore[assignment]  # a narrower list, only ever decoded
    geo: dict[str, str | _Int64 | float | bool | None] | msgspec.UnsetType = msgspec.UNSET


# The slow way: some senders write the integer 1000 as 1000.0, or as 1e3; to JSON, and to JSON Schema, that is the same.
class _AnySample(Sample):
    t: _Int64 | Annotated[float, msgspec.Meta(multiple_of=1, ge=-(2**63), lt=2**63)]  # type: ignore[assignment]


class _AnyHost(Host):
    history: list[_AnySample]  # type: ignore[assignment]  # as above, only ever checked


class _AnyReport(Report):
    hosts: list[_AnyHost]  # type: ignore[assignment]  # as above, only ever checked


_decode_plain = msgspec.json.Decoder(_PlainReport).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


_decode_extreme = msgspec.json.Decoder(float_hook=_float).decode


def _is_extreme(raw: bytes | msgspec.Raw) -> bool:
    """Whether msgspec could take seconds for the numbers in ``raw``."""
    return len(raw) > _LONG_BYTES and _EXTREME.search(memoryview(raw)) is not None


def encode_report(raw: bytes | msgspec.Raw, max_depth: int) -> bytes:
    """The report ``raw`` as canonical JSON: the same value, encoded afresh. Raises :class:`Rejected`."""
    if _is_extreme(raw):
        return _encode_slowly(raw, max_depth)
    try:
        return _encode(_decode_plain(raw))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _encode_slowly(raw, max_depth)


def _encode_slowly(raw: bytes | msgspec.Raw, max_depth: int) -> bytes:
    """The way of reports with other members than ours, and of bad ones: it keeps the former and explains the latter."""
    value = _decode_any_json(raw, max_depth)
    _demand(value, _AnyReport)
    for host in value["hosts"]:
        for sample in host["history"]:
            sample["t"] = int(sample["t"])
            if isinstance(sample.get("latency"), int):
                sample["latency"] = float(sample["latency"])
    _check(value, max_depth)
    return _encode(value)


def encode_browser_report(raw: bytes | msgspec.Raw, max_depth: int) -> tuple[str, float, bytes]:
    """The browser report's type, its age in ms, and the report as canonical JSON. Raises :class:`Rejected`."""
    value = _decode_any_json(raw, max_depth)
    is_csp = isinstance(value, dict) and "csp-report" in value
    _demand(value, CspReport if is_csp else BrowserReport)
    _check(value, max_depth)
    if is_csp:
        return "csp-violation", 0.0, _encode(value)
    return value["type"], float(value.get("age", 0)), _encode(value)


def _decode_any_json(raw: bytes | msgspec.Raw, max_depth: int) -> Any:
    """The value of ``raw``, strictly JSON in strict UTF-8. Raises :class:`Rejected`."""
    if not (text := bytes(raw)).isascii():
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise Rejected("invalid_utf8", f"Send UTF-8: byte {error.start} of the report is none.") from None
    gc.disable()  # to look for garbage in what is just being made takes five times as long as making it
    try:
        value = (_decode_extreme if _is_extreme(raw) else _decode_any)(raw)
    except RecursionError:
        raise Rejected("too_deep", f"Nest at most {max_depth} levels.") from None
    except msgspec.ValidationError:  # what an untyped decode refuses is a number beyond a double
        raise Rejected("number_out_of_range", "Send numbers that a double can hold.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected("invalid_json", f"Send valid JSON: {error}.") from None
    finally:
        gc.enable()
    return value


def _demand(value: Any, shape: type) -> None:
    """Raise :class:`Rejected` if the value has not that shape."""
    try:
        msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise _explained(error) from None


def _check(value: dict[str, Any] | list[Any], levels: int) -> None:
    """Demand that readers can take ``value``: at most ``levels`` levels, and integers of 64 bits."""
    if not levels:
        raise Rejected("too_deep", "Nest less deeply.")
    for key, member in value.items() if type(value) is dict else enumerate(value):
        kind = type(member)
        try:  # a pointer is made on the way out, only where it is needed
            if kind is int:
                if not _INT_MIN <= member <= _INT_MAX:
                    raise Rejected("number_out_of_range", "Send integers from -2^63 to 2^64-1.")
            elif (kind is dict or kind is list) and (member or levels == 1):
                _check(member, levels - 1)
        except Rejected as error:
            error.pointer = f"/{str(key).replace('~', '~0').replace('/', '~1')}{error.pointer}"
            raise


def _explained(error: msgspec.ValidationError) -> Rejected:
    """The msgspec error, whose message ends in a path such as "- at `$.hosts[0].url`", as a code and a JSON pointer."""
    reason, _, path = str(error).partition(" - at `$")
    if "matching regex" in reason:
        reason = "Expected an RFC 3339 date and time"
    reason = reason.replace("`int | float`", "`int`").replace("`float` that's a multiple of 1.0", "`int`")
    pointer = "".join(f"/{step}" for step in re.findall(r"\w+", path))
    return Rejected("missing_member" if "missing required" in reason else "invalid_member", f"{reason}.", pointer)


class Lines:
    """Makes lines for one server: ``server`` is the name that stands in each, limits are bytes and levels."""

    def __init__(self, server: str, *, max_report_bytes: int, max_depth: int) -> None:
        self._server = b',"server":' + _encode(server)
        self._max_report_bytes = max_report_bytes
        self._max_depth = max_depth
        self._times = _Times()
        self._now_ns = -1
        self._ids: Iterator[bytes]
        self._after_id = b""
        """What follows a line's id at that time: the same for all reports of a request."""

    def line(self, raw: bytes | msgspec.Raw, now_ns: int, line_id: str = "", address: bytes = b"") -> bytes:
        """The report ``raw``, received at ``now_ns`` (ns since the epoch), as a line. Raises :class:`Rejected`.

        Without a ``line_id`` it gets a new one; ``address`` is what :func:`address_member` gives.
        """
        if len(raw) > _WIDEST * self._max_report_bytes:  # before it is decoded: that costs many times its size
            raise self._too_large()
        report = encode_report(raw, self._max_depth)
        if now_ns != self._now_ns:
            self._now_ns = now_ns
            self._ids = ids(now_ns // 1_000_000)
            self._after_id = f'","receivedAt":"{self._times.text(now_ns)}","kind":"report"'.encode() + self._server
        id_ = line_id.encode() if line_id else next(self._ids)
        return self._finished(b"".join((LINE_START, id_, self._after_id, address, b',"report":')), report)

    def browser_line(
        self, raw: bytes | msgspec.Raw, now_ns: int, line_id: str, address: bytes, kept: Container[str]
    ) -> bytes:
        """The browser report ``raw`` as a line: its kind is its type, which ``kept`` has (or "all")."""
        if len(raw) > _WIDEST * self._max_report_bytes:
            raise self._too_large()
        kind, age_ms, report = encode_browser_report(raw, self._max_depth)
        if "all" not in kept and kind not in kept:
            raise Rejected("kind_ignored", "Reports of this type are not kept here.")
        received_at = self._times.text(now_ns)
        generated_at = _Times().text(now_ns - int(age_ms * 1_000_000))
        head = (
            f'{{"id":"{line_id or new_id(now_ns)}","receivedAt":"{received_at}","generatedAt":"{generated_at}","kind":'
        )
        return self._finished(b'%b%b%b%b,"report":' % (head.encode(), _encode(kind), self._server, address), report)

    def _finished(self, head: bytes, report: bytes) -> bytes:
        if len(head) + len(report) + _CRC_BYTES > self._max_report_bytes:
            raise self._too_large()
        checksum = crc32(report, crc32(head)).to_bytes(4, "big")
        return b"".join((head, report, b',"crc":"', hexlify(checksum), b'"}\n'))

    def _too_large(self) -> Rejected:
        return Rejected("report_too_large", f"Send reports of at most {self._max_report_bytes} bytes as a line.")


def address_member(address: str) -> bytes:
    """The member of a line that says where its report came from."""
    return b',"address":' + _encode(address)


class _Times:
    """Writes times as lines have them: UTC, six decimals, Z."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def text(self, time_ns: int) -> str:
        """``time_ns`` since the epoch as text."""
        second, nanoseconds = divmod(time_ns, 1_000_000_000)
        if second != self._second:
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            self._second = second
        return f"{self._text}{nanoseconds // 1000:06d}Z"


@functools.lru_cache(maxsize=1)
def ids(now_ms: int) -> Iterator[bytes]:
    """UUIDs of version 7 (RFC 9562, method 2 of its section 6.2): the time in ms since the epoch, then random bits.

    The last 48 bits count on from where they began, so that within one millisecond of one process no two are the same;
    the first of them is 0 at the beginning, which leaves room to count.
    """
    bits = random.getrandbits  # not a secret: an id only has to be unique
    high, low = now_ms >> 16 & 0xFFFFFFFF, now_ms & 0xFFFF
    start = b"%08x-%04x-7%03x-%04x-" % (high, low, bits(12), 0x8000 | bits(14))
    return map((start + b"%012x").__mod__, itertools.count(bits(47)))


os.register_at_fork(after_in_child=ids.cache_clear)


def new_id(now_ns: int) -> str:
    """A UUID of version 7 with that time (ns since the epoch)."""
    return next(ids(now_ns // 1_000_000)).decode()


class Key:
    """An idempotency key and whose it is; the same on every host, so are the ids of its reports."""

    def __init__(self, token_name: str, key: str) -> None:
        self._hash = hashlib.sha256(f"{len(token_name)}:{token_name}:{key}:".encode())
        self.digest = self._hash.digest()[:16]

    def id(self, index: int) -> str:
        """The id of the request's report number ``index``: a UUID of version 8 (RFC 9562)."""
        one = self._hash.copy()
        one.update(b"%d" % index)
        text = one.hexdigest()
        variant = "89ab"[int(text[16], 16) & 3]
        return f"{text[:8]}-{text[8:12]}-8{text[13:16]}-{variant}{text[17:20]}-{text[20:32]}"


def line_count(lines: bytes | bytearray) -> int:
    """How many lines there are: a file's are found many times as fast as ``bytes.count`` finds line feeds."""
    return len(io.BytesIO(lines).readlines())


def is_whole(line: bytes) -> bool:
    """Whether ``line`` (without its line feed) is a line as it was made: its start, its end and its checksum."""
    return line.startswith(LINE_START) and line[-_CRC_BYTES:] == b',"crc":"%08x"}' % crc32(
        memoryview(line)[:-_CRC_BYTES]
    )
