"""Firefox ESR posting from a page of another origin, and reporting by itself.

Debian has no geckodriver, and Playwright drives its own build only: so the page does everything by itself as soon as it
is loaded, and leaves itself to unload. Firefox knows no Network Error Logging, and over plain HTTP it sends no report
for `report-to`; for HTTPS it would have to trust our certificate, which a profile learns from NSS's own tools only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.clients.collector import Collector
from tests.clients.conftest import Collect, MakeSite
from tests.clients.site import Page
from tests.system.server import report

FIREFOX = shutil.which("firefox-esr")
PREFERENCES = {
    "app.update.enabled": False,
    "browser.aboutwelcome.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.proxy.type": 0,
}
SENDS = """<!doctype html><script>
const [url, body] = GIVEN;
const json = {"Content-Type": "application/json"};
const send = (name, options) => fetch(url, {method: "POST", body: body[name], ...options});
addEventListener("pagehide", () => {
    navigator.sendBeacon(url, body["beacon-text"]);
    navigator.sendBeacon(url, new Blob([body["beacon-blob"]], {type: "application/json"}));
    send("keepalive-text", {keepalive: true});
});
Promise.all([send("fetch-text"), send("fetch-json", {headers: json, credentials: "include"})])
    .then((answers) => Promise.all(answers.map((answer) => answer.json())))
    .then((said) => send("read", {body: body.read.replace("ANSWER", said[1].durability)}))
    .finally(() => location = "/next");
</script>"""
NAMES = ("fetch-text", "fetch-json", "read", "beacon-text", "beacon-blob", "keepalive-text")

Visited = tuple[Collector, str]

pytestmark = pytest.mark.skipif(not FIREFOX, reason="firefox-esr is not installed: apt-get install firefox-esr")


@pytest.fixture(scope="module")
def visited(collect: Collect, make_site: MakeSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visited]:
    """A collector, a site that may post there, and one that may not; Firefox has visited both."""
    site, foreign = make_site(name="127.0.0.1"), make_site(name="127.0.0.1")
    collector = collect("--allowed-origins", site.origin)
    endpoint = f"{collector.url}/api/v1/browser-reports"
    bodies = {name: json.dumps(report(name)) for name in NAMES}
    bodies["read"] = json.dumps({**report("read"), "answer": "ANSWER"})
    for sender, following in ((foreign, f"{site.origin}/"), (site, "/violation")):
        given = {name: body.replace('"clientId": "', '"clientId": "foreign-') for name, body in bodies.items()}
        html = SENDS.replace("GIVEN", json.dumps([collector.reports_url, given if sender is foreign else bodies]))
        sender.pages["/"] = Page(html.replace("/next", following))
    policy = {"Content-Security-Policy": f"script-src 'none'; report-uri {endpoint}"}
    site.pages["/violation"] = Page("<script>1</script>", policy)
    profile = tmp_path_factory.mktemp("profile")
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items()]
    (profile / "user.js").write_text("".join(lines))
    command = [str(FIREFOX), "--headless", "--no-remote", "--profile", str(profile), f"{foreign.origin}/"]
    with (profile / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HOME": str(profile)})
    try:
        yield collector, site.origin
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_sends_is_stored(visited: Visited, name: str) -> None:
    collector, _ = visited
    line = collector.wait_for_client(name)[0]
    if name == "read":
        assert line["report"]["answer"] == "synced"  # the page read the answer


def test_a_csp_violation_is_reported_by_report_uri(visited: Visited) -> None:
    collector, origin = visited
    line = collector.wait_for(
        lambda line: line["report"].get("csp-report", {}).get("document-uri") == f"{origin}/violation"
    )[0]
    assert line["kind"] == "csp-violation"
    assert line["generatedAt"] <= line["receivedAt"]


def test_a_page_of_another_origin_stores_nothing(visited: Visited) -> None:
    collector, _ = visited
    collector.wait_for_client("beacon-blob")  # it was visited before
    assert not [client for client in collector.clients_after_marker() if client.startswith("foreign")]
