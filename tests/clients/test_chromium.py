"""Debian's Chromium posting from pages of another origin: fetch, beacons while a page unloads, and its own reports.

Network Error Logging and the Reporting API need HTTPS with a certificate that Chromium trusts: with
`--ignore-certificate-errors` it drops the headers that ask for them, so it is told the fingerprint of ours instead.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.clients.certificate import Certificate
from tests.clients.collector import Collector, Line
from tests.clients.conftest import Collect, MakeSite
from tests.clients.site import Page, Site
from tests.system.server import report

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP *.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--short-reporting-delay",
)
TOKEN = "pages-0123456789abcdef"

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[Any]:
    """A browser with a profile of its own; the reports of private windows are never sent."""
    flags = [*FLAGS, f"--ignore-certificate-errors-spki-list={certificate.fingerprint}"]
    with playwright.sync_playwright() as drive:
        browser = drive.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=CHROMIUM, args=flags, timeout=20_000
        )
        browser.set_default_timeout(10_000)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(make_site: MakeSite) -> Site:
    return make_site(name="127.0.0.1")


@pytest.fixture(scope="module")
def foreign_site(make_site: MakeSite) -> Site:
    """Its pages may not post."""
    return make_site(name="127.0.0.1")


@pytest.fixture(scope="module")
def collector(collect: Collect, site: Site) -> Collector:
    return collect("--allowed-origins", site.origin)


@pytest.fixture(scope="module")
def locked_collector(collect: Collect, site: Site) -> Collector:
    """It wants a token."""
    return collect("--allowed-origins", site.origin, "--tokens", f"pages:{TOKEN}")


@pytest.fixture
def page(chromium: Any, site: Site) -> Iterator[Any]:
    page = chromium.new_page()
    page.goto(f"{site.origin}/")
    yield page
    page.close()


def fetch(page: Any, url: str, body: str, **options: Any) -> Any:
    """What a page's `fetch` came to: [status, body], or the name of the error that it threw."""
    return page.evaluate(
        """async ([url, options]) => {
            try {
                const answer = await fetch(url, {method: "POST", ...options});
                return [answer.status, await answer.json()];
            } catch (error) {
                return error.name;
            }
        }""",
        [url, {"body": body, **options}],
    )


def preflights(page: Any) -> list[str]:
    """The addresses that the page's preflights go to from now on."""
    urls: list[str] = []
    session = page.context.new_cdp_session(page)
    session.on(
        "Network.requestWillBeSent",
        lambda event: urls.append(event["request"]["url"]) if event["request"]["method"] == "OPTIONS" else None,
    )
    session.send("Network.enable")
    return urls


def unload(page: Any, script: str, *arguments: Any) -> None:
    """Have the page run ``script`` while it goes away, and leave it."""
    page.evaluate("([script, given]) => addEventListener('pagehide', () => eval(script))", [script, arguments])
    page.goto("about:blank")


def test_fetch_of_text_needs_no_preflight_and_reads_the_answer(page: Any, collector: Collector) -> None:
    asked = preflights(page)
    status, answer = fetch(page, collector.reports_url, json.dumps(report("fetch-text")))
    assert (status, answer["accepted"], answer["durability"]) == (200, 1, "synced")
    assert asked == []
    assert collector.wait_for_client("fetch-text")[0]["id"] == answer["id"]


def test_fetch_of_json_with_credentials_and_our_headers_passes_its_preflight(page: Any, collector: Collector) -> None:
    asked = preflights(page)
    headers = {"Content-Type": "application/json", "Idempotency-Key": "a-key", "Authorization": "Bearer any"}
    url = f"{collector.reports_url}?preflight"
    answers = [
        fetch(page, url, json.dumps(report("fetch-json")), headers=headers, credentials="include") for _ in range(2)
    ]
    assert [status for status, _ in answers] == [200, 200]
    assert [answer["accepted"] for _, answer in answers] == [1, 0]
    assert asked == [url]  # once: it is remembered
    collector.wait_for_client("fetch-json")


def test_fetch_of_compressed_json_passes_its_preflight(page: Any, collector: Collector) -> None:
    status = page.evaluate(
        """async ([url, text]) => {
            const packed = new Blob([text]).stream().pipeThrough(new CompressionStream("gzip"));
            const body = await new Response(packed).blob();
            const headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"};
            return (await fetch(url, {method: "POST", body, headers})).status;
        }""",
        [collector.reports_url, json.dumps(report("fetch-gzip"))],
    )
    assert status == 200
    collector.wait_for_client("fetch-gzip")


