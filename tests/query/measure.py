"""How long each question takes: ``python -m tests.query.measure DIR``, about 2 GB of reports, made if DIR is not there.

Each is asked by a process of its own, which is what its user waits for: netwatch query, ClickHouse (chdb) over the same
files, and zstdcat into jq for the two questions that jq takes one way through.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

from netwatch.query.questions import questions
from tests.query.made import DAY_S, make

SINCE, UNTIL = "2026-11-22T00:00:00Z", "2026-11-24T00:00:00Z"
MIB: Final = 1024 * 1024
JQ: Final = {
    "servers": 'reduce inputs as $l ({}; .["\\($l.server) \\($l.kind)"] += 1)',
    "errors": 'reduce (inputs | select(.kind == "report").report.hosts[].history[].error | select(. != null)) as $e '
    "({}; .[$e] += 1)",
}
_CHDB: Final = """
import sys
from chdb.session import Session
from netwatch.query.questions import questions, statements
url, name, since, until, most_bytes = sys.argv[1:]
session = Session()
for statement in statements("views", "clickhouse").replace("s3(netwatch, format = 'LineAsString', structure = "
        "'line String')", f"file('{url}', 'LineAsString', 'line String')").split(";\\n\\n"):
    session.query(statement)
session.query(f"SET max_memory_usage = {most_bytes}")
print(session.query(questions("clickhouse")[name].sql, "CSV", params={"since": since, "until": until}))
"""


class Figure(NamedTuple):
    took_s: float
    cpu_s: float
    rss_mib: float


def main(path: Path, memory_limit: str) -> None:
    """Make the data if it is missing, ask, and print the table that stands in the README."""
    if not path.exists():
        make(path, 2_000_000_000)
    files = sorted(str(file) for file in (path / "reports").rglob("*.zst"))
    stored_mb = sum(os.path.getsize(file) for file in files) / 1e6
    print(f"{len(files)} files of {stored_mb:.0f} MB since {time.strftime('%F', time.gmtime(DAY_S))}")
    print(f"{'':16} {'netwatch query':>22} {'ClickHouse':>22} {'zstdcat | jq':>22}")
    for name in questions():
        query = [sys.executable, "-m", "netwatch", "query", name, "--data-dir", str(path), "--since", SINCE]
        cells = [took([*query, "--until", UNTIL, "--memory-limit", memory_limit])]
        chdb = [sys.executable, "-c", _CHDB, f"{path}/reports/date=*/reports-*.jsonl.zst", name, SINCE, UNTIL]
        cells.append(took([*chdb, str(1024 * MIB)]))
        if name in JQ:
            shell = f"zstdcat {path}/reports/*/*.zst | jq -nc '{JQ[name]}'"
            cells.append(took(["bash", "-c", shell]))
        texts = [f"{cell.took_s:.1f} s {cell.cpu_s:.0f} cpu {cell.rss_mib:.0f} MiB" for cell in cells]
        print(f"{name:16} " + " ".join(f"{text:>22}" for text in texts), flush=True)


def took(command: list[str]) -> Figure:
    """Run it, its output aside."""
    began_s = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return Figure(time.monotonic() - began_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "1GiB")
