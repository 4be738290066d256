# ruff: noqa: E501 - tables
"""Hostile JSON: every class of text that parsers are known to disagree on, put in several places of a report.

What a text means is decided by Python's own json, made strict: it shares no code with the server's parser.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

MAX_DEPTH = 32
INT_MIN, INT_MAX = -(2**63), 2**64 - 1


class Case(NamedTuple):
    """One report as it is sent; ``number`` stands in its clientId."""

    name: str
    number: int
    text: bytes


def strict(text: bytes) -> Any:
    """The JSON value of ``text``; raises ValueError unless it is JSON, and within what the README says is taken."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    value = json.loads(text.decode(), parse_constant=refuse)
    try:
        _demand(value, MAX_DEPTH)
    except RecursionError:
        raise ValueError("deep") from None
    return value


def _demand(value: Any, levels: int) -> None:
    if isinstance(value, str):
        value.encode()  # a lone surrogate is no text
    elif isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
        raise ValueError("beyond 64 bits")
    elif isinstance(value, float) and value in (float("inf"), float("-inf")):
        raise ValueError("beyond a double")
    elif isinstance(value, dict | list):
        if not levels:
            raise ValueError("deep")
        for member in [*value, *value.values()] if isinstance(value, dict) else value:
            _demand(member, levels - 1)


def same(one: Any, two: Any) -> bool:
    """Whether both are the same JSON value: 5 and 5.0 are, 1 and true are not."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(same, one, two))
    return isinstance(one, bool) is isinstance(two, bool) and type(one == two) is bool and bool(one == two)


def expected(case: Case) -> Any:
    """The report that must be stored, None if it must be refused."""
    try:
        value = strict(case.text)
    except (ValueError, RecursionError):
        return None
    if not _is_report(value):
        return None
    for host in value["hosts"]:
        for sample in host["history"]:
            if isinstance(sample.get("latency"), int):
                sample["latency"] = float(sample["latency"])  # it is a double, as the README says
    return value


def _is_report(value: Any) -> bool:
    """Whether the value has a report's shape, as far as the cases can break it."""
    if not isinstance(value, dict) or not isinstance(value.get("hosts"), list):
        return False
    client = value.get("clientId")
    if not isinstance(client, str) or not 1 <= len(client) <= 200:
        return False
    if "geo" in value and not isinstance(value["geo"], dict):
        return False
    for host in value["hosts"]:
        if not isinstance(host, dict) or not isinstance(host.get("history"), list):
            return False
        if not all(isinstance(host.get(name), str) for name in ("name", "url", "status")):
            return False
        for sample in host["history"]:
            if not isinstance(sample, dict):
                return False
            latency, error, t = sample.get("latency"), sample.get("error"), sample.get("t")
            if isinstance(latency, bool) or not (
                latency is None or (isinstance(latency, int | float) and latency >= 0)
            ):
                return False
            if not (error is None or isinstance(error, str)) or not _is_int64(t):
                return False
    return True


def _is_int64(value: object) -> bool:
    if isinstance(value, float) and value.is_integer():
        return -(2**63) <= value < 2**63
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _nested(levels: int, start: str, end: str) -> bytes:
    return (start * levels + "1" + end * levels).encode()


NUMBERS: list[bytes] = [
    *b"0 -0 0.0 -0.0 1 -1 1.5 1e0 1E0 1e+0 1e-0 1e3 1.0e3 0e0 0e99999 -0e-99999 1e22 1e23 5e-324 1e-400 -1e-400".split(),
    *b"1.7976931348623157e308 1.7976931348623159e308 1e309 -1e309 1e400 1e999999999 1e99999999999999999999".split(),
    *b"9007199254740993 9223372036854775807 9223372036854775808 -9223372036854775808 -9223372036854775809".split(),
    *b"18446744073709551615 18446744073709551616 100000000000000000000 -18446744073709551615".split(),
    *b"0.1 0.30000000000000004 123456789.123456789123456789 1e-7 2.2250738585072011e-308 4.9e-324".split(),
    b"1" + b"0" * 308, b"1" + b"0" * 309, b"9" * 4300, b"9" * 4301, b"9" * 20000, b"0." + b"1" * 5000, b"0." + b"0" * 5000,
    b"1." + b"0" * 400 + b"1", b"1" + b"0" * 400 + b"e-400", b"0." + b"0" * 400 + b"1e401",
    # none of these is a number
    *b"+1 01 -01 00 1. .5 -.5 1.e3 1e 1e+ 1e- 1e1.5 -  -- 0x1F 0b1 1_000 1,000 NaN -NaN nan Infinity -Infinity inf".split(),
    *b"1a 1d 1f 1L 1n 0e 0.e1 1e0x 1.2.3 \xef\xbc\x91 \xd9\xa1".split(),
]  # fmt: skip