def test_a_page_reads_why_it_was_refused(page: Any, collector: Collector) -> None:
    status, problem = fetch(page, collector.reports_url, '{"clientId": 1}')
    assert status == 400
    assert problem["type"] == "urn:netwatch:error:invalid_member"


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("beacon-text", "navigator.sendBeacon(given[0], given[1])"),
        ("beacon-blob", "navigator.sendBeacon(given[0], new Blob([given[1]], {type: 'application/json'}))"),
        ("keepalive-text", "fetch(given[0], {method: 'POST', body: given[1], keepalive: true})"),
        (
            "keepalive-json",
            "fetch(given[0], {method: 'POST', body: given[1], keepalive: true, headers: JSON_TYPE})".replace(
                "JSON_TYPE", "{'Content-Type': 'application/json'}"
            ),
        ),
    ],
    ids=lambda value: value if "(" not in value else "",
)
def test_what_is_sent_while_the_page_unloads_is_stored(page: Any, collector: Collector, name: str, script: str) -> None:
    unload(page, script, collector.reports_url, json.dumps(report(name)))
    collector.wait_for_client(name)


def test_a_beacon_of_a_closed_window_is_stored(page: Any, collector: Collector) -> None:
    body = json.dumps(report("closed-window", padding_bytes=60_000))  # 64 KiB is the most that Chromium takes
    page.evaluate(
        "([url, body]) => addEventListener('pagehide', () => navigator.sendBeacon(url, body))",
        [collector.reports_url, body],
    )
    page.close(run_before_unload=True)
    collector.wait_for_client("closed-window")


def test_a_page_of_another_origin_stores_nothing_and_reads_nothing(
    chromium: Any, foreign_site: Site, collector: Collector
) -> None:
    page = chromium.new_page()
    page.goto(f"{foreign_site.origin}/")
    url = collector.reports_url
    assert fetch(page, url, json.dumps(report("foreign-text"))) == "TypeError"
    assert fetch(page, url, json.dumps(report("foreign-opaque")), mode="no-cors") == "SyntaxError"  # an empty answer
    headers = {"Content-Type": "application/json"}
    assert fetch(page, url, json.dumps(report("foreign-json")), headers=headers) == "TypeError"
    unload(page, "navigator.sendBeacon(given[0], given[1])", url, json.dumps(report("foreign-beacon")))
    page.close()
    stored = collector.clients_after_marker()
    assert not [client for client in stored if client.startswith("foreign-")]


def test_a_sandboxed_frame_has_no_origin_that_may_post(page: Any, collector: Collector) -> None:
    said = page.evaluate(
        """([url, body]) => new Promise((resolve) => {
            addEventListener("message", (event) => resolve([event.origin, event.data]));
            const frame = document.createElement("iframe");
            frame.sandbox = "allow-scripts";
            frame.srcdoc = `<script>
                fetch(${JSON.stringify(url)}, {method: "POST", body: ${JSON.stringify(body)}})
                    .then((answer) => String(answer.status), (error) => error.name)
                    .then((text) => parent.postMessage(text, "*"));
            </` + "script>";
            document.body.append(frame);
        })""",
        [collector.reports_url, json.dumps(report("sandboxed"))],
    )
    assert said == ["null", "TypeError"]
    assert "sandboxed" not in collector.clients_after_marker()


def test_a_beacon_gives_its_token_in_the_query(page: Any, locked_collector: Collector) -> None:
    url = locked_collector.reports_url
    for name, query in (("without", ""), ("wrong", "?token=pages-fedcba9876543210"), ("right", f"?token={TOKEN}")):
        page.evaluate("([url, body]) => navigator.sendBeacon(url, body)", [url + query, json.dumps(report(name))])
    locked_collector.wait_for_client("right")
    assert locked_collector.clients_after_marker({"Authorization": f"Bearer {TOKEN}"}) == ["right"]
    assert TOKEN not in locked_collector.log_text()


def test_fetch_gives_its_token_in_the_header(page: Any, locked_collector: Collector) -> None:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    status, _ = fetch(page, locked_collector.reports_url, json.dumps(report("header")), headers=headers)
    assert status == 200
    status, problem = fetch(page, locked_collector.reports_url, json.dumps(report("none")))
    assert (status, problem["type"]) == (401, "urn:netwatch:error:token_missing")
    locked_collector.wait_for_client("header")


class Watched:
    """A site over HTTPS whose browsers report to a collector of another origin."""

    def __init__(self, site: Site, collector: Collector) -> None:
        self.site = site
        self.collector = collector
        self.endpoint = f"https://collector.example:{collector.port}/api/v1/browser-reports"

    def wait_for_kind(self, kind: str, path: str, fits: Callable[[Line], bool] = lambda _line: True) -> Line:
        """The first line of this kind about the page at ``path``, with what every such line has."""
        url = self.site.origin + path

        def is_it(line: Line) -> bool:
            sent = line["report"]
            document = sent.get("url") or sent.get("csp-report", {}).get("document-uri")
            return bool(line["kind"] == kind and document == url and fits(line))

        line = self.collector.wait_for(is_it)[0]
        received, generated = (datetime.fromisoformat(line[name]) for name in ("receivedAt", "generatedAt"))
        age_ms = (received - generated).total_seconds() * 1000
        assert age_ms == pytest.approx(line["report"].get("age", 0), abs=0.001)
        assert 0 <= age_ms < 30_000
        assert line["report"].get("user_agent", "HeadlessChrome").count("HeadlessChrome") == 1
        return line


