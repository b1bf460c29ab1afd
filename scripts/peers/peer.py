"""What all candidates share: their command line, the digits, and the line that they print for ``benchmark.py peers``.

A candidate is a program with three arguments: a folder that holds the four IDX files in ``MNIST/raw``, ``lenet5`` or
``mlp``, and the number of epochs. Every epoch trains on all training images in an order of its own, in batches of 64,
by SGD with learning rate 0.01 and momentum 0.9 on the mean cross entropy; then the test images are classified.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

BATCH, EVAL_BATCH, RATE, MOMENTUM = 64, 1000, 0.01, 0.9
MEAN, STD = 0.1307, 0.3081  # of the pixels of MNIST's training images


def arguments() -> tuple[Path, str, int]:
    """Folder of the data, network, number of epochs."""
    folder, network, epochs = sys.argv[1:4]
    return Path(folder), network, int(epochs)


def digits(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28), float32, normalised, and labels (N,), int64, of ``train`` or ``t10k``."""
    raw = folder / "MNIST" / "raw"
    pixels = np.fromfile(raw / f"{split}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 28, 28)
    labels = np.fromfile(raw / f"{split}-labels-idx1-ubyte", np.uint8)[8:]
    images = pixels.astype(np.float32)
    images /= 255
    images -= MEAN
    images /= STD
    return images, labels.astype(np.int64)


def report(epochs: list[dict[str, float]], compile_seconds: float | None = None) -> None:
    """Print the results as one line of JSON, the last line of the program.

    Args:
        epochs: of each ``train_seconds`` (without the test images), ``train_loss`` (mean of the epoch, in nats) and
            ``test_accuracy`` (a fraction).
        compile_seconds: spent on compiling before the first epoch, if the framework compiles.
    """
    print(json.dumps({"epochs": epochs, "compile_seconds": compile_seconds}))
