"""The live page's server: on this machine's own address, read-only, with a fixed list of things to ask for.

No path of a request is ever a path of the disk. A request that names another host than this machine is refused: a page
elsewhere could have its own name resolve to this address and read what it likes (DNS rebinding).
"""

import hashlib
import json
import logging
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from esper.nissa.page import stage_style
from esper.runtime.live_view import LiveRun
from esper.utils.documents import cause

logger = logging.getLogger("esper")

ADDRESS = "127.0.0.1"

NAMES = (ADDRESS, "localhost")
"""Hosts that a request may name."""

PATIENCE = 10.0
"""Seconds that a connection may say nothing."""

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/live.js": ("live.js", "text/javascript; charset=utf-8"),
    "/draw.js": ("draw.js", "text/javascript; charset=utf-8"),
    "/style.css": ("live.css", "text/css; charset=utf-8"),
}
"""What is served besides the runs: file of ``esper/nissa/live`` and its type."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""With every answer: nothing from elsewhere, nothing kept."""


class LiveServer(ThreadingHTTPServer):
    """Serves a page on runs.

    Attributes:
      runs: what is shown, in order.
      links: connections that are open.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, runs: Sequence[LiveRun], port: int) -> None:
        """Bind; 0 = any port that is free.

        Raises:
          OSError: the port is taken.
        """
        self.runs, self.asking = tuple(runs), threading.Lock()
        self.links = set[socket.socket]()
        super().__init__((ADDRESS, port), LiveHandler)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def cut(self) -> None:
        """End every connection: a browser asks again and again on the one that it has."""
        for link in tuple(self.links):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news; anything else is told, and the next request is served."""
        del request, client_address
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            logger.warning("live page: %s", cause(error) if error is not None else "failed")


class LiveHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server: LiveServer
    timeout = PATIENCE
    server_version = "esper"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """Count the connection."""
        super().setup()
        self.server.links.add(self.connection)

    def finish(self) -> None:
        """It is over."""
        self.server.links.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        """Answer with the body."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer without it."""
        self._answer(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

    def _answer(self, with_body: bool) -> None:
        host, _, port = self.headers.get("Host", "").rpartition(":")
        if host not in NAMES or port != str(self.server.server_address[1]):
            self._send(HTTPStatus.MISDIRECTED_REQUEST, b"this host is not served here\n", "text/plain", with_body)
            return
        path = self.path.partition("?")[0]
        if path in FILES:
            name, kind = FILES[path]
            self._send(HTTPStatus.OK, static(name), kind, with_body)
        elif path == "/runs.json":
            with self.server.asking:
                told = [run.view() for run in self.server.runs]
            body = json.dumps({"runs": told}, allow_nan=False).encode()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            if self.headers.get("If-None-Match") == tag:
                self._send(HTTPStatus.NOT_MODIFIED, b"", "application/json", False, tag)
            else:
                self._send(HTTPStatus.OK, body, "application/json", with_body, tag)
        elif path == "/favicon.ico":
            self._send(HTTPStatus.NO_CONTENT, b"", "image/x-icon", with_body)
        else:
            self._send(HTTPStatus.NOT_FOUND, b"nothing is here\n", "text/plain", with_body)

    def _send(self, status: HTTPStatus, body: bytes, kind: str, with_body: bool, tag: str = "") -> None:
        self.send_response(status)
        if tag:
            self.send_header("ETag", tag)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def static(name: str) -> bytes:
    """A file of the page; the style sheet is the report's, the stages' colours, and its own."""
    place = Path(__file__).parents[1] / "nissa"
    text = (place / "live" / name).read_text(encoding="utf-8")
    if name == "live.css":
        text = (place / "style.css").read_text(encoding="utf-8") + stage_style() + text
    return text.encode()


class LivePage:
    """A server in a thread of its own, which ends with the process."""

    def __init__(self, runs: Sequence[LiveRun], port: int) -> None:
        """Begin to serve.

        Raises:
          OSError: the port is taken.
        """
        self.server = LiveServer(runs, port)
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.2,), name="live page", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the page is."""
        return self.server.url

    def close(self) -> None:
        """End, and give the port back; a browser that holds a connection open is not waited for."""
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()
        self.server.cut()
