"""A line to the store that fails on demand: an HTTP proxy on loopback that keeps the Host header, so that
presigned URLs made for it stay valid."""

from __future__ import annotations

import http.client
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """Disturb the next ``times`` requests of ``method`` whose path contains ``part``.

    One of: ``status`` answer it without asking the store; ``cut`` break off after so many bytes of the body;
    ``short`` claim and send so many bytes only; ``corrupt`` flip a bit; ``whole`` ignore a Range header;
    ``drop`` close without an answer, after the store has got all (``delivered``) or nothing.
    """

    method: str
    part: str
    times: int = 1
    status: int = 0
    cut: int | None = None
    short: int | None = None
    corrupt: bool = False
    whole: bool = False
    drop: bool = False
    delivered: bool = False


class Line:
    def __init__(self, store_port: int) -> None:
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str, str]] = []
        line = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                name = self.path.partition("?")[0].rpartition("/")[2]
                line.seen.append((self.command, name, self.headers.get("Range", "")))
                fault = line._next(self.command, self.path)
                if fault.status:
                    self._answer(fault.status, {}, b"<Error><Code>Scripted</Code></Error>")
                    return
                if fault.drop and not fault.delivered:
                    self.close_connection = True
                    return
                headers = dict(self.headers.items())
                if fault.whole:
                    headers.pop("Range", None)
                connection = http.client.HTTPConnection("127.0.0.1", store_port, timeout=20)
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                data = response.read()
                connection.close()
                if fault.drop:
                    self.close_connection = True
                    return
                if fault.corrupt:
                    data = data[:-1] + bytes([data[-1] ^ 1])
                if fault.short is not None:
                    data = data[: fault.short]
                self._answer(response.status, dict(response.getheaders()), data, fault.cut)

            do_GET = do_PUT = _serve  # noqa: N815

            def _answer(self, status: int, headers: dict[str, str], data: bytes, cut: int | None = None) -> None:
                self.send_response(status)
                for name in ("Content-Range", "ETag", "Content-Type"):
                    if name.lower() in {n.lower() for n in headers}:
                        self.send_header(name, next(v for n, v in headers.items() if n.lower() == name.lower()))
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data if cut is None else data[:cut])
                if cut is not None:
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _next(self, method: str, path: str) -> Fault:
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and fault.part in path:
                fault.times -= 1
                return fault
        return Fault(method, path)

    def requests(self, method: str, name: str) -> list[str]:
        """Return the Range headers of the requests of one verb for one object."""
        return [range_ for verb, seen, range_ in self.seen if (verb, seen) == (method, name)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
