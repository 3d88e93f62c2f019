"""A server in front of another one on loopback, which can be away, answer 500, or lose answers."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["up", "away", "500", "lost"]


class Proxy:
    """mode  up: forwards. away: closes the connection. 500: an error. lost: forwards, then closes it."""

    def __init__(self, target: str) -> None:
        self.mode: Mode = "up"
        self.refused = 0
        proxy, host = self, urlsplit(target).netloc

        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                proxy.refused += proxy.mode != "up"
                if proxy.mode == "away":
                    self.connection.close()
                elif proxy.mode == "500":
                    self._answer(500, b"out of order", "text/plain")
                else:
                    lost = proxy.mode == "lost"
                    answer = self._forward(body)
                    if lost:
                        self.connection.close()
                    else:
                        self._answer(*answer)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

            def _forward(self, body: bytes) -> tuple[int, bytes, str]:
                connection = http.client.HTTPConnection(host, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                return answer.status, data, answer.headers.get("Content-Type", "application/json")

            def _answer(self, status: int, data: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
