from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
import uuid
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netwatch import reports
from netwatch.errors import ERRORS, Rejected
from netwatch.reports import ID, Lines, encode_report, is_whole, new_id

NOW_NS = 1_795_343_050_123_456_789  # 2026-11-22T10:24:10.123456789Z
RECEIVED_AT = "2026-11-22T10:24:10.123456Z"
PLAIN = {
    "clientId": "c1",
    "timestamp": "2026-11-22T10:24:10.123Z",
    "geo": {"city": "Zürich", "lat": 47.4, "asn": 559, "mobile": False, "isp": None},
    "hosts": [
        {
            "name": "a",
            "url": "https://a.example/",
            "status": "up",
            "history": [
                {"t": 1795343050000, "latency": 12.5, "error": None},
                {"t": 1795343051000, "latency": 7, "error": None},
                {"t": 1795343052000, "latency": None, "error": "timeout"},
                {"t": 1795343053000},
            ],
        },
        {"name": "b", "url": "b", "status": "down", "history": []},
    ],
}
MINIMAL = b'{"clientId":"c","hosts":[]}'


def with_member(text: str) -> bytes:
    """A report whose member x, which is none of ours, is `text`."""
    return b'{"clientId":"c","hosts":[],"x":%b}' % text.encode()


def with_sample(text: str, more: str = "") -> bytes:
    return f'{{"clientId":"c","hosts":[{{"name":"n","url":"u","status":"s","history":[{text}]}}]{more}}}'.encode()


def lines(**limits: int) -> Lines:
    return Lines("host1", **{"max_report_bytes": 1024 * 1024, "max_depth": 32} | limits)


def strict(text: bytes) -> Any:
    """What a strict reader makes of the text; duplicate members, NaN and infinities fail."""

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    def no_infinity(digits: str) -> float:
        assert math.isfinite(float(digits)), f"{digits} is beyond a double"
        return float(digits)

    def no_long_integer(digits: str) -> int:
        assert -(2**63) <= int(digits) < 2**64, f"{digits} has more than 64 bits"
        return int(digits)

    def no_duplicates(members: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(members)) == len(members), "a member stands twice"
        return dict(members)

    return json.loads(
        text.decode("utf-8", "strict"),
        parse_constant=no_constant,
        parse_float=no_infinity,
        parse_int=no_long_integer,
        object_pairs_hook=no_duplicates,
    )


def depth(value: Any) -> int:
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if members is None else 1 + max((depth(member) for member in members), default=0)


def stored_as(report: dict[str, Any]) -> dict[str, Any]:
    """What must be stored of a report: the same value, but for a latency, which is a float."""
    report = json.loads(json.dumps(report))
    for host in report["hosts"]:
        for sample in host["history"]:
            if isinstance(sample.get("latency"), int):
                sample["latency"] = float(sample["latency"])
    return report


def typed(value: Any) -> Any:
    """The value with the types of its numbers, so that 1, 1.0 and True differ."""
    if isinstance(value, dict):
        return {key: typed(member) for key, member in value.items()}
    if isinstance(value, list):
        return [typed(member) for member in value]
    return (type(value).__name__, repr(value))


def rejected(raw: bytes, max_depth: int = 32) -> Rejected:
    with pytest.raises(Rejected) as caught:
        encode_report(raw, max_depth)
    assert caught.value.code in ERRORS
    assert ERRORS[caught.value.code][0] == 400
    return caught.value


# The line


def test_a_line_is_as_the_design_has_it() -> None:
    line = lines().line(json.dumps(PLAIN).encode(), NOW_NS)
    match = re.fullmatch(
        rb'(\{"id":"([0-9a-f-]{36})","receivedAt":"%b","kind":"report","server":"host1","report":(\{.*\})),"crc":"([0-9a-f]{8})"\}\n'
        % RECEIVED_AT.encode(),
        line,
    )
    assert match
    assert int(match[4], 16) == zlib.crc32(match[1])
    assert strict(match[3]) == PLAIN
    assert list(strict(line)) == ["id", "receivedAt", "kind", "server", "report", "crc"]
    assert line[ID] == match[2]
    assert is_whole(line[:-1])


