"""A server on loopback that speaks the chat protocol of OpenAI, and misbehaves as its script says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Request"], tuple[int, dict[str, str], bytes]]


@dataclass
class Request:
    """A request as the server got it: its number from 0, its headers, its body, its caption and count."""

    number: int
    headers: dict[str, str]
    body: dict[str, Any]
    at: float

    @property
    def asked(self) -> dict[str, Any]:
        return json.loads(self.body["messages"][-1]["content"])


@dataclass
class Server:
    """url: the base URL; requests: all that came; busy: the most requests that were open at a time."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    busy: int = 0


@contextmanager
def chat_server(reply: Reply) -> Iterator[Server]:
    """Runs a server whose answers `reply` gives, on a free port of 127.0.0.1."""
    server, lock, now = Server(), threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal now
            data = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                request = Request(
                    len(server.requests), dict(self.headers), json.loads(data), time.monotonic()
                )
                server.requests.append(request)
                now += 1
                server.busy = max(server.busy, now)
            try:
                code, headers, body = (
                    reply(request) if self.path.endswith("/chat/completions") else (404, {}, b"{}")
                )
                with lock:
                    now -= 1
                self.send_response(code)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:  # the client did not wait
                self.close_connection = True

        def log_message(self, *args: object) -> None: ...

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join(timeout=10)


def completion(
    content: str, *, ended: str = "stop", tokens: tuple[int, int] = (100, 20)
) -> tuple[int, dict[str, str], bytes]:
    """A chat completion of the protocol."""
    message = {"role": "assistant", "content": content}
    tree = {
        "id": "c", "object": "chat.completion", "created": 0, "model": "scripted-1",
        "choices": [{"index": 0, "finish_reason": ended, "message": message}],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
    }  # fmt: skip
    return 200, {}, json.dumps(tree).encode()


def failure(code: int, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """An error of the protocol."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return (
        code,
        named,
        json.dumps({"error": {"message": f"scripted {code}", "type": "x", "code": None}}).encode(),
    )
