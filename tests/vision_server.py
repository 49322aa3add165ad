"""A vision-language model behind the usual HTTP interface, as far as a test needs one."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

KEY = "sk-very-secret-0123456789"
MODEL = "a-vision-model"
# Figure 11 of the paper, word for word.
PAPER = (
    "I am doing image-to-image translation. Could you think of creative prompts to translate this image to "
    "different ones? Keep them creative, and only return 20 different prompts."
)
GARBAGE, CLOSED, SILENT, DRIPPING = "garbage", "closed", "silent", "dripping"


class Server:
    """Counts what it is asked. `script`: replies for the next requests; then `reply` decides.

    A reply is the text of an answer, a whole JSON body, (status, headers, body), or a way to fail.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.times: list[float] = []
        self.answered = 0
        self.script: list[Any] = []
        self.reply: Callable[[dict[str, Any]], Any] = numbered
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer._serve(self, body)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def _serve(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self._lock:
            self.requests.append(body)
            self.headers.append(handler.headers)
            self.times.append(time.monotonic())
            reply = self.script.pop(0) if self.script else self.reply(body)
        if reply == CLOSED:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if reply == SILENT:
            time.sleep(1)
        status, headers, data = self._response(handler.path, reply)
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if reply != DRIPPING:
            handler.wfile.write(data)
            return
        with suppress(OSError):  # whoever asked has left
            for byte in data:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.05)

    def _response(self, path: str, reply: Any) -> tuple[int, dict[str, str], bytes]:
        if not path.endswith("/v1/chat/completions"):
            return 404, {}, b"no such page"
        if isinstance(reply, tuple):
            status, headers, body = reply
            return status, headers, body if isinstance(body, bytes) else json.dumps(body).encode()
        if isinstance(reply, str) and reply in (GARBAGE, SILENT):
            return 200, {}, b'{"choices": [{"mess'
        with self._lock:
            self.answered += 1
        if isinstance(reply, dict):
            return 200, {}, json.dumps(reply).encode()
        choice = {"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
        return 200, {}, json.dumps({"choices": [choice]}).encode()


def error(status: int, message: str = "", code: str = "", **headers: str) -> tuple[int, dict[str, str], Any]:
    return status, headers, {"error": {"message": message, "code": code, "type": "x"}}


def picture_of(body: dict[str, Any]) -> Image.Image:
    head, data = body["messages"][0]["content"][1]["image_url"]["url"].split(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def text_of(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"][0]["text"]


def numbered(body: dict[str, Any]) -> str:
    """Twenty prompts that name the picture's color."""
    color = picture_of(body).resize((1, 1)).getpixel((0, 0))
    return "\n".join(f"{i}. Translation {i} of {color}" for i in range(1, 21))
