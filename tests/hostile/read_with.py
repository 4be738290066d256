"""python read_with.py TOOL PATTERN: read all sealed files with one tool as the README says, and print {id: report}."""

from __future__ import annotations

import glob
import json
import sys
from importlib import import_module
from typing import Any


def duckdb(pattern: str) -> dict[str, Any]:
    columns = "{id: 'VARCHAR', receivedAt: 'TIMESTAMP', kind: 'VARCHAR', server: 'VARCHAR', report: 'JSON'}"
    source = f"read_json('{pattern}', format = 'newline_delimited', columns = {columns})"
    module = import_module("duckdb")
    rows = module.execute(f"SELECT id, report::VARCHAR FROM {source} WHERE receivedAt > '2020-01-01'").fetchall()
    # the README's query must run over all of it, whatever it finds there
    module.execute(f"""SELECT h.value->>'name' AS host, count(*), avg((s.value->>'latency')::DOUBLE)
        FROM {source} AS line, json_each(line.report, '$.hosts') AS h, json_each(h.value, '$.history') AS s
        GROUP BY host""").fetchall()
    return {line_id: json.loads(report) for line_id, report in rows}


def polars(pattern: str) -> dict[str, Any]:
    module = import_module("polars")
    schema = dict.fromkeys(("id", "receivedAt", "kind", "server", "report"), module.String)
    frame = module.scan_ndjson(pattern, schema=schema).collect()
    found: dict[str, Any] = {}
    for line_id, report in frame.select("id", "report").rows():
        try:
            found[line_id] = json.loads(report)
        except ValueError:  # as text, an object loses the escapes of its strings: that is Polars' doing
            found[line_id] = report
    return found


def pandas(pattern: str) -> dict[str, Any]:
    module = import_module("pandas")
    found: dict[str, Any] = {}
    for path in glob.glob(pattern):
        frame = module.read_json(path, lines=True, compression="zstd", dtype=False)
        found.update(zip(frame["id"], frame["report"], strict=True))
    return found


if __name__ == "__main__":
    print(json.dumps({"duckdb": duckdb, "polars": polars, "pandas": pandas}[sys.argv[1]](sys.argv[2])))
