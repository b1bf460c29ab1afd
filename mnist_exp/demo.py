"""A page on this machine where one draws a digit and sees what trained networks say.

    mnist-demo outputs/sweeps/mlp_width outputs/2026-11-21/lenet5-a1b2c3

Only this machine can reach it.
"""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from collections.abc import Collection, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from mnist_exp.data.photographs import decoded
from mnist_exp.errors import ArgumentParser, UsageError, report
from mnist_exp.runs import RunDirectoryError
from mnist_exp.trust import add_trust

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mnist_exp.reader import Classifier, TrainingImages

MOST_NETWORKS = 24
LARGEST_REQUEST = 2_000_000  # bytes; a drawing has about 5,000


def main(arguments: Sequence[str] | None = None) -> None:
    """``mnist-demo``: serves until it is interrupted; exit status 2 where there is no network."""
    parser = ArgumentParser(
        prog="mnist-demo", example="mnist-demo DIR", description="Draw a digit, see what trained networks say."
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="run directories, folders of them, or patterns")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0: any free one")
    add_trust(parser)
    options = parser.parse(arguments)
    try:
        networks = load_networks(options.directories, options.trust)
        server = Demo(networks, options.port)
    except (UsageError, RunDirectoryError) as error:
        report(error, "mnist-demo")
        sys.exit(2)
    print(f"{len(networks)} networks at {server.url} (Ctrl+C ends it)", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def load_networks(patterns: Sequence[str], trusted: Collection[str] = ()) -> list[Classifier]:
    """The trained networks among the runs that are named; what cannot be loaded is told.

    Raises:
        RunDirectoryError: there is none.
    """
    from mnist_exp.reader import Classifier
    from mnist_exp.reports.collect import paths_of

    networks: list[Classifier] = []
    problems: list[str] = []
    paths = paths_of(patterns)
    for path in paths[:MOST_NETWORKS]:
        try:
            networks.append(Classifier(path, trusted))
        except (UsageError, RunDirectoryError) as error:
            problems.append(str(error))
    if not networks:
        raise RunDirectoryError(f"no trained network: {problems[0]}")
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    if len(paths) > MOST_NETWORKS:
        print(f"left out: {len(paths) - MOST_NETWORKS} runs after the first {MOST_NETWORKS}", file=sys.stderr)
    return networks


class Demo(ThreadingHTTPServer):
    """The server, on the loopback interface.

    Raises:
        UsageError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, networks: Sequence[Classifier], port: int) -> None:
        self.networks = list(networks)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise UsageError(f"--port {port} cannot be used ({error}); another one: --port 0") from error
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, picture: bytes) -> dict[str, Any]:
        """What every network says of a picture, and what it sees; ``error`` where the network does not take it.

        Raises:
            ValueError: no picture, nothing on it, several marks on it, or no network takes it.
        """
        colours = decoded(picture)
        seen: dict[TrainingImages, NDArray[np.uint8]] = {}
        refused: dict[TrainingImages, ValueError] = {}
        for images in {network.images for network in self.networks}:
            try:
                seen[images], _ = images.like_them(colours)
            except ValueError as error:
                refused[images] = error
        if not seen:
            raise next(iter(refused.values()))
        networks: list[dict[str, Any]] = []
        for network in self.networks:
            entry: dict[str, Any] = {"name": network.name, "directory": str(network.path)}
            if network.images in seen:
                image = seen[network.images]
                entry["seen"] = _data_url(image)
                entry["probabilities"] = [float(p) for p in network.probabilities(image[None])[0]]
            else:
                entry["error"] = str(refused[network.images])
            networks.append(entry)
        return {"seen": next(entry["seen"] for entry in networks if "seen" in entry), "networks": networks}


def _data_url(image: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class _Handler(BaseHTTPRequestHandler):
    server: Demo

    def do_GET(self) -> None:
        if self._is_foreign():
            return
        if self.path == "/":
            self._send(200, "text/html; charset=utf-8", (files("mnist_exp") / "demo.html").read_bytes())
        else:
            self._send(404, "text/plain", b"there is one page: /\n")

    def do_POST(self) -> None:
        if self._is_foreign():
            return
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != "/classify" or not 0 < length <= LARGEST_REQUEST:
            self._send(404 if self.path != "/classify" else 413, "text/plain", b"POST /classify takes a PNG\n")
            return
        try:
            answer = self.server.answer(self.rfile.read(length))
        except ValueError as error:
            self._send(422, "application/json", json.dumps({"error": str(error)}).encode())
            return
        self._send(200, "application/json", json.dumps(answer).encode())

    def _is_foreign(self) -> bool:
        """Whether some other site's page asks through the user's browser; refuses it then."""
        # The name alone: behind a forwarded port, such as that of ssh -L, the browser names another one.
        if re.fullmatch(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]*)?", self.headers.get("Host") or "", re.IGNORECASE):
            return False
        self._send(403, "text/plain", b"only for this machine\n")
        return True

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: drawing sends many requests."""


if __name__ == "__main__":
    main()
