"""Make mnist_exp/data/mnist5k.npz, the images of data=mnist5k, from MNIST's training set.

    MNIST_DIR=FOLDER python scripts/make_mnist5k.py

It has the first 500 images of each class, in the order 0, 1, ..., 9, 0, 1, ... The file is the same, byte for byte, every time.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from mnist_exp.cli.ending import exit_status
from mnist_exp.data import DataError, idx_folder
from mnist_exp.data.embedded import FILE, SHA256, sha256
from mnist_exp.data.files import Labelled
from mnist_exp.errors import UsageError
from mnist_exp.runs import write_atomically

PER_CLASS = 500


@exit_status("make_mnist5k.py")
def main(output: Path = FILE) -> None:
    """Write the file; exit status 2 if MNIST_DIR is not set, or its files are not MNIST's."""
    if not (folder := os.environ.get("MNIST_DIR")):
        raise UsageError("set MNIST_DIR to a folder with the four IDX files of MNIST")
    try:
        train = idx_folder(root=folder, download=None, mean=0.0, std=1.0).train
    except DataError as error:
        raise UsageError(str(error)) from error
    labels = train.labels.numpy().astype(np.uint8)
    first = np.stack([np.flatnonzero(labels == digit)[:PER_CLASS] for digit in range(10)], axis=1).ravel()
    pixels = (train.images[first, 0] * 255).round().numpy().astype(np.uint8)
    digits = Labelled(pixels, labels[first])
    if sha256(digits) != SHA256:
        raise UsageError(f"{folder} does not hold MNIST's training set")
    content = io.BytesIO()
    np.savez_compressed(content, images=digits.images, labels=digits.labels)
    write_atomically(output, content.getvalue())


if __name__ == "__main__":
    main()
