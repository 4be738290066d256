"""What the bucket's tests start from: a store for all of them, and data directories with sealed files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from netwatch.bucket import Bucket
from tests.bucket.gateway import Gateway, gateway
from tests.bucket.store import KEYS, Store
from tests.doubles import seal_files

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
        seal_files(data, range(first, first + segments), LINES, **options)
        return data

    return make


LINES: Final = 20
"""In each sealed file."""
