"""The 5,000 real MNIST digits in the package.

``mnist5k.npz`` was made by ``scripts/make_mnist5k.py`` from MNIST's training set. Yann LeCun and Corinna Cortes hold the
copyright of MNIST, a derivative of NIST's data sets; MNIST, and so this file, is available under the Creative Commons
Attribution-ShareAlike 3.0 licence (as the Keras documentation of ``keras.datasets.mnist`` states).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Unpack

import numpy as np

from mnist_exp.data.files import DataError, Labelled
from mnist_exp.data.splits import Dataset, Preparation, prepare

FILE = Path(__file__).with_name("mnist5k.npz")
# Of the bytes of the images, then of the labels.
SHA256 = "1574f5562c64a6afc9dae0cf8e23cbe02ecee011e4eddd5b8c2ca01821426cc0"


def mnist5k(**preparation: Unpack[Preparation]) -> Dataset:
    """The 5,000 MNIST digits in the package: 4,000 to train, 1,000 to test, no download.

    They are the first 500 digits of each class in MNIST's training set. The first 400 of each class are training
    images, the last 100 test images. In both splits the labels are in the order 0, 1, ..., 9, 0, 1, ...

    Args:
        preparation: see ``mnist_exp.data.splits.prepare``.

    Raises:
        DataError: the file is damaged.
    """
    images, labels = load()
    return prepare(Labelled(images[:4000], labels[:4000]), Labelled(images[4000:], labels[4000:]), **preparation)


def load(path: Path = FILE) -> Labelled:
    """The stored digits: images (5000, 28, 28) uint8 and labels (5000,) uint8.

    Raises:
        DataError: the file is missing or does not hold these digits.
    """
    try:
        with path.open("rb") as file, np.load(file) as archive:
            digits = Labelled(archive["images"], archive["labels"])
    except Exception as error:  # zipfile, zlib and numpy have no common exception for a damaged archive
        raise DataError(f"{path}: cannot be read: {error}; install mnist-exp again") from error
    if sha256(digits) != SHA256:
        raise DataError(f"{path}: does not hold the 5,000 digits of this package; install mnist-exp again")
    return digits


def sha256(digits: Labelled) -> str:
    """The SHA-256 of digits in hexadecimal, to compare with ``SHA256``."""
    return hashlib.sha256(digits.images.tobytes() + digits.labels.tobytes()).hexdigest()
