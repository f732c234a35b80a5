"""An OpenAI-compatible endpoint in a thread of this process; what it answers is up to the test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Call:
    """One request: its path, the authorization header, the decoded body."""

    path: str
    key: str
    body: dict[str, Any]


Answer = Callable[[Call], tuple[int, str | dict[str, Any]]]
"""Status, and a body: JSON values, or text sent as it is. Called from several threads."""


def error(kind: str) -> dict[str, Any]:
    """Return the body of an answer that is none."""
    return {"error": {"message": kind, "type": kind}}


def chat_completion(text: str, **more: Any) -> dict[str, Any]:
    """Return the body of a chat completion that says ``text``."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], **more}


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """Serve ``answer`` and yield the base URL; a status of 429 asks to come back at once."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, said = answer(Call(path=self.path, key=self.headers.get("authorization", ""), body=body))
            self.send_response(status)
            self.send_header("content-type", "application/json")
            if status == 429:
                self.send_header("retry-after", "0")
            self.end_headers()
            self.wfile.write((said if isinstance(said, str) else json.dumps(said)).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
