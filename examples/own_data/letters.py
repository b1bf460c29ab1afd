"""The letters A to Z, drawn in Pillow's default font: a data set of 26 classes.

    mnist-train --config-dir conf data=letters

A data set is a function that returns four arrays; its arguments are keys of ``conf/data/letters.yaml``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont


def letters(
    *, train_per_letter: int, test_per_letter: int, image_size: int = 24, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Letters of random sizes at random positions.

    Returns:
        training images (N, S, S), uint8, 0 is background; their labels (N,), 0 to 25; test images; their labels.
    """
    random = np.random.default_rng(seed)
    train_labels = np.tile(np.arange(26), train_per_letter)
    test_labels = np.tile(np.arange(26), test_per_letter)
    train_images, test_images = (
        np.stack([draw(chr(ord("A") + label), image_size, random) for label in labels])
        for labels in (train_labels, test_labels)
    )
    return train_images, train_labels, test_images, test_labels


def draw(letter: str, size: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """One letter, white on black: (``size``, ``size``)."""
    image = Image.new("L", (size, size))
    font = ImageFont.load_default(size * random.uniform(0.6, 0.9))
    place = size / 2 + random.uniform(-0.1, 0.1, 2) * size
    ImageDraw.Draw(image).text((float(place[0]), float(place[1])), letter, fill=255, font=font, anchor="mm")
    return np.asarray(image)
