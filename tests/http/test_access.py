from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import falcon.testing
import pytest

from netwatch.http.access import truncated
from netwatch.settings import load
from tests.http.door import PATH, REPORT, Door, Exchange, code_of

BROWSER_PATH = "/api/v1/browser-reports"
BROWSER_REPORT = b'[{"type":"crash","body":{}}]'
OWN = "http://falconframework.org"  # the test client's Host
OTHER = "https://www.example.org"
TOKENS = {"agents": "agents-token-0123456789", "pages": "pages-token+/=~._-0123456789"}
CORS = ("access-control-allow-origin", "access-control-allow-credentials")


def opened(*origins: str, **settings: Any) -> Door:
    return Door(allowed_origins=origins, **settings)


def post_both(door: Door, headers: dict[str, str], query: str = "") -> list[falcon.testing.Result]:
    """Post a report, and a browser's report."""
    return [
        door.post(REPORT, headers=headers, query_string=query),
        door.request(
            "POST",
            BROWSER_PATH,
            body=BROWSER_REPORT,
            headers={**headers, "content-type": "application/reports+json"},
            query_string=query,
        ),
    ]


# Origins


def test_without_an_origin_anybody_may_post() -> None:
    for result in post_both(Door(), {}):
        assert result.status_code in (200, 204)
        assert "vary" not in result.headers
        assert not any(name in result.headers for name in CORS)


@pytest.mark.parametrize("origin", [OWN, "https://falconframework.org"])
def test_the_own_host_may_post(origin: str) -> None:
    for result in post_both(Door(), {"origin": origin}):
        assert result.status_code in (200, 204)
        assert result.headers["vary"] == "Origin"


@pytest.mark.parametrize("origin", [OTHER, "null"])
@pytest.mark.parametrize("allowed", [(OTHER, "null"), ("*",), ("https://another.example", "*")])
def test_an_origin_on_the_list_may_post_and_is_echoed_with_credentials(origin: str, allowed: tuple[str, ...]) -> None:
    door = opened(*allowed)
    for result in post_both(door, {"origin": origin}):
        assert result.status_code in (200, 204)
        assert [result.headers[name] for name in CORS] == [origin, "true"]
        assert result.headers["vary"] == "Origin"
    assert len(door.link.stored) == 2


@pytest.mark.parametrize(
    "origin",
    [
        OTHER,
        "null",
        "http://falconframework.org:8080",
        "http://falconframework.org.evil.example",
        "http://evil.example/falconframework.org",
        "http://evil.example?://falconframework.org",
        "http://www.falconframework.org",
        "falconframework.org",
        "http://",
        "*",
        "https://www.example.com.evil.example",
    ],
)
@pytest.mark.parametrize("allowed", [(), ("https://www.example.com",)])
def test_another_origin_is_403_and_stores_nothing(origin: str, allowed: tuple[str, ...]) -> None:
    door = opened(*allowed)
    for result in post_both(door, {"origin": origin}):
        assert (result.status_code, code_of(result)) == (403, "origin_not_allowed")
        assert not any(name in result.headers for name in CORS)
        assert result.headers["vary"] == "Origin"
        assert origin.encode() not in result.content or origin in ("*", "null")
    assert door.link.stored == []


@pytest.mark.parametrize("origin", ["http://\xe9.example", "http://a b", "\xe9"])
def test_what_is_no_origin_is_not_echoed_even_where_all_are_allowed(origin: str) -> None:
    for result in post_both(opened("*"), {"origin": origin}):
        assert (result.status_code, code_of(result)) == (403, "origin_not_allowed")
        assert not any(name in result.headers for name in CORS)


@pytest.mark.parametrize("host", [None, ""])
def test_the_origin_null_is_not_the_own_host_of_a_request_without_one(host: str | None) -> None:
    exchange = Exchange(Door(), [REPORT], size=len(REPORT), host=host, headers={"origin": "null"})
    assert asyncio.run(exchange.run())["type"] == "urn:netwatch:error:origin_not_allowed"
    assert exchange.status == 403