def test_the_id_is_a_uuid_of_version_7_with_the_time() -> None:
    ids = [uuid.UUID(new_id(NOW_NS)) for _ in range(1000)]
    assert {(i.version, i.variant) for i in ids} == {(7, uuid.RFC_4122)}
    assert {i.int >> 80 for i in ids} == {NOW_NS // 1_000_000}
    assert len(set(ids)) == len(ids)


def test_each_random_bit_of_an_id_is_used_but_the_one_that_leaves_room_to_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(random, "getrandbits", lambda count: (1 << count) - 1)
    ones = uuid.UUID(new_id(1_000_000)).int
    monkeypatch.setattr(random, "getrandbits", lambda count: 0)
    zeros = uuid.UUID(new_id(0)).int
    assert ((ones ^ zeros) & ~(1 << 80)).bit_count() == 73
    assert uuid.UUID(int=zeros).version == uuid.UUID(int=ones).version == 7


def test_ids_of_one_millisecond_count_on_and_keep_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "getrandbits", lambda count: (1 << count) - 1)
    made = [uuid.UUID(new_id(2_000_000 + number)) for number in range(3)]
    assert [one.int - made[0].int for one in made] == [0, 1, 2]
    assert made[2].hex.endswith("800000000001")


def test_processes_that_fork_within_one_millisecond_do_not_share_ids() -> None:
    own = new_id(3_000_000)
    read_end, write_end = os.pipe()
    if not (child := os.fork()):
        os.write(write_end, new_id(3_000_000).encode())
        os._exit(0)
    os.waitpid(child, 0)
    other = os.read(read_end, 100).decode()
    os.close(read_end)
    os.close(write_end)
    assert len(other) == len(own)
    assert other[:15] == own[:15]
    assert other[15:32] != own[15:32]


@pytest.mark.parametrize(
    ("now_ns", "text"),
    [
        (NOW_NS, RECEIVED_AT),
        (NOW_NS // 10**9 * 10**9, "2026-11-22T10:24:10.000000Z"),
        (NOW_NS // 10**9 * 10**9 + 999, "2026-11-22T10:24:10.000000Z"),
        (NOW_NS // 10**9 * 10**9 + 999_999_999, "2026-11-22T10:24:10.999999Z"),
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_000, "1970-01-01T00:00:00.000001Z"),
    ],
)
def test_received_at_always_has_six_decimals(now_ns: int, text: str) -> None:
    assert strict(lines().line(MINIMAL, now_ns))["receivedAt"] == text


def test_received_at_follows_a_clock_that_jumps() -> None:
    made = lines()
    times = [strict(made.line(MINIMAL, NOW_NS + jump_s * 10**9))["receivedAt"] for jump_s in (0, 3600, -86400, 0)]
    assert times == [
        RECEIVED_AT,
        "2026-11-22T11:24:10.123456Z",
        "2026-11-21T10:24:10.123456Z",
        RECEIVED_AT,
    ]


@pytest.mark.parametrize("name", ['ho"st', "back\\slash", "Zürich-☃", "n" * 253])
def test_any_server_name_is_kept_as_it_is(name: str) -> None:
    line = Lines(name, max_report_bytes=4096, max_depth=32).line(MINIMAL, NOW_NS)
    assert strict(line)["server"] == name
    assert is_whole(line[:-1])


def test_the_limit_of_a_report_is_its_line() -> None:
    limit = 1024
    text = "x" * (limit - len(lines().line(with_member('""'), NOW_NS)) + 1)
    line = lines(max_report_bytes=limit).line(with_member(f'"{text}"'), NOW_NS)
    assert len(line) == limit + 1  # and its line feed
    with pytest.raises(Rejected, match="at most 1024 bytes") as caught:
        lines(max_report_bytes=limit).line(with_member(f'"{text}x"'), NOW_NS)
    assert caught.value.code == "report_too_large"


def test_a_report_that_is_too_large_is_not_even_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []

    def decode(raw: bytes, _max_depth: int) -> bytes:
        decoded.append(raw)
        return MINIMAL

    monkeypatch.setattr(reports, "encode_report", decode)
    made = lines(max_report_bytes=1024)
    made.line(MINIMAL.ljust(2048), NOW_NS)
    for raw in (MINIMAL.ljust(2049), msgspec.Raw(MINIMAL.ljust(2049))):
        with pytest.raises(Rejected) as caught:
            made.line(raw, NOW_NS)
        assert caught.value.code == "report_too_large"
    assert len(decoded) == 1


def test_any_changed_byte_of_a_line_is_found() -> None:
    line = lines().line(MINIMAL, NOW_NS)[:-1]
    assert is_whole(line)
    for place in range(len(line)):
        for bit in range(8):
            assert not is_whole(line[:place] + bytes([line[place] ^ 1 << bit]) + line[place + 1 :]), (place, bit)
        assert not is_whole(line[:place])
        assert not is_whole(line[place + 1 :])
    assert not is_whole(line + b" ")
    assert not is_whole(b"")


# What is kept

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), children, max_size=4)
    ),
    max_leaves=12,
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
OURS = {"clientId", "timestamp", "geo", "hosts", "name", "url", "status", "history", "t", "latency", "error"}
extra = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(lambda name: name not in OURS),
    json_values,
    max_size=3,
)
plain_samples = st.fixed_dictionaries(
    {"t": st.integers(-(2**63), 2**63 - 1)},
    optional={
        "latency": st.none() | st.integers(0, 2**53) | st.floats(0, allow_infinity=False, allow_nan=False),
        "error": st.none() | text,
    },
)