STRINGS: list[bytes] = [
    # UTF-8, well-formed and not: Unicode's table 3-7 and its neighbours
    b"", b"\xc3\xa9", b"\xe2\x82\xac", b"\xf0\x9f\x98\x80", b"\xc2\x80", b"\xdf\xbf", b"\xe0\xa0\x80", b"\xef\xbf\xbf",
    b"\xf0\x90\x80\x80", b"\xf4\x8f\xbf\xbf", b"\xef\xbf\xbd", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xe2\x80\xa9", b"\xc2\x85",
    b"\xef\xb7\x90", b"\xef\xbf\xbe", b"e\xcc\x81", b"\xe2\x80\xae", b"\x7f",
    b"\x80", b"\xbf", b"\xc0", b"\xc1", b"\xf5", b"\xf8", b"\xfc", b"\xfe", b"\xff", b"\xc0\x80", b"\xc0\xaf", b"\xc1\xbf",
    b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xf0\x80\x80\x80", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xed\xa0\xbd\xed\xb8\x80", b"\xc3", b"\xe2\x82",
    b"\xf0\x9f\x98", b"\xe2\x28\xa1", b"\xc3\x28", b"\xe2\x82\x28", b"\xf0\x28\x8c\xbc", b"\xc3\xc3\xa9", b"\xa9\xc3",
    "é".encode("latin-1"), "é".encode("utf-16"), "a".encode("utf-32"),
    # escapes
    rb"\"", rb"\\", rb"\/", rb"\b\f\n\r\t", rb"\u0000", rb"a\u0000b", rb"\u0001", rb"\u001f", rb"\u007f", rb"\u0080",
    rb"\u00e9", rb"\u00E9", rb"\u20ac", rb"\uD83D\uDE00", rb"\ud83d\ude00", rb"\uFFFE", rb"\uFFFF", rb"\u2028", rb"\uFEFF",
    rb"\u0022", rb"\u005c", rb"\u005C\u0022", rb"\u000a", rb"}{", rb"} {", rb"],[", rb"\\\"", rb"\\u0000",
    rb"\ud800", rb"\udfff", rb"\udc00\ud800", rb"\ud800\ud800", rb"\ud83dx", rb"\ud83d\u0041", rb"x\ude00", rb"\ud83d\n",
    rb"\ud83d\\ude00",
    rb"\x41", rb"\a", rb"\'", rb"\0", rb"\v", rb"\e", rb"\U0001F600", rb"\u", rb"\u1", rb"\u12", rb"\u123", rb"\u12g4",
    rb"\u 123", rb"\u-123", rb"\u+041", rb"\u{41}", rb"\u00\u00", b"\\\n", b"\\\x00", b"\\\xc3\xa9", b"\\",
    # control characters, raw
    *(bytes([byte]) for byte in range(32)), b"a\tb", b"a\nb", b"a\r\nb",
    # names with a meaning elsewhere
    b"__proto__", b"constructor", b"$ref", b"toString", b"a.b", b"a[0]", b"~", b"/", b"~0~1", b" ", b"0", b"id", b"crc", b"report",
    b"ID", b"Report", b"a" * 200, b"k" * 100_000, b"\xf0\x9f\x98\x80" * 20_000, rb"\u0000" * 20_000, b"\\\\" * 50_000,
    b"%s%n%d", b"{}", b"${jndi:ldap://x}", b"<script>", b"' OR 1=1", b"\xf3\xa0\x81\x81",
]  # fmt: skip

