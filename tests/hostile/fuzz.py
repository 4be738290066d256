"""python -m tests.hostile.fuzz [libFuzzer's options] [CORPUS…]: fuzz the decoder, guided by coverage."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

atheris: Any = import_module("atheris")
with atheris.instrument_imports(include=["netwatch", "tests.hostile.decoder"]):
    from tests.hostile.decoder import check


def one_input(data: bytes) -> None:
    check(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
