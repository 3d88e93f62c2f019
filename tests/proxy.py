"""A server in front of another one on loopback, which can be away, answer 500, or lose answers."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["up", "away", "500", "lost"]


class Proxy:
    """mode  up: forwards. away: closes the connection. 500: an error. lost: forwards, then closes it.

    spared   PUT requests that are still forwarded, and all others until then
    patience requests that are refused before the mode is `up` again; None: it stays
    """

    def __init__(self, target: str) -> None:
        self.mode: Mode = "up"
        self.refused = self.spared = 0
        self.patience: int | None = None
        proxy, host = self, urlsplit(target).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # a client that asks whether to continue need not wait

            def _handle(self) -> None:
                body = self._body()
                mode = proxy._mode_for(self.command)
                proxy.refused += mode != "up"
                if mode == "away":
                    self._close()
                elif mode == "500":
                    self._answer(500, b"out of order", {"Content-Type": "text/plain"})
                else:
                    lost = mode == "lost"
                    answer = self._forward(body)
                    if lost:
                        self._close()
                    else:
                        self._answer(*answer)

            def _close(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts = []
                while size := int(self.rfile.readline().partition(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

            def _forward(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
                connection = http.client.HTTPConnection(host, timeout=60)
                left_out = ("host", "connection", "expect", "transfer-encoding", "content-length")
                headers = {k: v for k, v in self.headers.items() if k.lower() not in left_out}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                length = answer.headers.get("Content-Length", "0") if self.command == "HEAD" else len(data)
                return answer.status, data, {**answer.headers, "Content-Length": str(length)}

            def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(data))} | headers).items():
                    if name.lower() not in ("server", "date", "connection", "transfer-encoding"):
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _mode_for(self, command: str) -> Mode:
        if self.mode == "up":
            return "up"
        if self.spared > 0:
            self.spared -= command == "PUT"
            return "up"
        if self.patience is not None and self.refused >= self.patience:
            self.mode = "up"
        return self.mode

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
