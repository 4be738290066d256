"""What the tests of clients start from: collectors and sites that never outlive their test, and a certificate."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.clients.certificate import Certificate
from tests.clients.collector import Collector
from tests.clients.site import Site
from tests.system.server import ROOT

Collect = Callable[..., Collector]
MakeSite = Callable[..., Site]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def readme() -> str:
    return (ROOT / "README.rst").read_text()


@pytest.fixture(scope="module")
def collect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collect]:
    """`collect(*flags)`: a server that takes reports, until the module's tests are over."""
    made: list[Collector] = []

    def make(*flags: str, certificate: Certificate | None = None) -> Collector:
        collector = Collector(tmp_path_factory.mktemp("collector"), *flags, certificate=certificate)
        made.append(collector)
        collector.start()
        return collector

    yield make
    for collector in made:
        collector.end()


@pytest.fixture(scope="module")
def make_site() -> Iterator[MakeSite]:
    """`make_site()`: a web site on a port of its own, with a certificate over HTTPS."""
    made: list[Site] = []

    def make(certificate: Certificate | None = None, name: str = "www.example") -> Site:
        site = Site(certificate, name)
        made.append(site)
        return site

    yield make
    for site in made:
        site.close()
