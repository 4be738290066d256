"""What the black-box tests start from: servers that never outlive their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.server import Server

Serve = Callable[..., Server]


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Serve]:
    """`make_server(*flags)`: a server that is not started yet, on the test's data directory or the one given."""
    made: list[Server] = []

    def make(*flags: str, data_dir: Path | None = None) -> Server:
        server = Server(data_dir or tmp_path / "data", tmp_path / f"server-{len(made)}.log", *flags)
        made.append(server)
        return server

    yield make
    for server in made:
        server.end()


@pytest.fixture
def serve(make_server: Serve) -> Serve:
    """`serve(*flags)`: a server that takes reports."""
    return lambda *flags, **options: make_server(*flags, **options).start()
