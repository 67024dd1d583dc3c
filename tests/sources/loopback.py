"""A web server on loopback that can fail in the ways networks do."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class Answer:
    """What one request gets.

    `drop` closes the line after that many bytes of the body, though all are announced; `pause`
    waits that long in the middle; `announce` is a Content-Length that is not the body's.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drop: int | None = None
    pause: float = 0.0
    announce: int | None = None


@dataclass
class Site:
    """Files by path, faults to come by path, and what was asked for."""

    url: str = ""
    files: dict[str, Answer] = field(default_factory=dict)
    faults: dict[str, list[Answer]] = field(default_factory=dict)
    routes: list[Callable[[str, str], Answer | None]] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    ranges: bool = True

    def add(self, path: str, body: bytes, **headers: str) -> str:
        """Put a file there and return its address."""
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        self.files[path] = Answer(body, headers={"ETag": tag, **headers})
        return self.url + path

    def gets(self, path: str) -> list[dict[str, str]]:
        """List the headers of the GET requests for a path."""
        return [headers for method, p, headers in self.requests if (method, p) == ("GET", path)]

    def answer(self, method: str, target: str, headers: dict[str, str]) -> Answer:
        path = target.partition("?")[0]
        self.requests.append((method, path, headers))
        if method == "GET" and self.faults.get(path):
            fault = self.faults[path].pop(0)
            return self.part(fault, headers) if fault.status == 200 else fault
        for route in self.routes:
            found = route(method, target)
            if found is not None:
                return found
        found = self.files.get(path)
        return Answer(b"not here", 404) if found is None else self.part(found, headers)

    def part(self, whole: Answer, headers: dict[str, str]) -> Answer:
        """Answer a request for a part, if it is one and parts are given."""
        span = headers.get("range", "")
        tag = whole.headers.get("ETag")
        stale = headers.get("if-range") not in (None, tag)
        if not self.ranges or not span.startswith("bytes=") or stale:
            return whole
        first, _, last = span.removeprefix("bytes=").partition("-")
        start = int(first)
        stop = min(int(last) + 1, len(whole.body)) if last else len(whole.body)
        if start >= len(whole.body):
            return Answer(b"", 416)
        said = {"Content-Range": f"bytes {start}-{stop - 1}/{len(whole.body)}"}
        body = whole.body[start:stop]
        return Answer(body, 206, {**whole.headers, **said}, drop=whole.drop, pause=whole.pause)


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply("GET")

        def do_HEAD(self) -> None:
            self.reply("HEAD")

        def reply(self, method: str) -> None:
            headers = {k.lower(): v for k, v in self.headers.items()}
            answer = site.answer(method, self.path, headers)
            body = answer.body
            self.send_response(answer.status)
            said = {"Content-Length": str(answer.announce or len(body)), **answer.headers}
            for name, value in said.items():
                self.send_header(name, value)
            self.end_headers()
            if method == "HEAD":
                return
            cut = len(body) if answer.drop is None else answer.drop
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body[: cut // 2])
                self.wfile.flush()
                time.sleep(answer.pause)
                self.wfile.write(body[cut // 2 : cut])
                self.wfile.flush()
            if answer.drop is not None or answer.announce is not None:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(2)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def serve() -> Iterator[Site]:
    """Serve a site on a free port of 127.0.0.1."""
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
