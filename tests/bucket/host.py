"""One host under load and kills: ``python -m tests.bucket.host DATA_DIR LEDGER SEED SECONDS``.

Runs its server and the load test's clients, kills its processes meanwhile, stops it, and writes down what became of
each report, for an audit of another place than the data directory.
"""

from __future__ import annotations

import json
import secrets
import sys
from array import array
from pathlib import Path
from typing import Any, Final

from netwatch.loadtest.chaos import Server, Storm
from netwatch.loadtest.client import Load
from netwatch.loadtest.ledger import Ledger
from netwatch.loadtest.reports import Reports
from netwatch.loadtest.requests import Requests, address
from netwatch.loadtest.trial import run_load

CLIENTS: Final = 32
RATE: Final = 60.0
MIX: Final = {"small": 8, "medium": 3, "large": 1}
KILL_EVERY_S: Final = 5.0


def main(data_dir: Path, written: Path, seed: int, duration_s: float) -> int:
    failures: list[str] = []
    flags = ["--workers", "1", "--seal-after-s", "5", "--name", data_dir.parent.name]
    with (data_dir.parent / "server.log").open("ab") as log:
        server = Server([sys.executable, "-m", "netwatch", "serve", *flags], data_dir, failures, log)
        try:
            server.start()
            assert server.wait_ready(), failures
            ledger, reports, target = Ledger(secrets.token_hex(4), CLIENTS), Reports(seed, MIX), address(server.url)
            load = Load(target, Requests(target, reports, ledger, keys=True), ledger, rate=RATE, keys=True)
            storm = Storm(server, "mix", KILL_EVERY_S, seed)
            run_load(load, storm, duration_s)
            server.stop()
        finally:
            server.kill_all()
    fates = [fates.hex() for fates in ledger.fates]
    marks = [marks.tobytes().hex() for marks in ledger.marks]
    noted = {"run": ledger.run, "seed": seed, "fates": fates, "marks": marks, "kills": storm.kills}
    written.write_text(json.dumps(noted))
    print("\n".join(failures))
    return 1 if failures else 0


def read(written: Path) -> tuple[Ledger, Reports, dict[str, int]]:
    """What a host wrote down, and how often which of its processes was killed."""
    noted: dict[str, Any] = json.loads(written.read_text())
    ledger = Ledger(noted["run"], CLIENTS)
    ledger.fates = [bytearray.fromhex(fates) for fates in noted["fates"]]
    ledger.marks = [array("I", bytes.fromhex(marks)) for marks in noted["marks"]]
    return ledger, Reports(noted["seed"], MIX), noted["kills"]


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
