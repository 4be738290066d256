"""The layers: a lower row never imports a higher one, and each outside library has its one place."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "netwatch"

# From top to bottom. A module belongs to the first row with a pattern that fits; `x.*` fits `x` too.
ROWS = [
    ["netwatch.__main__", "netwatch.cli"],
    ["netwatch.server", "netwatch.probe", "netwatch.reload", "netwatch.configuration"],
    ["netwatch.compaction.*"],
    ["netwatch.ship.*"],
    ["netwatch.commands.*", "netwatch.loadtest.*", "netwatch.bench.*", "netwatch.query.*"],
    ["netwatch.measurement", "netwatch.bucket"],
    ["netwatch.generations"],
    ["netwatch.child", "netwatch.listen", "netwatch.notify"],
    ["netwatch.http.worker"],
    ["netwatch.http.app"],
    ["netwatch.http.*"],
    ["netwatch.writer"],
    ["netwatch.queue"],
    ["netwatch.storage.*"],
    [
        "netwatch.reports",
        "netwatch.settings",
        "netwatch.metrics.*",
        "netwatch.errors",
        "netwatch.log",
        "netwatch.process",
    ],
    ["netwatch"],
]

# What the rows would allow, and the design does not: (who, what). Only what builds a worker hands it its link.
FORBIDDEN = [
    ("netwatch.http.*", "netwatch.storage.*"),
    ("netwatch.http.*", "netwatch.writer"),
    ("netwatch.queue", "netwatch.storage.*"),
    ("netwatch.loadtest.*", "netwatch.*"),
    ("netwatch.bench.*", "netwatch.*"),
]

# Outside libraries and who may import them; the load test and the bench, which import nothing of netwatch, may import
# any.
PLACES = {
    "falcon": ["netwatch.http.*"],
    "gunicorn": ["netwatch.http.*"],
    "uvicorn": ["netwatch.http.*"],
    "uvicorn_worker": ["netwatch.http.*"],
    "zstandard": ["netwatch.storage.*", "netwatch.http.encoding"],
    "multiprocessing": ["netwatch.server", "netwatch.child"],
    "httpx": ["netwatch.probe", "netwatch.measurement"],
    "duckdb": ["netwatch.query.engine"],
    "fsspec": ["netwatch.query.bucket_files"],
    "obstore": ["netwatch.bucket", "netwatch.ship.*", "netwatch.compaction.*", "netwatch.query.*"],
}
ANYTHING_OUTSIDE = ["netwatch.loadtest.*", "netwatch.bench.*"]


def fits(module: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(module, pattern) or module == pattern.removesuffix(".*") for pattern in patterns)


def row_of(module: str) -> int | None:
    return next((number for number, patterns in enumerate(ROWS) if fits(module, patterns)), None)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports_of(source: str, modules: Iterable[str]) -> Iterator[str]:
    """Every module the source imports, at its top, in a function or for its types; of ours the deepest one named."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are refused by scripts/check"
            assert node.module is not None
            for alias in node.names:
                deepest = f"{node.module}.{alias.name}"
                yield deepest if deepest in modules else node.module


def violations(sources: dict[str, str]) -> list[str]:
    """A sentence for each import in `sources` ({module: its text}) that the tables above forbid."""
    found = []
    for module, source in sorted(sources.items()):
        row = row_of(module)
        if row is None:
            found.append(f"{module} is in no row: add it to ROWS in tests/test_layers.py, where the design wants it")
            continue
        for imported in sorted(set(imports_of(source, sources))):
            top = imported.partition(".")[0]
            if top == "netwatch":
                below = row_of(imported)
                if below is None:
                    found.append(
                        f"{module} imports {imported}, which is in no row: add it to ROWS in tests/test_layers.py"
                    )
                elif below < row:
                    found.append(f"{module} imports {imported}, which stands above it")
                elif module != "netwatch.http.worker" and any(
                    fits(module, [who]) and fits(imported, [what]) and not fits(imported, [who])
                    for who, what in FORBIDDEN
                ):
                    found.append(f"{module} imports {imported}, which it must not know")
            elif top in PLACES and not fits(module, PLACES[top] + ANYTHING_OUTSIDE):
                found.append(f"{module} imports {imported}, which only {', '.join(PLACES[top])} may")
    return found


def test_no_import_crosses_a_wall() -> None:
    sources = {name_of(path): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("netwatch.reports", "import netwatch.queue"),
        ("netwatch.reports", "from netwatch import queue"),
        ("netwatch.storage.segment", "from netwatch.queue import Batch"),
        ("netwatch.storage", "def late():\n    import netwatch.writer"),
        ("netwatch.queue", "if TYPE_CHECKING:\n    from netwatch.writer import Writer"),
        ("netwatch.queue", "from netwatch.storage.files import append"),
        ("netwatch.http.ingest", "from netwatch.http.app import create_app"),
        ("netwatch.http.ingest", "from netwatch.storage import segment"),
        ("netwatch.http.app", "import netwatch.writer"),
        ("netwatch.writer", "import netwatch.http.body"),
        ("netwatch.server", "import netwatch.cli"),
        ("netwatch.server", "from gunicorn.app.base import BaseApplication"),
        ("netwatch.writer", "import uvicorn_worker"),
        ("netwatch.writer", "import zstandard"),
        ("netwatch.http.ingest", "import zstandard"),
        ("netwatch.http.body", "import zstandard"),
        ("netwatch.http.worker", "from multiprocessing import Process"),
        ("netwatch.cli", "import httpx"),
        ("netwatch.loadtest", "import netwatch"),
        ("netwatch.loadtest.audit", "from netwatch.reports import Report"),
        ("netwatch.bench.servers", "from netwatch import server"),
        ("netwatch.helpers", ""),
        ("netwatch.cli", "import netwatch.helpers"),
    ],
)
def test_a_wall_that_is_crossed_is_found(module: str, source: str) -> None:
    assert len(violations({"netwatch.queue": "", module: source})) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("netwatch.__main__", "from netwatch.cli import main"),
        ("netwatch.cli", "from netwatch import __version__, probe, server"),
        ("netwatch.server", "import multiprocessing.connection\nfrom netwatch.writer import run"),
        (
            "netwatch.http.worker",
            "import uvicorn_worker\nfrom netwatch.queue import Link\nfrom netwatch.http.app import create_app",
        ),
        ("netwatch.http.app", "import falcon.asgi\nfrom netwatch.http import health, ingest"),
        ("netwatch.http.encoding", "import zstandard"),
        ("netwatch.writer", "from netwatch.queue import Receiver\nfrom netwatch.storage.segment import Segment"),
        ("netwatch.storage.recovery", "import zstandard\nfrom netwatch.storage.layout import name"),
        ("netwatch.loadtest.storm", "import httpx, zstandard\nfrom netwatch.loadtest.audit import audit"),
        ("netwatch.bench.stay", "import zstandard\nfrom netwatch.bench.table import grid"),
    ],
)
def test_what_the_design_wants_is_allowed(module: str, source: str) -> None:
    assert violations({"netwatch.probe": "", "netwatch.server": "", module: source}) == []
