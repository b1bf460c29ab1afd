"""A local web page on which the user draws a digit and trained networks classify it.

Only this machine can open it.
"""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import threading
from collections.abc import Collection, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from mnist_exp.data.photographs import decoded
from mnist_exp.errors import UsageError
from mnist_exp.loopback import LocalHandler, LocalServer, security_policy
from mnist_exp.runs import RunDirectoryError
from mnist_exp.torch_import import import_torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mnist_exp.reader import Classifier, TrainingImages

MAX_NETWORKS = 24
MAX_REQUEST = 2_000_000  # bytes; a drawing has about 5,000
MAX_PICTURE = 4_000_000  # pixels; a drawing has 78,400


def load_networks(patterns: Sequence[str], trusted: Collection[str] = ()) -> list[Classifier]:
    """The trained networks of the given runs; for each run that cannot be loaded a line is printed.

    Raises:
        RunDirectoryError: no network can be loaded.
    """
    from mnist_exp.reports.collect import paths_of

    networks: list[Classifier] = []
    problems: list[str] = []
    paths = paths_of(patterns)  # before torch is imported, because a mistake is likely here
    import_torch()
    from mnist_exp.reader import Classifier

    for path in paths[:MAX_NETWORKS]:
        try:
            networks.append(Classifier(path, trusted))
        except UsageError as error:
            problems.append(str(error))
    if not networks:
        raise RunDirectoryError(f"no trained network: {problems[0]}")
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    if len(paths) > MAX_NETWORKS:
        print(f"left out: {len(paths) - MAX_NETWORKS} runs after the first {MAX_NETWORKS}", file=sys.stderr)
    return networks


class Demo(LocalServer):
    """The server. It decodes one picture at a time.

    Raises:
        UsageError: the port cannot be used.
    """

    def __init__(self, networks: Sequence[Classifier], port: int) -> None:
        self.networks = list(networks)
        self.page = (files("mnist_exp") / "demo.html").read_bytes()
        self._classifying = threading.Lock()
        super().__init__(port, _Handler, security_policy(self.page))

    def answer(self, picture: bytes) -> dict[str, Any]:
        """The probabilities and the input image of every network, or an ``error`` if a network cannot use the picture.

        Raises:
            ValueError: not a picture, no mark on it, several marks on it, or no network can use it.
        """
        with self._classifying:
            return self._classify(decoded(picture, MAX_PICTURE))

    def _classify(self, colours: NDArray[np.float32]) -> dict[str, Any]:
        seen: dict[TrainingImages, NDArray[np.uint8]] = {}
        refused: dict[TrainingImages, ValueError] = {}
        for images in {network.images for network in self.networks}:
            try:
                seen[images], _ = images.as_training_image(colours)
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


class _Handler(LocalHandler):
    server: Demo

    def get(self) -> None:
        if self.path == "/":
            self.send(200, "text/html; charset=utf-8", self.server.page)
        else:
            self.send(404, "text/plain", b"there is one page: /\n")

    def do_POST(self) -> None:
        if self.refused_as_foreign():
            return
        length = self.headers.get("Content-Length") or "0"
        if self.path != "/classify":
            self.send(404, "text/plain", b"POST /classify takes a PNG\n")
        elif not re.fullmatch("[0-9]{1,18}", length):
            self.send(400, "text/plain", b"Content-Length should be a number of bytes\n")
        elif not 0 < int(length) <= MAX_REQUEST:
            self.send(413, "text/plain", f"a picture has 1 to {MAX_REQUEST} bytes\n".encode())
        else:
            self._classify(self.rfile.read(int(length)))

    def _classify(self, picture: bytes) -> None:
        try:
            answer = self.server.answer(picture)
        except ValueError as error:
            self.send(422, "application/json", json.dumps({"error": str(error)}).encode())
            return
        self.send(200, "application/json", json.dumps(answer).encode())
