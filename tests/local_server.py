"""A web server on this machine with settable bad habits, for tests of downloads."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import numpy as np

CONTENT = np.random.default_rng(5).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class LocalServer:
    """A web server on this machine with one file and settable bad habits.

    `cuts` holds, for the coming requests, after how many bytes the connection breaks; `refusals` what each is told.
    """

    def __init__(self) -> None:
        self.content, self.etag = CONTENT, '"first"'
        self.ranges, self.claimed_size = True, 0
        self.cuts: list[int] = []
        self.refusals: list[int] = []
        self.asked: list[str | None] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.tar"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.asked.append(asked)
        if self.refusals:
            request.send_error(self.refusals.pop(0))
            return
        first = int(asked[6:-1]) if asked and self.ranges else 0
        if request.headers.get("If-Range", self.etag) != self.etag:
            first = 0
        if first and first >= len(self.content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.content)}")
            request.end_headers()
            return
        request.send_response(206 if first else 200)
        if first:
            request.send_header("Content-Range", f"bytes {first}-{len(self.content) - 1}/{len(self.content)}")
        request.send_header("ETag", self.etag)
        request.send_header("Content-Length", str(self.claimed_size or len(self.content) - first))
        request.end_headers()
        body = self.content[first:]
        if self.cuts:
            body = body[: self.cuts.pop(0)]
            request.close_connection = True
        request.wfile.write(body)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()
