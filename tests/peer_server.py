"""A peer to measure: it answers every POST with 200, but from its AT-th answer on, COUNT times, with STATUS.

`python -m tests.peer_server ADDRESS [STATUS AT [COUNT]]`
"""

from __future__ import annotations

import itertools
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def __init__(self, address: str, status: int = 200, at: int = 0, count: int = 1 << 40) -> None:
        host, port = address.split(":")
        self.status, self.others = status, range(at, at + count)
        self.stall_at, self.stall_s = 0, 0.0
        self.answers = itertools.count(1)
        self.bodies: list[bytes] = []  # the first ones
        super().__init__((host, int(port)), Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        number = next(self.server.answers)
        if number <= 1000:
            self.server.bodies.append(body)
        if number == self.server.stall_at:
            time.sleep(self.server.stall_s)
        self.send_response(self.server.status if number in self.server.others else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # its name in the standard library
        pass


if __name__ == "__main__":
    address, *numbers = sys.argv[1:]
    Server(address, *map(int, numbers)).serve_forever()
