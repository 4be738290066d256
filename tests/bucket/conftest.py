"""What the bucket's tests start from: a store for all of them, and data directories with sealed files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from netwatch.bucket import Bucket
from netwatch.storage.files import Files
from tests.bucket.gateway import Gateway, gateway
from tests.bucket.store import KEYS, Store
from tests.doubles import made_lines, made_store

MakeData = Callable[..., Path]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One store for all tests; each has a prefix of its own."""
    started = Store(tmp_path_factory.mktemp("store"))
    try:
        yield started.start()
    finally:
        started.kill()


@pytest.fixture
def bucket(store: Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The test's own part of the bucket; its keys stand in the environment."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return store.bucket(f"{request.node.name.partition('[')[0]}/{os.urandom(4).hex()}")


@pytest.fixture
def door(store: Store) -> Iterator[Gateway]:
    """A gateway to the store, which does as it is told."""
    with gateway(store.port) as opened:
        yield opened


@pytest.fixture
def make_data(tmp_path: Path) -> MakeData:
    """`make_data(segments, name)`: a data directory with so many sealed files, of which no two are equal."""

    def make(segments: int = 3, name: str = "data", first: int = 0, **options: object) -> Path:
        data = tmp_path / name
        data.mkdir(exist_ok=True)
        root = os.open(data, os.O_RDONLY)
        made = made_store(Files(root), seal_bytes=1 << 30)
        made.start(0.0)
        for number in range(first, first + segments):
            made.commit([made_lines(number * LINES, LINES, filling=200, **options)], 0.0)
            made.seal("asked")
            made.tend(0.0)
        assert made.close(0.0)
        os.close(root)
        return data

    return make


LINES: Final = 20
"""In each sealed file."""
