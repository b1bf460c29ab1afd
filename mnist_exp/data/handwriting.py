"""Digits from anywhere, made to look like MNIST's."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mnist_exp.data.files import DataError, read_bytes

SUFFIXES = (".png", ".jpg", ".jpeg")
LARGEST = 50_000_000  # pixels; a photograph has fewer


def read_digit(path: Path) -> NDArray[np.uint8]:
    """The digit in a PNG or JPEG file of any size, as ``like_mnist`` returns it.

    Raises:
        DataError: the file cannot be read, is neither PNG nor JPEG, or shows nothing.
    """
    try:
        return like_mnist(grey(read_bytes(path)))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def grey(content: bytes) -> NDArray[np.uint8]:
    """Brightness (H, W) of an image file, upright, what is transparent on white.

    Raises:
        ValueError: not a whole PNG or JPEG, or larger than ``LARGEST``.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["PNG", "JPEG"]) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{image.width}x{image.height} pixels are too many")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits, which conversion would cut off instead of scaling
                return np.asarray(np.asarray(upright, dtype=np.int64) >> 8, dtype=np.uint8)
            with_alpha = upright.convert("RGBA")
            paper = Image.new("RGBA", with_alpha.size, "white")
            return np.asarray(Image.alpha_composite(paper, with_alpha).convert("L"))
    except ValueError:
        raise
    except Exception as error:  # Pillow has no common base: OSError, SyntaxError, zlib.error, struct.error ...
        raise ValueError("not a whole PNG or JPEG image") from error


def like_mnist(brightness: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A digit (28, 28), ink bright on black, from a picture (H, W) of one, dark on light or light on dark.

    As MNIST was made (LeCun et al. 1998, section III.A): scaled to fit 20x20 pixels, proportions kept, with grey levels
    from the reduction, and placed so that its centre of mass is at the centre of 28x28. What is paper is read from the
    picture's edge; ink is what differs from it, by more than the paper differs from itself.

    Raises:
        ValueError: the picture shows nothing.
    """
    if min(brightness.shape) < 2:
        raise ValueError("shows no digit: smaller than 2x2 pixels")
    values = brightness.astype(np.float64)
    edge = np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])
    paper = float(np.median(edge))
    noise = 3 * float(np.median(np.abs(edge - paper))) * 1.4826  # deviation of a normal distribution from its median
    side = 1.0 if values.max() - paper >= paper - values.min() else -1.0  # light on dark, or dark on light
    ink = np.clip(side * (values - paper) - noise, 0, None)
    if ink.max() < 25:
        raise ValueError("shows no digit: it is of one brightness")
    ink /= ink.max()
    rows, columns = np.nonzero(ink.max(axis=1) > 0.1)[0], np.nonzero(ink.max(axis=0) > 0.1)[0]
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = 20 / max(box.shape)
    height, width = (max(1, round(length * scale)) for length in box.shape)
    picture = Image.fromarray(box.astype(np.float32))
    small = np.asarray(
        picture.resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR)
    )
    small = np.clip(small / small.max(), 0, 1)
    total = small.sum()
    # Where the first pixel reaches from 0 to 1, the centre of mass of every MNIST digit is in [14, 15).
    y = float((small.sum(axis=1) * (np.arange(height) + 0.5)).sum() / total)
    x = float((small.sum(axis=0) * (np.arange(width) + 0.5)).sum() / total)
    top = min(max(math.ceil(14 - y), 0), 28 - height)
    left = min(max(math.ceil(14 - x), 0), 28 - width)
    digit = np.zeros((28, 28), dtype=np.uint8)
    digit[top : top + height, left : left + width] = np.round(255 * small)
    return digit
