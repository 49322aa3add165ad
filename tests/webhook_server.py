"""A real HTTP server that takes messages as a webhook does, and answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Webhook:
    """Messages that arrived, and what is answered: the statuses in turn, the last one from then on."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.statuses = [200]
        self.headers: dict[str, str] = {}
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                webhook.messages.append(json.loads(self.rfile.read(size)))
                later = len(webhook.statuses) > 1
                self.send_response(webhook.statuses.pop(0) if later else webhook.statuses[0])
                for name, value in webhook.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/hooks/s3cret"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@contextmanager
def serving() -> Iterator[Webhook]:
    """Serve within the block."""
    webhook = Webhook()
    try:
        yield webhook
    finally:
        webhook.http.shutdown()
        webhook.http.server_close()