def hosts(samples: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    members = {"name": text, "url": text, "status": text, "history": st.lists(samples, max_size=3)}
    return st.fixed_dictionaries(members)


def a_report(host: st.SearchStrategy[Any], geo: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {
            "clientId": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200),
            "hosts": st.lists(host, max_size=3),
        },
        optional={"timestamp": st.just("2026-11-22T10:24:10Z"), "geo": geo},
    )


def with_more(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The objects of `strategy` with other members before, between and after its own."""
    return st.builds(
        lambda ours, others, seed: dict(
            random.Random(seed).sample(merged := [*({**others, **ours}).items()], len(merged))
        ),
        strategy,
        extra,
        st.integers(0, 99),
    )


plain_reports = a_report(
    hosts(plain_samples),
    st.dictionaries(text, text | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.none(), max_size=4),
)
any_reports = with_more(a_report(with_more(hosts(with_more(plain_samples))), st.dictionaries(text, json_values)))


@given(report=any_reports, is_ascii=st.booleans(), indent=st.none() | st.just(1))
@settings(max_examples=200, deadline=None)
@example(report=PLAIN, is_ascii=True, indent=None)
@example(report=PLAIN | {"x": {"y": [1, 1.0, True]}}, is_ascii=False, indent=1)
def test_the_same_value_is_stored(report: dict[str, Any], is_ascii: bool, indent: int | None) -> None:
    sent = json.dumps(report, ensure_ascii=is_ascii, indent=indent).encode()
    line = lines().line(sent, NOW_NS)
    assert line.count(b"\n") == 1
    assert typed(strict(line)["report"]) == typed(stored_as(report))


@given(report=plain_reports, is_ascii=st.booleans())
@settings(max_examples=200, deadline=None)
@example(report=PLAIN, is_ascii=False)
def test_the_fast_way_and_the_slow_way_agree(report: dict[str, Any], is_ascii: bool) -> None:
    sent = json.dumps(report, ensure_ascii=is_ascii).encode()
    fast = reports._encode(reports._decode_plain(sent))
    assert typed(strict(fast)) == typed(strict(reports._encode_slowly(sent, 32)))


@pytest.mark.parametrize("more", ["", ',"x":1'])
@pytest.mark.parametrize(
    ("latency", "stored"),
    [
        ("5", "5.0"),
        ("0", "0.0"),
        ("0.10", "0.1"),
        ("1e15", "1000000000000000.0"),
        ("1e16", "1e16"),
        ("18446744073709551616", "1.8446744073709552e19"),
        ("1" + "0" * 25, "1e25"),
        ("null", "null"),
    ],
)
def test_latency_always_has_its_decimal_point_both_ways(more: str, latency: str, stored: str) -> None:
    line = encode_report(with_sample(f'{{"t":1,"latency":{latency}}}', more), 32)
    assert f'"latency":{stored}}}'.encode() in line


def test_a_long_report_of_numbers_at_the_ends_of_the_range_is_the_same_as_a_short_one() -> None:
    numbers = [
        "1e308",
        "-1.7976931348623157E+308",
        "5e-324",
        "2.2250738585072011e-0308",
        "1e-400",
        "1e22",
        "0.1",
        "1.0",
    ]
    short = json.loads(encode_report(with_member(f"[{','.join(numbers)}]"), 32))["x"]
    long = encode_report(with_member(f"[{','.join(numbers * 5000)}]"), 32)
    assert typed(json.loads(long)["x"]) == typed(short * 5000)
    for number in ("1e309", "-1e999"):
        with pytest.raises(Rejected) as caught:
            encode_report(with_member(f"[{','.join([*numbers * 5000, number])}]"), 32)
        assert caught.value.code == "number_out_of_range"


@pytest.mark.parametrize("more", ["", ',"x":1'])
@pytest.mark.parametrize("latency", ["1e308", "5e-324"])
def test_a_long_report_of_extreme_latencies_is_kept_like_any_other(more: str, latency: str) -> None:
    report = with_sample(",".join([f'{{"t":1,"latency":{latency}}}'] * 4000), more)
    assert encode_report(report, 32).count(b'"latency":%b}' % latency.encode()) == 4000


@pytest.mark.parametrize("more", ["", ',"x":1'])
@pytest.mark.parametrize(
    ("t", "stored"),
    [
        ("1.0", "1"),
        ("1e3", "1000"),
        ("1.7672256E12", "1767225600000"),
        ("-1.0", "-1"),
        ("-0.0", "0"),
        ("-9223372036854775808.0", "-9223372036854775808"),
        ("9223372036854775807", "9223372036854775807"),
    ],
)
def test_a_time_is_an_integer_however_it_is_written(more: str, t: str, stored: str) -> None:
    assert f'"t":{stored}}}'.encode() in encode_report(with_sample(f'{{"t":{t}}}', more), 32)


def test_a_plain_report_takes_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_way(raw: bytes, max_depth: int) -> bytes:
        raise AssertionError("the slow way")

    monkeypatch.setattr(reports, "_encode_slowly", slow_way)
    assert strict(encode_report(json.dumps(PLAIN).encode(), 32)) == PLAIN


@pytest.mark.parametrize("way", [reports._encode_slowly, encode_report])
def test_escaped_names_are_our_members_all_the_same(way: Callable[[bytes, int], bytes]) -> None:
    assert strict(way(rb'{"client\u0049d":"c","h\u006fsts":[]}', 32)) == {"clientId": "c", "hosts": []}


# What is rejected, and where


@pytest.mark.parametrize(
    ("raw", "code", "pointer"),
    [
        (b"", "invalid_json", ""),
        (b" ", "invalid_json", ""),
        (b"{", "invalid_json", ""),
        (b"nul", "invalid_json", ""),
        (MINIMAL + b",", "invalid_json", ""),
        (MINIMAL + MINIMAL, "invalid_json", ""),
        (MINIMAL + b"\0", "invalid_json", ""),
        (b"\xef\xbb\xbf" + MINIMAL, "invalid_json", ""),
        (MINIMAL.decode().encode("utf-16"), "invalid_utf8", ""),
        (MINIMAL.decode().encode("utf-16-le"), "invalid_json", ""),
        (b"{'clientId':'c','hosts':[]}", "invalid_json", ""),
        (b'{"clientId":"c","hosts":[],}', "invalid_json", ""),
        (b'{"clientId":"c","hosts":[]/**/}', "invalid_json", ""),
        (b"null", "invalid_member", ""),
        (b"1", "invalid_member", ""),
        (b'"a"', "invalid_member", ""),
        (b"[]", "invalid_member", ""),
        (b"{}", "missing_member", ""),
        (b'{"clientId":"c"}', "missing_member", ""),
        (b'{"hosts":[]}', "missing_member", ""),
        (b'{"clientid":"c","hosts":[]}', "missing_member", ""),
        (b'{"clientId":"","hosts":[]}', "invalid_member", "/clientId"),
        (b'{"clientId":"%b","hosts":[]}' % (b"c" * 201), "invalid_member", "/clientId"),
        (b'{"clientId":7,"hosts":[]}', "invalid_member", "/clientId"),
        (b'{"clientId":null,"hosts":[]}', "invalid_member", "/clientId"),
        (b'{"clientId":"c","hosts":{}}', "invalid_member", "/hosts"),
        (b'{"clientId":"c","hosts":null}', "invalid_member", "/hosts"),
        (b'{"clientId":"c","hosts":[1]}', "invalid_member", "/hosts/0"),
        (b'{"clientId":"c","hosts":[{}]}', "missing_member", "/hosts/0"),
        (b'{"clientId":"c","hosts":[],"geo":[]}', "invalid_member", "/geo"),
        (b'{"clientId":"c","hosts":[],"geo":null}', "invalid_member", "/geo"),
        (b'{"clientId":"c","hosts":[],"timestamp":null}', "invalid_member", "/timestamp"),
        (b'{"clientId":"c","hosts":[],"timestamp":1795343050}', "invalid_member", "/timestamp"),
        (with_sample("1"), "invalid_member", "/hosts/0/history/0"),
        (with_sample("{}"), "missing_member", "/hosts/0/history/0"),
        (with_sample('{"t":1},{"t":"1"}'), "invalid_member", "/hosts/0/history/1/t"),
        (with_sample('{"t":1.5}'), "invalid_member", "/hosts/0/history/0/t"),
        (with_sample('{"t":1},{"t":-1e-9}'), "invalid_member", "/hosts/0/history/1/t"),
        (with_sample('{"t":9223372036854775808.0}'), "invalid_member", "/hosts/0/history/0/t"),
        (with_sample('{"t":1e300}'), "invalid_member", "/hosts/0/history/0/t"),
        (with_sample('{"t":true}'), "invalid_member", "/hosts/0/history/0/t"),
        (with_sample('{"t":null}'), "invalid_member", "/hosts/0/history/0/t"),
        (with_sample('{"t":9223372036854775808}'), "invalid_member", "/hosts/0/history/0/t"),
        (with_sample('{"t":1,"latency":-0.1}'), "invalid_member", "/hosts/0/history/0/latency"),
        (with_sample('{"t":1,"latency":-1}', ',"x":1'), "invalid_member", "/hosts/0/history/0/latency"),
        (with_sample('{"t":1,"latency":"5"}'), "invalid_member", "/hosts/0/history/0/latency"),
        (with_sample('{"t":1,"latency":true}'), "invalid_member", "/hosts/0/history/0/latency"),
        (with_sample('{"t":1,"error":5}'), "invalid_member", "/hosts/0/history/0/error"),
        (with_sample('{"t":1,"latency":1e400}'), "number_out_of_range", ""),
        (with_member("1e999"), "number_out_of_range", ""),
        (with_member("-1e999"), "number_out_of_range", ""),
        (with_member('{"a":[18446744073709551616]}'), "number_out_of_range", "/x/a/0"),
        (with_member("-9223372036854775809"), "number_out_of_range", "/x"),
        (with_member("1" * 5000), "number_out_of_range", ""),
        (with_member('{"a/b":{"c~d":18446744073709551616}}'), "number_out_of_range", "/x/a~1b/c~0d"),
        (with_member("NaN"), "invalid_json", ""),
        (with_member("Infinity"), "invalid_json", ""),
        (with_member("-Infinity"), "invalid_json", ""),
        (with_member("01"), "invalid_json", ""),
        (with_member("+1"), "invalid_json", ""),
        (with_member("0x1"), "invalid_json", ""),
        (with_member(".5"), "invalid_json", ""),
        (with_member(r'"\ud800"'), "invalid_json", ""),
        (with_member(r'"\udc00\ud800"'), "invalid_json", ""),
        (with_member(r'{"\udfff":1}'), "invalid_json", ""),
        (with_member(r'"\x41"'), "invalid_json", ""),
        *((with_member(f'"{chr(code)}"'), "invalid_json", "") for code in range(32)),
    ],
)
def test_what_is_wrong_is_said_with_its_place(raw: bytes, code: str, pointer: str) -> None:
    error = rejected(raw)
    assert (error.code, error.pointer) == (code, pointer)
    assert error.detail.endswith(".")


@pytest.mark.parametrize("member", ["name", "url", "status", "history"])
@pytest.mark.parametrize("is_missing", [True, False])
def test_each_member_of_a_host_is_required(member: str, is_missing: bool) -> None:
    host: dict[str, Any] = {"name": "n", "url": "u", "status": "s", "history": []}
    if is_missing:
        del host[member]
    else:
        host[member] = 5
    error = rejected(json.dumps({"clientId": "c", "hosts": [host]}).encode())
    assert (error.code, error.pointer) == (
        ("missing_member", "/hosts/0") if is_missing else ("invalid_member", f"/hosts/0/{member}")
    )
    assert not is_missing or member in error.detail


@pytest.mark.parametrize(
    "timestamp",
    [
        "2026-11-22T10:24:10Z",
        "2026-11-22t10:24:10z",
        "2026-11-22 10:24:10Z",
        "2026-11-22T10:24:10.1Z",
        "2026-11-22T10:24:10.123456789012Z",
        "2026-11-22T10:24:10+05:30",
        "2026-11-22T10:24:10-23:59",
        "2016-12-31T23:59:60Z",
    ],
)
def test_any_rfc_3339_timestamp_is_taken_and_kept(timestamp: str) -> None:
    raw = json.dumps({"clientId": "c", "hosts": [], "timestamp": timestamp}).encode()
    assert strict(encode_report(raw, 32))["timestamp"] == timestamp


@pytest.mark.parametrize(
    "timestamp",
    [
        "",
        "now",
        "2026-11-22",
        "2026-11-22T10:24:10",
        "2026-11-22T10:24Z",
        "2026-13-22T10:24:10Z",
        "2026-11-32T10:24:10Z",
        "2026-11-22T24:00:00Z",
        "2026-11-22T10:60:10Z",
        "2026-11-22T10:24:61Z",
        "2026-11-22T10:24:10+5",
        "2026-11-22T10:24:10.Z",
        "2026-11-22T10:24:10Z\n",
        " 2026-11-22T10:24:10Z",
        "٢٠٢٦-11-22T10:24:10Z",
    ],
)
def test_what_is_no_timestamp_is_rejected(timestamp: str) -> None:
    error = rejected(json.dumps({"clientId": "c", "hosts": [], "timestamp": timestamp}).encode())
    assert (error.code, error.pointer) == ("invalid_member", "/timestamp")
    assert "RFC 3339" in error.detail


def test_client_id_is_counted_in_characters() -> None:
    assert encode_report(json.dumps({"clientId": "☃" * 200, "hosts": []}).encode(), 32)


@pytest.mark.parametrize(
    "bad",
    [
        b"\xff",
        b"\x80",
        b"\xc3",
        b"\xc0\x80",  # overlong
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
        b"\xed\xa0\x80",  # a surrogate
        b"\xed\xa0\xbd\xed\xb8\x80",  # CESU-8
        b"\xf4\x90\x80\x80",  # beyond U+10FFFF
        b"\xe2\x98",  # truncated
    ],
)
@pytest.mark.parametrize(
    "place",
    [
        b'{"clientId":"%b","hosts":[]}',
        b'{"clientId":"c","hosts":[],"%b":1}',
        b'{"clientId":"c","hosts":[],"x":"%b"}',
        b'{"clientId":"c","hosts":[],"x":{"y":["%b"]}}',
        b'{"clientId":"c","hosts":[],"geo":{"%b":1}}',
        b'{"clientId":"c","hosts":[],"geo":{"a":"%b"}}',
        b'{"clientId":"c","hosts":[{"name":"\\n%b","url":"u","status":"s","history":[]}]}',
        b'{"clientId":"c","hosts":[{"name":"n","url":"u","status":"s","history":[],"%b":1}]}',
        b'{"clientId":"c","hosts":[{"name":"n","url":"u","status":"s","history":[{"t":1,"error":"%b"}]}]}',
        b'{"clientId":"c","hosts":[]}%b',
        b'%b{"clientId":"c","hosts":[]}',
    ],
)
def test_invalid_utf8_is_rejected_wherever_it_stands(place: bytes, bad: bytes) -> None:
    raw = place % bad
    assert rejected(raw).code == "invalid_utf8"
    with pytest.raises(Rejected, match="UTF-8"):
        encode_report(msgspec.Raw(raw), 32)


def test_of_duplicate_members_the_last_is_stored_once() -> None:
    raw = (
        b'{"clientId":"a","x":1,"hosts":[{"name":"n","name":"m","url":"u","status":"s","y":1,"y":[2],"history":[]}],'
        b'"geo":{"k":1,"k":2},"x":{"z":1,"z":2},"clientId":"b"}'
    )
    assert strict(encode_report(raw, 32)) == {
        "clientId": "b",
        "x": {"z": 2},
        "hosts": [{"name": "m", "url": "u", "status": "s", "y": [2], "history": []}],
        "geo": {"k": 2},
    }
    assert strict(encode_report(b'{"clientId":"a","hosts":[],"geo":{"k":1,"k":2},"clientId":"b"}', 32)) == {
        "clientId": "b",
        "hosts": [],
        "geo": {"k": 2},
    }


@pytest.mark.parametrize(("value", "levels"), [("[]", 1), ("{}", 1), ("[[1]]", 2), ('{"a":{"a":1}}', 2), ("[{}]", 2)])
@pytest.mark.parametrize("max_depth", [8, 32])
def test_nesting_is_taken_down_to_the_limit(value: str, levels: int, max_depth: int) -> None:
    def nested(times: int) -> bytes:
        return with_member("[" * times + value + "]" * times)

    deepest = nested(max_depth - 1 - levels)
    assert depth(json.loads(deepest)) == max_depth
    assert depth(strict(encode_report(deepest, max_depth))) == max_depth
    error = rejected(nested(max_depth - levels), max_depth)
    assert error.code == "too_deep"
    assert error.pointer.startswith("/x/0")


@pytest.mark.parametrize("levels", [33, 200, 1_000, 100_000])
@pytest.mark.parametrize("start", ["[", '{"a":'])
def test_any_nesting_beyond_it_is_rejected(levels: int, start: str) -> None:
    end = "]" if start == "[" else "}"
    for raw in (
        with_member(start * levels + "1" + end * levels),
        b'{"clientId":"c","hosts":[],"geo":' + b'{"a":' * levels + b"1" + b"}" * levels + b"}",
    ):
        assert rejected(raw).code == "too_deep"
    assert rejected(start.encode() * levels).code in ("too_deep", "invalid_json")


def test_integers_of_64_bits_are_kept_to_the_last_digit() -> None:
    raw = with_member("[-9223372036854775808,9223372036854775807,18446744073709551615,0]")
    assert strict(encode_report(raw, 32))["x"] == [-(2**63), 2**63 - 1, 2**64 - 1, 0]


def test_odd_but_valid_json_is_kept() -> None:
    raw = with_member(r'["\u0000","\u007f","\u2028","\/","\ud83d\ude00",1e-400,-0.0,1E+2,"","\"\\\b\f\n\r\t"]')
    assert strict(encode_report(raw, 32))["x"] == [
        "\0", "\x7f", "\u2028", "/", "😀", 0.0, -0.0, 100.0, "", '"\\\b\f\n\r\t',
    ]  # fmt: skip
    assert encode_report(b" \t\r\n" + MINIMAL.replace(b":", b" \r\n: ") + b"\r\n\t ", 32) == MINIMAL


# Whatever comes in

FRAGMENTS = [
    b'"', b"\\", b"\\u", b"\\ud800", b"\\u0000", b"\n", b"\r", b"\0", b"\xff", b"\xc3\xa9", b"\xed\xa0\x80",
    b"\xef\xbb\xbf", b"{", b"}", b"[", b"]", b":", b",", b"1e999", b"-", b"0", b"9" * 25, b"1e15", b"NaN", b"null",
    b"true", b" ", b'"x":1,', b'"clientId":', b"\x7f", b"\xe2\x80\xa8", b"[" * 40, b"]" * 40, b".5", b"E5",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    raw = bytearray(
        draw(st.sampled_from([MINIMAL, json.dumps(PLAIN).encode(), with_member('{"a":[1,"é",{"b":2.5}]}')]))
    )
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.integers(0, 3)))
        raw[start:end] = draw(st.sampled_from(FRAGMENTS) | st.binary(max_size=3))
    return bytes(raw)


@given(raw=mutated() | st.binary(max_size=60))
@settings(max_examples=1000, deadline=None)
@example(raw=b'{"clientId":"c","hosts":[],"geo":{"a":1e999}}')
@example(raw=b'{"clientId":"c","hosts":[],"geo":{"\xff":1}}')
def test_whatever_is_taken_is_one_line_of_strict_json(raw: bytes) -> None:
    try:
        line = lines().line(raw, NOW_NS)
    except Rejected:
        return
    assert line.endswith(b"}\n")
    assert not re.search(rb"[\x00-\x1f]", line[:-1])
    report = strict(line)["report"]
    assert depth(report) <= 32
    assert report == stored_as(json.loads(raw))  # and Python's own parser took it too


def test_every_broken_prefix_is_rejected() -> None:
    raw = json.dumps(PLAIN | {"x": ["é", 1.5e3]}, ensure_ascii=False).encode()
    for end in range(len(raw)):
        rejected(raw[:end])


# How much a body can grow

COSTLY = ["1e15", "9E15", "1e-4", '"\\u0001"', '"\x7f"', "1e5", "0", '"\\b"', "18446744073709551615", "{}", '{"":1e15}']


@pytest.mark.parametrize("value", COSTLY)
def test_a_report_grows_less_than_fourfold(value: str) -> None:
    sent = with_member("[" + ",".join([value] * 5000) + "]")
    assert len(encode_report(sent, 32)) < 4 * len(sent)


def test_no_short_number_grows_fourfold() -> None:
    # No number is stored in more than 24 characters, so one of six or more cannot, with the comma that it needs.
    texts = ("".join(letters) for length in range(1, 6) for letters in itertools.product("0159.e-", repeat=length))
    sent = [text for text in texts if re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e-?[0-9]+)?", text)]
    sent = [text for text in sent if math.isfinite(float(text))]
    stored = encode_report(with_member(f"[{','.join(sent)}]"), 32).decode().partition('"x":[')[2][:-2].split(",")
    ratios = {text: (len(other) + 1) / (len(text) + 1) for text, other in zip(sent, stored, strict=True)}
    assert max(ratios.values()) == ratios["1e15"] == 19 / 5
    for extreme in ("-1.7976931348623157e308", "-2.2250738585072014e-308", "-4.9e-324", "-9007199254740993.0"):
        stored = encode_report(with_member(extreme), 32).decode().partition('"x":')[2][:-1].split(",")
        assert len(stored[0]) <= 24


def test_a_latency_grows_less_than_fourfold() -> None:
    sent = with_sample(",".join(['{"t":0,"latency":1e15}'] * 1000))
    assert len(encode_report(sent, 32)) < 4 * len(sent)