VALUES: list[bytes] = [
    *NUMBERS,
    *b"true false null {} [] True FALSE Null nil undefined tru truex nulll nul t".split(), b"", b"''", b"'a'", b"a", b'"', b'"a', b'a"',
    b"[1,]", b"[,1]", b"[,]", b"[1,,2]", b"[1 2]", b"[1", b"1]", b"[", b"]", b"{", b"}", b"[}", b"{]", b"[1}", b'{"a":1]', b'{"a":1,}',
    b"{,}", b'{,"a":1}', b'{"a"}', b'{"a":}', b"{:1}", b"{a:1}", b"{'a':1}", b'{1:1}', b'{null:1}', b'{"a" 1}', b'{"a":1 "b":2}',
    b'{"a"::1}', b'{"a":1,,"b":2}', b'{"a":1;"b":2}', b'{"a"=1}', b'{"a":"a" 123}', b'{"a":1}{', b'{"a":1}#', b'{"a":1}//', b'{"a":1}/**/',
    b'{"a":/*x*/1}', b'{"a":1,"a":2}', b'{"a":1,"A":2}', b'{"a":{"b":1},"a":{"c":2}}', b'{"a":1,"\\u0061":2}', b'{"":1}', b'{"":{"":{"":[]}}}',
    b'{"a":1,"a":"x"}', b'{"\xc3\xa9":1,"e\xcc\x81":2}', b'{"\\u0000":1,"":2}', b'{"clientId":1,"hosts":2}',
    b"[ ]", b"[\t1\n,\r2 ]", b"[1\x0b]", b"[1\x0c]", b"[1\xc2\xa0]", b"[\xef\xbb\xbf1]", b"[1\xe2\x80\xa8]", b"\x00", b"1\x00", b"[1\x00]",
    b"[" + b"1," * 50_000 + b"1]", b"{" + b",".join(b'"k%d":%d' % (key, key) for key in range(5000)) + b"}",
    b"[" + b"[],{}," * 10_000 + b"0]", b'["a",\n"b"]', b"[1,true,null,\"x\",{},[],1.5]", b" " * 50_000 + b"1",
    *(_nested(levels, "[", "]") for levels in (27, 28, 29, 30, 31, 32, 100, 1000, 10_000, 100_000)),
    *(_nested(levels, '{"a":', "}") for levels in (27, 28, 29, 30, 31, 32, 100, 1000, 10_000, 50_000)),
    *(_nested(levels, '[{"a":', "}]") for levels in (13, 14, 15, 16, 500)),
    b"[" * 100_000, b'{"a":' * 50_000, b"[[" * 1000 + b"]" * 1999, b"]" * 1000,
]  # fmt: skip

_HOST = b'"name":"a","url":"u","status":"s"'

VALUE_PLACES: dict[str, bytes] = {
    "member": b'"hosts":[],"x":%b',
    "geo": b'"geo":{"lat":%b},"hosts":[]',
    "as geo": b'"geo":%b,"hosts":[]',
    "host": b'"hosts":[{' + _HOST + b',"history":[],"x":%b}]',
    "sample": b'"hosts":[{' + _HOST + b',"history":[{"t":1,"x":%b}]}]',
    "first member": b'"x":%b,"hosts":[]',
}
NUMBER_PLACES: dict[str, bytes] = {
    "latency": b'"hosts":[{' + _HOST + b',"history":[{"t":1,"latency":%b}]}]',
    "latency and more": b'"y":1,"hosts":[{' + _HOST + b',"history":[{"t":1,"latency":%b}]}]',
    "t": b'"hosts":[{' + _HOST + b',"history":[{"t":%b}]}]',
    "t and more": b'"y":1,"hosts":[{' + _HOST + b',"history":[{"t":%b}]}]',
}
STRING_PLACES: dict[str, bytes] = {
    "string": b'"hosts":[],"x":"%b"',
    "key": b'"hosts":[],"%b":1',
    "inner key": b'"hosts":[],"x":{"y":{"%b":1}}',
    "name": b'"hosts":[{"name":"%b","url":"u","status":"s","history":[]}]',
    "url": b'"hosts":[{"name":"a","url":"%b","status":"s","history":[],"x":1}]',
    "error": b'"hosts":[{' + _HOST + b',"history":[{"t":1,"error":"%b"}]}]',
    "host's key": b'"hosts":[{' + _HOST + b',"history":[],"%b":1}]',
    "geo's key": b'"geo":{"%b":1},"hosts":[]',
    "geo": b'"geo":{"x":"%b"},"hosts":[]',
}

BASE = b'{"clientId":"%b","geo":{"c":"\xc3\xa9"},"hosts":[{"name":"\xe2\x82\xac","url":"u","status":"s","history":[{"t":12,"latency":1.5e1,"error":"\\u00e9\\n"}]}],"\xf0\x9f\x98\x80":[true,null]}'


