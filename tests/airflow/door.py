"""A reverse proxy before an Airflow that fails on demand, as the one before a hospital's servers does."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"})


class Door:
    """Leads to a server on loopback. ``failing``: it answers everything with 500 and asks nobody.

    ``seen`` holds method and path of every request, ``refused`` counts those answered with 500.
    """

    def __init__(self, port: int) -> None:
        self.failing = False
        self.seen: list[tuple[str, str]] = []
        self.refused = 0
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                door.seen.append((self.command, self.path))
                if door.failing:
                    door.refused += 1
                    self._answer(500, {"Content-Type": "text/html"}, b"<html><h1>Internal Server Error</h1></html>")
                    return
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                try:
                    connection.request(self.command, self.path, body, dict(self.headers.items()))
                    response = connection.getresponse()
                    headers = {k: v for k, v in response.getheaders() if k.lower() not in HOP_BY_HOP}
                    self._answer(response.status, headers, response.read())
                except OSError:
                    self._answer(502, {"Content-Type": "text/html"}, b"<html><h1>Bad Gateway</h1></html>")
                finally:
                    connection.close()

            do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815

            def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
                with suppress(OSError):  # who asked has gone
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @contextmanager
    def answering_500(self) -> Iterator[None]:
        self.failing = True
        try:
            yield
        finally:
            self.failing = False

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