def test_the_page_of_an_origin_on_the_list_reads_its_refusals_too() -> None:
    door = opened(OTHER, tokens=TOKENS)
    for result in (*post_both(door, {"origin": OTHER}), *post_both(opened(OTHER), {"origin": OTHER, "x": "y"})):
        assert result.headers["access-control-allow-origin"] == OTHER
    bad = opened(OTHER).post(b"[", headers={"origin": OTHER})
    assert (bad.status_code, bad.headers["access-control-allow-origin"]) == (400, OTHER)


# Preflights


@pytest.mark.parametrize("path", [PATH, BROWSER_PATH])
def test_a_preflight_is_204_with_all_that_a_browser_asks_for(path: str) -> None:
    door = opened(OTHER, tokens=TOKENS)
    asked = "authorization,content-encoding,content-type,idempotency-key"
    headers = {
        "origin": OTHER,
        "access-control-request-method": "POST",
        "access-control-request-headers": asked,
    }
    result = door.request("OPTIONS", path, headers=headers)
    assert (result.status_code, result.content) == (204, b"")
    assert [result.headers[name] for name in CORS] == [OTHER, "true"]
    assert result.headers["access-control-allow-methods"] == "POST"
    allowed = result.headers["access-control-allow-headers"].split(", ")
    assert set(asked.split(",")) == set(allowed)
    assert int(result.headers["access-control-max-age"]) > 0
    assert result.headers["vary"] == "Origin"
    assert result.headers["allow"] == "OPTIONS, POST"


@pytest.mark.parametrize("path", [PATH, BROWSER_PATH])
def test_a_preflight_of_another_origin_is_403_and_allows_nothing(path: str) -> None:
    result = Door().request("OPTIONS", path, headers={"origin": OTHER, "access-control-request-method": "POST"})
    assert (result.status_code, code_of(result)) == (403, "origin_not_allowed")
    assert not any(name.startswith("access-control") for name in result.headers)


@pytest.mark.parametrize("path", [PATH, BROWSER_PATH])
def test_options_without_an_origin_says_what_is_allowed(path: str) -> None:
    result = Door().request("OPTIONS", path)
    assert (result.status_code, result.headers["allow"]) == (204, "OPTIONS, POST")
    assert not any(name.startswith("access-control") for name in result.headers)


# Tokens


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_bearer_token_is_taken(name: str, scheme: str) -> None:
    door = Door(tokens=TOKENS)
    for result in post_both(door, {"authorization": f"{scheme} {TOKENS[name]}"}):
        assert result.status_code in (200, 204)
    assert len(door.link.stored) == 2


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("query", ["token={}", "a=b&token={}", "token={}&a=b"])
def test_a_token_is_taken_from_the_query(name: str, query: str) -> None:
    door = Door(tokens=TOKENS)
    encoded = "".join(f"%{ord(char):02X}" for char in TOKENS[name])
    for token in (TOKENS[name], encoded):
        for result in post_both(door, {}, query.format(token)):
            assert result.status_code in (200, 204)


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({}, ""),
        ({}, "token="),
        ({}, "token"),
        ({}, "Token=agents-token-0123456789"),
        ({"authorization": ""}, ""),
        ({"authorization": "Bearer"}, ""),
        ({"authorization": "Bearer "}, ""),
        ({"authorization": "Basic YWdlbnRzLXRva2VuLTAxMjM0NTY3ODk="}, ""),
        ({"authorization": "Basic YWdlbnRzOg=="}, ""),
        ({"authorization": "Basic"}, ""),
        ({"authorization": "Basic ="}, ""),
        ({"authorization": "Basic YWdlbnRzOmFnZW50cy10b2tlbi0wMTIzNDU2Nzg5 YQ=="}, ""),
        ({"authorization": "agents-token-0123456789"}, ""),
        ({"x-token": "agents-token-0123456789"}, ""),
    ],
)
def test_without_a_token_it_is_401_with_a_challenge(headers: dict[str, str], query: str) -> None:
    door = Door(tokens=TOKENS)
    for result in post_both(door, headers, query):
        assert (result.status_code, code_of(result)) == (401, "token_missing")
        assert result.headers["www-authenticate"] == 'Bearer realm="netwatch"'
    assert door.link.stored == []