@pytest.fixture(scope="module")
def watched(collect: Collect, make_site: MakeSite, certificate: Certificate) -> Watched:
    site = make_site(certificate)
    return Watched(site, collect("--allowed-origins", site.origin, certificate=certificate))


def test_chromium_reports_a_csp_violation_by_report_to(chromium: Any, watched: Watched) -> None:
    headers = {
        "Reporting-Endpoints": f'csp="{watched.endpoint}"',
        "Content-Security-Policy": "script-src 'none'; report-to csp",
    }
    watched.site.pages["/report-to"] = Page("<script>1</script>", headers)
    chromium.new_page().goto(f"{watched.site.origin}/report-to")
    line = watched.wait_for_kind("csp-violation", "/report-to")
    assert line["report"]["body"]["effectiveDirective"] == "script-src-elem"
    assert line["report"]["body"]["blockedURL"] == "inline"


def test_chromium_reports_a_csp_violation_by_report_uri(chromium: Any, watched: Watched) -> None:
    headers = {"Content-Security-Policy": f"script-src 'none'; report-uri {watched.endpoint}"}
    watched.site.pages["/report-uri"] = Page("<script>1</script>", headers)
    chromium.new_page().goto(f"{watched.site.origin}/report-uri")
    line = watched.wait_for_kind("csp-violation", "/report-uri")
    assert line["report"]["csp-report"]["blocked-uri"] == "inline"


def test_chromium_reports_a_breach_of_the_permissions_policy(chromium: Any, watched: Watched) -> None:
    headers = {
        "Reporting-Endpoints": f'default="{watched.endpoint}"',
        "Permissions-Policy": "geolocation=()",
    }
    watched.site.pages["/policy"] = Page("<script>navigator.geolocation.getCurrentPosition(() => 1)</script>", headers)
    chromium.new_page().goto(f"{watched.site.origin}/policy")
    line = watched.wait_for_kind("permissions-policy-violation", "/policy")
    assert line["report"]["body"]["policyId"] == "geolocation"


def test_chromium_reports_the_crash_of_a_page(chromium: Any, watched: Watched) -> None:
    watched.site.pages["/crash"] = Page(headers={"Reporting-Endpoints": f'default="{watched.endpoint}"'})
    page = chromium.new_page()
    page.goto(f"{watched.site.origin}/crash")
    with page.expect_event("crash"), pytest.raises(playwright.Error):
        page.goto("chrome://crash", timeout=3_000)
    watched.wait_for_kind("crash", "/crash")


def _header_in(readme: str, name: str) -> str:
    """The header's value in the README's table of clients, whose cells break lines where they like."""
    found = re.search(rf"``{name}: (\{{.*?\}})``", readme, re.DOTALL)
    assert found, name
    return json.dumps(json.loads(re.sub(r"\n\s+", "", found[1])))


def test_chromium_logs_network_errors(chromium: Any, watched: Watched, readme: str) -> None:
    headers = {
        name: _header_in(readme, name).replace("https://collector.example/api/v1/browser-reports", watched.endpoint)
        for name in ("Report-To", "NEL")
    }
    watched.site.pages["/nel"] = Page(headers=headers)
    watched.site.pages["/failing"] = Page(headers=headers, status=500)
    watched.site.pages["/dropped"] = Page(status=0)
    page = chromium.new_page()
    page.goto(f"{watched.site.origin}/nel")
    page.goto(f"{watched.site.origin}/failing")
    failing = watched.wait_for_kind("network-error", "/failing")["report"]["body"]
    assert (failing["phase"], failing["type"], failing["status_code"]) == ("application", "http.error", 500)
    assert failing["sampling_fraction"] == 1.0
    with pytest.raises(playwright.Error, match="ERR_EMPTY_RESPONSE"):
        page.goto(f"{watched.site.origin}/dropped")
    watched.collector.wait_for(
        lambda line: line["kind"] == "network-error" and line["report"]["url"].endswith("/dropped")
    )


def test_a_site_that_is_not_allowed_gets_no_reports_stored(
    chromium: Any, watched: Watched, make_site: MakeSite, certificate: Certificate
) -> None:
    foreign = make_site(certificate)
    for name, value in (("to", "report-to csp"), ("uri", f"report-uri {watched.endpoint}")):
        headers = {
            "Reporting-Endpoints": f'csp="{watched.endpoint}"',
            "Content-Security-Policy": f"script-src 'none'; {value}",
        }
        foreign.pages[f"/{name}"] = Page("<script>1</script>", headers)
        chromium.new_page().goto(f"{foreign.origin}/{name}")
    # a report of the allowed site, asked for after them, marks the time
    headers = {"Content-Security-Policy": f"script-src 'none'; report-uri {watched.endpoint}"}
    watched.site.pages["/later"] = Page("<script>1</script>", headers)
    chromium.new_page().goto(f"{watched.site.origin}/later")
    watched.wait_for_kind("csp-violation", "/later")
    assert foreign.origin not in json.dumps(watched.collector.stored())
