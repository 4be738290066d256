"""An open-loop client: requests are due at a fixed rate, and latency counts from when one was due, so a stall shows.

It waits in select(), whose timeout is finer than a millisecond, unlike that of the event loops. A request that is due
while all connections are busy waits for one, on its own account.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
import time
from array import array
from collections import deque
from pathlib import Path
from typing import Any

from netwatch.bench.bodies import read_bodies

_TIMEOUT_S = 10.0


class _Connection:
    """One that carries a request at a time."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), _TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due_s = 0.0
        self._received = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def answer(self) -> int:
        """The status of the answer, 0 while it is incomplete; ConnectionError when none will come."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("closed")
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return 0
        length = int(head.lower().partition(b"\ncontent-length:")[2].partition(b"\r")[0])
        if len(body) < length:
            return 0
        self._received = b""
        return int(head.split(None, 2)[1])


def run(address: str, requests: list[bytes], connections: int, rate_per_s: float, seconds: float) -> dict[str, Any]:
    """Send for so long; what was seen, as cycle.lua says it."""
    host, port = address.split(":")
    idle = deque(_Connection(host, int(port)) for _ in range(connections))
    busy: set[_Connection] = set()
    latencies_s = array("d")
    faults: dict[str, int] = {}
    sent, total = 0, max(int(rate_per_s * seconds), 1)
    start_s = time.monotonic()
    answer_at_s = start_s
    while len(latencies_s) + sum(faults.values()) < total:
        now_s = time.monotonic()
        while idle and sent < total and start_s + sent / rate_per_s <= now_s:
            connection = idle.popleft()
            connection.due_s = start_s + sent / rate_per_s
            connection.socket.sendall(requests[sent % len(requests)])
            busy.add(connection)
            sent += 1
        wait_s = _TIMEOUT_S if sent == total or not idle else max(start_s + sent / rate_per_s - time.monotonic(), 0.0)
        ready, _, _ = select.select(busy, (), (), wait_s)
        answer_at_s = time.monotonic()
        if not ready and wait_s == _TIMEOUT_S:
            faults["timeout"] = total - len(latencies_s) - sum(faults.values())
            break
        for connection in ready:
            try:
                status = connection.answer()
            except OSError:
                faults["read"] = faults.get("read", 0) + 1
                busy.remove(connection)
                connection.socket.close()
                idle.append(_Connection(host, int(port)))
                continue
            if status == 200:
                latencies_s.append(answer_at_s - connection.due_s)
            elif status:
                faults[f"status {status}"] = faults.get(f"status {status}", 0) + 1
            if status:
                busy.remove(connection)
                idle.append(connection)
    for connection in [*idle, *busy]:
        connection.socket.close()
    ordered = sorted(latencies_s) or [0.0]
    return {
        "requests": len(latencies_s) + sum(faults.values()),
        "duration_s": answer_at_s - start_s,
        **{
            f"p{share:g}_ms": ordered[min(int(share / 100 * len(ordered)), len(ordered) - 1)] * 1000
            for share in (50, 99, 99.9)
        },
        "max_ms": ordered[-1] * 1000,
        "faults": faults,
    }


def main(url: str, bodies: str, content_type: str, connections: str, rate_per_s: str, seconds: str) -> None:
    address, _, path = url.removeprefix("http://").partition("/")
    head = f"POST /{path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {content_type}\r\nContent-Length: "
    requests = [b"%b%d\r\n\r\n%b" % (head.encode(), len(body), body) for body in read_bodies(Path(bodies))]
    gc.freeze()
    gc.disable()
    print(json.dumps(run(address, requests, int(connections), float(rate_per_s), float(seconds))))


if __name__ == "__main__":
    main(*sys.argv[1:])
