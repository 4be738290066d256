"""A small web site, whose pages and their headers a test writes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from tests.clients.certificate import Certificate


class Page(NamedTuple):
    """What is at one path; status 0 closes the connection without an answer."""

    html: str = "<!doctype html><title>a page</title>"
    headers: Mapping[str, str] = {}
    status: int = 200


class Site:
    """Pages by their paths on a port of 127.0.0.1, known as ``name``; with a certificate over HTTPS."""

    def __init__(self, certificate: Certificate | None = None, name: str = "www.example") -> None:
        self.pages: dict[str, Page] = {"/": Page()}
        pages = self.pages

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 5

            def do_GET(self) -> None:
                page = pages.get(self.path, Page(status=404))
                if not page.status:
                    self.close_connection = True
                    return
                body = page.html.encode()
                self.send_response(page.status)
                headers = {"Content-Type": "text/html", "Content-Length": str(len(body)), **page.headers}
                for header, value in headers.items():
                    self.send_header(header, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                """Say nothing."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        if certificate:
            # each thread shakes hands for itself: a browser opens connections that it does not use
            self._server.socket = certificate.context().wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.origin = f"{'https' if certificate else 'http'}://{name}:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, _request: object, _client_address: object) -> None:
        """Say nothing of connections that a browser gave up."""
