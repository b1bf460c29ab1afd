"""A web server for this machine only: the shared parts of the drawing page and of the live report.

It listens on the loopback interface, refuses requests of other sites' pages, closes idle connections and bounds their number.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mnist_exp.errors import UsageError

MAX_CONNECTIONS = 32  # at a time; a browser opens six
IDLE_TIMEOUT = 10.0  # seconds without data after which a connection is closed
# Any port, because behind a forwarded port (ssh -L) the browser sends another one.
LOCAL_HOST = r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]*)?"


class LocalServer(ThreadingHTTPServer):
    """The server.

    Args:
        port: 0: any free one.
        policy: the Content-Security-Policy of its pages.

    Attributes:
        url: of its first page.

    Raises:
        UsageError: the port cannot be used.
    """

    daemon_threads = False
    request_queue_size = MAX_CONNECTIONS  # waiting to be accepted

    def __init__(self, port: int, handler: type[LocalHandler], policy: str) -> None:
        self.policy = policy
        self._connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._requests: set[socket.socket] = set()
        try:
            super().__init__(("127.0.0.1", port), handler)
        except (OSError, OverflowError) as error:
            raise UsageError(f"--port {port} cannot be used ({error}); another one: --port 0") from error
        self.url = f"http://127.0.0.1:{self.server_port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._connections.acquire(blocking=False):
            self._requests.add(request)
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._requests.discard(request)
            self._connections.release()

    def server_close(self) -> None:
        """Stop listening, read no more, and wait for the answers that are being made.

        Python aborts if it ends while a thread of a request runs C++ code, such as PyTorch's.
        """
        for request in self._requests.copy():
            with suppress(OSError):  # it was closed in the meantime
                request.shutdown(socket.SHUT_RD)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore closed connections; print the traceback of any other error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class LocalHandler(BaseHTTPRequestHandler):
    """Answers requests; a subclass implements ``get``."""

    server: LocalServer
    timeout = IDLE_TIMEOUT

    def do_GET(self) -> None:
        if not self.refused_as_foreign():
            self.get()

    def get(self) -> None:
        """Answer a GET request of this machine's user."""
        raise NotImplementedError

    def refused_as_foreign(self) -> bool:
        """Whether the request comes from another site's page in the user's browser; if so, refuse it."""
        host, origin = self.headers.get("Host") or "", self.headers.get("Origin")
        is_here = re.fullmatch(LOCAL_HOST, host, re.IGNORECASE)
        if is_here and (origin is None or re.fullmatch(f"https?://{LOCAL_HOST}", origin, re.IGNORECASE)):
            return False
        self.send(403, "text/plain", b"only for this machine\n")
        return True

    def send(self, status: int, kind: str, body: bytes) -> None:
        """Send an answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the pages send many requests."""


def security_policy(html: bytes, scripts: str = "") -> str:
    """A Content-Security-Policy that lets the page run its own scripts, ask this server, and nothing else.

    Args:
        html: the page.
        scripts: more sources of scripts, such as ``'unsafe-eval'``.
    """
    own = re.findall(rb"<script>(.*?)</script>", html, re.DOTALL)
    hashes = (f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in own)
    sources = " ".join(filter(None, [*hashes, scripts]))
    return (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
