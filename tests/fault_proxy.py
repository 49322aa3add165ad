"""A proxy before a real HTTP server that fails on demand, as networks and services do."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

# Ways to fail: half a body, no answer to a request that was done, silence; or the number of an HTTP status.
CUT, LOST, SILENT = "cut", "lost", "silent"
# A request that does not fail, before one that does.
PASS = "pass"
_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


class FaultProxy:
    """Forwards requests; each of `faults` is how the next request of its method fails.

    Attributes:
        faults: (method, way to fail); those of a method are used up in their order.
        seen: how many requests came that can fail.
    """

    def __init__(self, target: str, about: str = "", silence: float = 1.0) -> None:
        """Start before the server at `target`; requests without `about` in their path never fail."""
        self.faults: list[tuple[str, str | int]] = []
        self.seen = 0
        self._target, self._about, self._silence = urlsplit(target), about, silence
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            setattr(Handler, f"do_{method}", lambda handler: outer._serve(handler))
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def close(self) -> None:
        """Stop listening."""
        self.http.shutdown()
        self.http.server_close()

    def _next(self, method: str, path: str) -> str | int | None:
        if self._about not in path:
            return None
        with self._lock:
            self.seen += 1
            place = next((i for i, (of, _) in enumerate(self.faults) if of == method), None)
            return None if place is None else self.faults.pop(place)[1]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        fault = self._next(handler.command, handler.path)
        if fault == SILENT:
            time.sleep(self._silence)
        if fault == PASS:
            fault = None
        if isinstance(fault, int):
            self._answer(handler, fault, {}, b"not now")
        elif fault != SILENT:
            status, headers, data = self._ask(handler, body)
            if fault != LOST:
                self._answer(handler, status, headers, data, len(data) // 2 if fault == CUT else None)
        if fault in (CUT, LOST, SILENT):
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)

    def _ask(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        server = http.client.HTTPConnection(self._target.hostname or "", self._target.port, timeout=60)
        headers = {k: v for k, v in handler.headers.items() if k.lower() not in _HOP_BY_HOP}
        server.request(handler.command, handler.path, body, headers | {"Connection": "close"})
        response = server.getresponse()
        data = response.read()
        server.close()
        # Addresses that the server gives for what follows, as in resumable uploads, lead through here.
        direct = f"{self._target.scheme}://{self._target.netloc}"
        kept = {k: v for k, v in response.getheaders() if k.lower() not in _HOP_BY_HOP}
        return response.status, {k: v.replace(direct, self.url) for k, v in kept.items()}, data

    def _answer(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        data: bytes,
        sent: int | None = None,
    ) -> None:
        handler.send_response_only(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:sent])
        handler.wfile.flush()
