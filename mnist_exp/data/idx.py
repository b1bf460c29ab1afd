"""The IDX files in which MNIST and its relatives are published.

The format: http://yann.lecun.com/exdb/mnist/. Big-endian 32-bit header: a magic number (0x0803 images, 0x0801 labels),
then the size of each dimension; then unsigned bytes, last dimension fastest.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from mnist_exp.data.download import DOWNLOADABLE, fetch
from mnist_exp.data.files import DataError, Labelled, cache_directory, names_in, read_bytes
from mnist_exp.data.splits import Digits, Preparation, prepare

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx_folder(*, root: str | None, download: str | None, **preparation: Unpack[Preparation]) -> Digits:
    """Digits from four IDX files, plain or gzipped.

    Args:
        root: the folder that holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``
            and ``t10k-labels-idx1-ubyte``, with or without ``.gz``; ``train-images.idx3-ubyte`` is known too. None: a
            folder of the cache, named after ``download``.
        download: what is fetched when files are absent, into ``root``: ``MNIST``, ``FashionMNIST`` or ``KMNIST``.
            None: nothing.
        preparation: see ``mnist_exp.data.splits.prepare``.

    Raises:
        DataError: files are missing and cannot be fetched, or are unreadable, damaged or contradictory.
    """
    if download is not None and download not in DOWNLOADABLE:
        raise DataError(f"data.download={download} is not one of {', '.join(DOWNLOADABLE)} or null")
    if root:
        folder = Path(root).expanduser()
    elif download:
        folder = cache_directory() / download
    else:
        raise DataError("data.root and data.download are both null; set data.root to a folder with the four IDX files")

    names = names_in(folder, may_be_absent=download is not None)
    found = {file: next((name for name in _spellings(file) if name in names), None) for file in FILES}
    if missing := [file for file, name in found.items() if name is None]:
        if download is None:
            raise DataError(f"{folder}: missing {', '.join(missing)} (plain or .gz)")
        fetch(download, [f"{file}.gz" for file in missing], folder)
    paths = [folder / (name or f"{file}.gz") for file, name in found.items()]
    return prepare(_read_pair(*paths[:2]), _read_pair(*paths[2:]), **preparation)


def _spellings(file: str) -> list[str]:
    dotted = file.replace("-idx", ".idx")
    return [file, f"{file}.gz", dotted, f"{dotted}.gz"]


def _read_pair(image_path: Path, label_path: Path) -> Labelled:
    images, labels = _read(image_path, dimensions=3), _read(label_path, dimensions=1)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{image_path}: images of {images.shape[1]}x{images.shape[2]} pixels, expected 28x28")
    if len(images) == 0:
        raise DataError(f"{image_path}: no images")
    if len(labels) != len(images):
        raise DataError(f"{label_path}: {len(labels)} labels, but {len(images)} images in {image_path.name}")
    if (wrong := np.flatnonzero(labels > 9)).size:
        raise DataError(f"{label_path}: label {labels[wrong[0]]} at index {wrong[0]} is no digit 0..9")
    return Labelled(images, labels)


def _read(path: Path, dimensions: int) -> NDArray[np.uint8]:
    content = read_bytes(path)
    header = 4 * (1 + dimensions)
    magic = 0x0800 + dimensions
    if len(content) >= 4 and (found := int.from_bytes(content[:4], "big")) != magic:
        raise DataError(f"{path}: wrong magic number 0x{found:08x}, expected 0x{magic:08x}")
    if len(content) < header:
        raise DataError(f"{path}: truncated: {len(content)} bytes, the header alone has {header}")
    shape = [int(size) for size in np.frombuffer(content, ">u4", count=dimensions, offset=4)]
    expected = header + math.prod(shape)
    if len(content) != expected:
        problem = "truncated" if len(content) < expected else "trailing bytes"
        raise DataError(f"{path}: {problem}: {len(content)} bytes, expected {expected}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