@pytest.mark.parametrize(
    "token",
    [
        "agents-token-012345678",
        "agents-token-01234567890",
        "Agents-token-0123456789",
        "agents",
        "agents:agents-token-0123456789",
        "agents-token-0123456789 agents-token-0123456789",
        "agents-token-0123456789,pages-token",
        "\xff",
        "*",
    ],
)
def test_a_token_that_is_not_known_is_401_and_not_repeated(token: str, capfd: pytest.CaptureFixture[str]) -> None:
    door = Door(tokens=TOKENS)
    encoded = "".join(f"%{byte:02X}" for byte in token.encode("latin-1"))
    results = post_both(door, {}, f"token={encoded}")
    if token.isascii():
        results += post_both(door, {"authorization": f"Bearer {token}"})
    for result in results:
        assert (result.status_code, code_of(result)) == (401, "token_unknown")
        assert result.headers["www-authenticate"] == 'Bearer realm="netwatch"'
        assert b"agents" not in result.content
    assert door.link.stored == []
    said = capfd.readouterr()
    assert said.out == ""
    assert token not in said.err


def basic(user: str, password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("user", ["agents", "another", "", "ü"])
def test_a_token_is_taken_as_a_password(name: str, user: str) -> None:
    door = Door(tokens=TOKENS)
    for result in post_both(door, basic(user, TOKENS[name])):
        assert result.status_code in (200, 204)
    lower = {"authorization": basic(user, TOKENS[name])["authorization"].replace("Basic", "basic")}
    assert door.post(REPORT, headers=lower).status_code == 200
    assert door.post(REPORT, headers=basic(user, "unknown"), query_string=f"token={TOKENS[name]}").status_code == 200


@pytest.mark.parametrize(
    "password", ["unknown", "agents", f"{TOKENS['agents']}x", f"x:{TOKENS['agents']}", "\xff", "😀"]
)
def test_a_password_that_is_no_token_is_401_and_asks_for_no_password(password: str) -> None:
    """A challenge for Basic would have browsers ask their users."""
    door = Door(tokens=TOKENS)
    for result in post_both(door, basic("agents", password)):
        assert (result.status_code, code_of(result)) == (401, "token_unknown")
        assert result.headers["www-authenticate"] == 'Bearer realm="netwatch"'


def test_the_header_decides_where_there_are_both() -> None:
    door = Door(tokens=TOKENS)
    unknown = {"authorization": "Bearer unknown"}
    assert door.post(REPORT, headers=unknown, query_string=f"token={TOKENS['agents']}").status_code == 401
    known = {"authorization": f"Bearer {TOKENS['agents']}"}
    assert door.post(REPORT, headers=known, query_string="token=unknown").status_code == 200


def test_without_tokens_everybody_may_post_whatever_they_give() -> None:
    assert Door().post(REPORT, headers={"authorization": "Bearer x"}, query_string="token=y").status_code == 200


def test_a_fault_logs_no_token(capfd: pytest.CaptureFixture[str]) -> None:
    door = Door(tokens=TOKENS)
    door.link.refusal = RuntimeError("it broke")
    for headers, query in (({"authorization": f"Bearer {TOKENS['agents']}"}, ""), ({}, f"token={TOKENS['agents']}")):
        assert [result.status_code for result in post_both(door, headers, query)] == [500, 500]
    logged = capfd.readouterr()
    assert logged.err.count("request_failed") == 4
    assert TOKENS["agents"] not in logged.err + logged.out


def test_the_settings_do_not_show_the_tokens() -> None:
    assert TOKENS["agents"] not in repr(Door(tokens=TOKENS).settings)


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_needs_no_token(path: str) -> None:
    assert Door(tokens=TOKENS).request("GET", path).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/version", "/openapi.json", "/readyz?verbose"])
def test_details_need_a_token_once_there_are_any(path: str) -> None:
    path, _, query = path.partition("?")
    given = {"headers": {"authorization": f"Bearer {TOKENS['agents']}"}}
    door = Door(tokens=TOKENS)
    refused = door.request("GET", path, query_string=query)
    assert (refused.status_code, code_of(refused)) == (401, "token_missing")
    assert door.request("GET", path, query_string=query, **given).status_code == 200
    assert Door().request("GET", path, query_string=query).status_code == 200


# The client's address


def address_of(headers: dict[str, str], peer: str = "10.0.0.1", *, detail: str = "full", proxies: str = "") -> Any:
    """What is stored of the address of a request from ``peer``."""
    door = Door(address=detail, trusted_proxies=load({"trusted_proxies": proxies}, {}, None).trusted_proxies)
    exchange = Exchange(door, [REPORT], size=len(REPORT), client=peer, headers=headers)
    asyncio.run(exchange.run())
    assert exchange.status == 200
    return json.loads(door.link.stored[0]).get("address")


@pytest.mark.parametrize(
    ("detail", "peer", "stored"),
    [
        ("none", "192.0.2.77", None),
        ("full", "192.0.2.77", "192.0.2.77"),
        ("truncated", "192.0.2.77", "192.0.2.0"),
        ("full", "2001:db8:1:2::3", "2001:db8:1:2::3"),
        ("truncated", "2001:db8:1:2::3", "2001:db8:1::"),
        ("full", "::ffff:192.0.2.77", "192.0.2.77"),
        ("truncated", "::ffff:192.0.2.77", "192.0.2.0"),
    ],
)
def test_as_much_of_the_address_is_stored_as_the_operator_asks_for(detail: str, peer: str, stored: str | None) -> None:
    assert address_of({}, peer, detail=detail) == stored


@pytest.mark.parametrize(
    ("address", "short"),
    [
        ("255.255.255.255", "255.255.255.0"),
        ("::1", "::"),
        ("2001:db8:ffff:ffff:ffff::1", "2001:db8:ffff::"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
    ],
)
def test_an_address_is_truncated_to_its_network(address: str, short: str) -> None:
    assert truncated(address) == short


FORWARDED = [
    ({"x-forwarded-for": "192.0.2.7"}, "192.0.2.7"),
    ({"x-forwarded-for": "198.51.100.1, 192.0.2.7"}, "192.0.2.7"),
    ({"x-forwarded-for": "198.51.100.1, 192.0.2.7 ,10.0.0.9"}, "192.0.2.7"),
    ({"x-forwarded-for": "10.0.0.8, 10.0.0.9"}, "10.0.0.8"),
    ({"x-forwarded-for": "192.0.2.7:1234"}, "192.0.2.7"),
    ({"x-forwarded-for": "[2001:db8::1]:1234"}, "2001:db8::1"),
    ({"x-forwarded-for": "2001:db8::1"}, "2001:db8::1"),
    ({"x-forwarded-for": "192.0.2.7, unknown"}, "10.0.0.1"),
    ({"x-forwarded-for": "192.0.2.7, unknown, 10.0.0.9"}, "10.0.0.9"),
    ({"x-forwarded-for": ""}, "10.0.0.1"),
    ({"x-forwarded-for": "<script>"}, "10.0.0.1"),
    ({"forwarded": "for=192.0.2.7"}, "192.0.2.7"),
    ({"forwarded": 'for="[2001:db8::1]:4711";proto=https, for=10.0.0.9'}, "2001:db8::1"),
    ({"forwarded": "for=198.51.100.1, For=192.0.2.7;by=10.0.0.1"}, "192.0.2.7"),
    ({"forwarded": "for=_hidden"}, "10.0.0.1"),
    ({"forwarded": "by=10.0.0.1"}, "10.0.0.1"),
    ({"forwarded": "for=192.0.2.7", "x-forwarded-for": "198.51.100.1"}, "192.0.2.7"),
]


@pytest.mark.parametrize(("headers", "address"), FORWARDED)
@pytest.mark.parametrize("peer", ["10.0.0.1", "::ffff:10.0.0.1"])
def test_a_trusted_proxy_says_whom_it_forwards_the_nearest_first(
    headers: dict[str, str], address: str, peer: str
) -> None:
    assert address_of(headers, peer, proxies="10.0.0.0/8") == address


@pytest.mark.parametrize(("headers", "address"), FORWARDED)
@pytest.mark.parametrize("proxies", ["", "192.0.2.0/24", "10.0.0.2", "::/0"])
def test_anybody_else_says_nothing_of_addresses(headers: dict[str, str], address: str, proxies: str) -> None:
    assert address_of(headers, proxies=proxies) == "10.0.0.1"
