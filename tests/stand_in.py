"""A server that says 200 to all and stores nothing, for tests of what starts, stops and loads one."""

from __future__ import annotations

import sys

STAND_IN = """
import http.server, os, signal, subprocess, sys, threading
bind, data_dir, mode = sys.argv[sys.argv.index("--bind") + 1], sys.argv[sys.argv.index("--data-dir") + 1], sys.argv[1]
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"id": "x", "accepted": 1}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(bind.rpartition(":")[2])), Handler)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "netwatch: writer"])
def stop(*_):
    if mode != "orphan":
        child.kill()
        child.wait()
    if mode == "leftover":
        os.makedirs(data_dir + "/open")
        open(data_dir + "/open/x-1.jsonl.zst.open", "w").close()
    os._exit(3 if mode == "exit" else 0)
def reload(*_):
    with open(data_dir + "/reloads", "a") as file:
        file.write("HUP ")
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGHUP, reload)
print(f"netwatch: listening on http://{bind}, writing to {data_dir}", flush=True)
server.serve_forever()
"""


def stand_in(mode: str) -> list[str]:
    return [sys.executable, "-c", STAND_IN, mode]
