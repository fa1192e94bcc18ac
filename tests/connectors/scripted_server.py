"""An HTTP server on loopback that answers as a test says."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Answers with what the script says: (status, headers, body) in turn, the last one for ever."""

    def __init__(self) -> None:
        self.script: list[tuple[int, dict[str, str], bytes]] = [(200, {}, b"{}")]
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.bodies: list[bytes] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                outer.seen.append((self.command, self.path, dict(self.headers)))
                outer.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
                status, headers, body = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                if not status:
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PATCH = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def start(self) -> None:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def port(self) -> int:
        return self.server.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/base"