def _wholes(client: bytes, step: int) -> Iterator[tuple[str, bytes]]:
    """A whole report, mangled at every position: cut, a byte broken, left out, put in."""
    base = BASE % client
    yield "as it is", base
    start = base.index(b'"geo"')
    for position in range(start, len(base), step):
        yield f"cut at {position}", base[:position]
        for byte in (b"\x80", b"\xff", b"\xc0", b"\xe2", b"\0", b"\x1f", b'"', b"\\", b","):
            yield f"{byte!r} at {position}", base[:position] + byte + base[position + 1 :]
        yield f"without {position}", base[:position] + base[position + 1 :]
        yield f"0xed before {position}", base[:position] + b"\xed\xa0\x80" + base[position:]
    plain = b'{"clientId":"%b","hosts":[]}' % client
    yield from {
        "BOM": b"\xef\xbb\xbf" + plain, "UTF-16 BOM": b"\xff\xfe" + plain, "white": b" \t\r\n" + plain + b" \t\r\n",
        "NUL after": plain + b"\0", "NUL before": b"\0" + plain, "trailing": plain + b"x", "trailing comma": plain + b",",
        "trailing bracket": plain + b"]", "trailing brace": plain + b"}", "trailing string": plain + b'""', "trailing number": plain + b" 1",
        "form feed": plain + b"\x0c", "vertical tab before": b"\x0b" + plain, "no-break space": b"\xc2\xa0" + plain,
        "UTF-16": plain.decode().encode("utf-16-le"), "UTF-32": plain.decode().encode("utf-32-be"),
        "comment": b"/* */" + plain, "comment after": plain + b"// x", "JSONP": b"f(" + plain + b")", "guard": b")]}'," + plain,
        "record separator": b"\x1e" + plain, "quoted": json.dumps(plain.decode()).encode(),
        "key twice": b'{"clientId":1,"clientId":"%b","hosts":[]}' % client, "key twice, bad last": b'{"clientId":"%b","hosts":[],"hosts":1}' % client,
        "hosts twice": b'{"clientId":"%b","hosts":[{"name":1}],"hosts":[]}' % client,
        "escaped key": b'{"client\\u0049d":"%b","hosts":[]}' % client, "other case": b'{"CLIENTID":1,"clientId":"%b","hosts":[],"Hosts":3}' % client,
        "only other case": b'{"ClientID":"%b","hosts":[]}' % client, "t twice": BASE.replace(b'"t":12', b'"t":"x","t":12') % client,
        "latency twice": BASE.replace(b'"t":12', b'"t":12,"latency":"x"') % client,
        "the line's own members": b'{"id":"x","crc":"00000000","receivedAt":1,"kind":2,"server":3,"report":{},"clientId":"%b","hosts":[]}' % client,
    }.items()  # fmt: skip


def cases(step: int, in_one_place: bool) -> Iterator[Case]:
    """All cases. Thinned, the whole ones come at every ``step``-th position, and the others in one place each."""
    number = 0

    def put(texts: list[bytes], places: dict[str, bytes], name: str) -> Iterator[Case]:
        nonlocal number
        for index, text in enumerate(texts):
            every = list(places.items())
            for place, shape in [every[index % len(every)]] if in_one_place and len(text) > 20 else every:
                if "latency" in place and text.isdigit() and 20 <= len(text) <= 309 and int(text) > INT_MAX:
                    continue  # an integer beyond 64 bits is stored as the double that a latency is, elsewhere refused
                number += 1
                report = b'{"clientId":"c%d",' % number + shape.replace(b"%b", text) + b"}"
                yield Case(f"{name} {text[:40]!r} as {place}", number, report)

    yield from put(VALUES, VALUE_PLACES, "value")
    yield from put(NUMBERS, NUMBER_PLACES, "number")
    yield from put(STRINGS, STRING_PLACES, "string")
    for name, text in _wholes(b"c%d", step):
        number += 1
        yield Case(f"whole, {name}", number, text.replace(b"c%d", b"c%d" % number))


def forms(case: Case) -> dict[str, tuple[str, str, bytes]]:
    """The report in each form of a body: its path, its media type and its bytes."""
    reports, browsers = "/api/v1/reports", "/api/v1/browser-reports"
    good = b'{"clientId":"good","hosts":[]}'
    wrapped = b'{"type":"t","url":"c%d","body":%b}' % (case.number, case.text)
    return {
        "object": (reports, "application/json", case.text),
        "array": (reports, "application/json; charset=utf-8", b"[" + case.text + b"]"),
        "text": (reports, "text/plain;charset=UTF-8", case.text + b"\n"),
        "lines": (reports, "application/x-ndjson", case.text + b"\n"),
        "line among lines": (reports, "application/x-ndjson", good + b"\n" + case.text + b"\r\n" + good),
        "browser": (browsers, "application/reports+json", b"[" + wrapped + b"]"),
        "browser, one": (browsers, "application/csp-report", wrapped),
    }
