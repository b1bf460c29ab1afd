"""Small data sets on disk, in every format that the loaders read."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_exp.data.files import Labelled

STEMS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MNIST_EXP_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder with the whole MNIST; read only."""
    folder = os.environ.get("MNIST_DIR")
    if not folder:
        pytest.skip("MNIST_DIR is not set: this test needs the whole MNIST")
    return Path(folder)


@pytest.fixture(scope="session")
def stored() -> dict[str, Labelled]:
    """60 training and 20 test images of noise, with labels in random order."""
    random = np.random.default_rng(0)

    def draw(count: int) -> Labelled:
        labels = random.permutation(np.arange(count) % 10).astype(np.uint8)
        return Labelled(random.integers(0, 256, (count, 28, 28), dtype=np.uint8), labels)

    return {"train": draw(60), "test": draw(20)}


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def idx(tmp_path: Path, stored: dict[str, Labelled]) -> Callable[..., Path]:
    """Write the four files and return their folder."""

    def write(*, gz: bool = False, dotted: bool = False, folder: str = "idx") -> Path:
        root = tmp_path / folder
        root.mkdir()
        for split, names in STEMS.items():
            for name, array in zip(names, stored[split], strict=True):
                content = _idx(array)
                name = name.replace("-idx", ".idx") if dotted else name
                (root / (f"{name}.gz" if gz else name)).write_bytes(gzip.compress(content) if gz else content)
        return root

    return write


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def png_bytes() -> Callable[[np.ndarray], bytes]:
    return _png


@pytest.fixture
def png(tmp_path: Path, stored: dict[str, Labelled]) -> Callable[..., Path]:
    """Write ``train`` and ``test`` as folders, or as archives with ``inside`` before every name."""

    def write(*, archive: str | None = None, inside: str = "", folder: str = "png") -> Path:
        root = tmp_path / folder
        root.mkdir()
        for split, (images, labels) in stored.items():
            files = {
                f"{i:05d}_{label}.png": _png(image) for i, (image, label) in enumerate(zip(images, labels, strict=True))
            }
            if archive is None:
                (root / split).mkdir()
                for name, content in files.items():
                    (root / split / name).write_bytes(content)
            else:
                with tarfile.open(root / f"{split}{archive}", "w" if archive == ".tar" else "w:gz") as tar:
                    for name, content in reversed(files.items()):
                        info = tarfile.TarInfo(inside + name)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
        return root

    return write
