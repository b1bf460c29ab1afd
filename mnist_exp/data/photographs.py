"""Decoding of image files to colours."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mnist_exp.data.files import DataError, read_bytes

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # of those that Pillow can read
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
LARGEST = 120_000_000  # pixels; photographs of telephones have up to 108 million
MAX_SIDE = 2000  # pixels of the longer side; larger pictures are reduced

# Signatures of file formats, (offset, bytes), for the error message when a file cannot be decoded.
READ: dict[str, tuple[int, bytes | tuple[bytes, ...]]] = {
    "PNG": (0, b"\x89PNG"),
    "JPEG": (0, b"\xff\xd8\xff"),
    "WebP": (8, b"WEBP"),
    "GIF": (0, b"GIF8"),
    "BMP": (0, b"BM"),
    "TIFF": (0, (b"II*\0", b"MM\0*")),
}
NOT_READ: dict[str, tuple[int, bytes | tuple[bytes, ...]]] = {
    "HEIC": (4, (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1")),
    "AVIF": (4, b"ftypavi"),
    "JPEG XL": (0, (b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    "JPEG 2000": (0, b"\0\0\0\x0cjP  "),
    "PDF": (0, b"%PDF"),
    "SVG": (0, (b"<svg", b"<?xml")),
    "Photoshop": (0, b"8BPS"),
    "ICO": (0, b"\0\0\1\0"),
    "PNM": (0, (b"P5", b"P6")),
}


def read_picture(path: Path) -> NDArray[np.float32]:
    """The colours (H, W, 3) of an image file, see ``decoded``; the suffix of its name has no effect.

    Raises:
        DataError: the file cannot be read, or ``decoded`` refuses it.
    """
    try:
        return decoded(read_bytes(path))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def decoded(content: bytes, largest: int = LARGEST) -> NDArray[np.float32]:
    """Red, green and blue (H, W, 3), 0 to 255, of an image file, upright, its longer side at most ``MAX_SIDE`` pixels.

    Args:
        largest: greatest number of pixels; decoding takes up to 16 bytes for each.

    Raises:
        ValueError: it is not a picture, has an unsupported format, is damaged, larger than ``largest``, or all transparent.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ``largest`` is checked below
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"has more than {largest // 1_000_000} million pixels") from error
    except Exception as error:  # Pillow has no common exception: OSError, SyntaxError, zlib.error, struct.error ...
        raise ValueError(_reason(content)) from error
    with image:
        if image.width * image.height > largest:
            raise ValueError(f"has more than {largest // 1_000_000} million pixels: {image.width}x{image.height}")
        try:
            image.draft(
                "RGB", (MAX_SIDE, MAX_SIDE)
            )  # faster: a large JPEG is decoded at a half, a quarter or an eighth of its size
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _on_background(_reduced(image))
        except _Transparent as error:
            raise ValueError("is transparent everywhere") from error
        except Exception as error:
            raise ValueError(_reason(content)) from error


class _Transparent(Exception):
    pass


def _reason(content: bytes) -> str:
    """Why a file cannot be decoded, by its first bytes."""
    if not content:
        return "is an empty file"
    for name, (offset, start) in (READ | NOT_READ).items():
        if content[offset:].startswith(start):
            if name in READ:
                return f"is a damaged or incomplete {name} picture"
            return f"is a {name} file, which is not read; save it as PNG or JPEG"
    return f"is not a picture in a format that is read ({', '.join(READ)})"


def _reduced(image: Image.Image) -> NDArray[np.float32]:
    """Colours and opacity (H, W, 4), 0 to 255; a large picture is reduced to means over squares of pixels."""
    factor = math.ceil(max(image.size) / MAX_SIDE)
    if image.mode.startswith(("I", "F")):  # 16 bits and more, which Pillow would clip instead of scaling
        values = np.asarray(image)
        height, width = (length // factor for length in values.shape)
        squares = values[: height * factor, : width * factor].reshape(height, factor, width, factor)
        grey = squares.mean(axis=(1, 3), dtype=np.float32)
        grey *= 255 / max(65535.0 if image.mode != "F" else 255.0, float(grey.max()))
        return np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    step = 200 * factor  # rows at a time, because each conversion copies
    boxes = [(0, top, image.width, min(top + step, image.height)) for top in range(0, image.height, step)]
    return np.vstack([_means(image.crop(box), factor) for box in boxes])


def _means(image: Image.Image, factor: int) -> NDArray[np.float32]:
    """Colours and opacity (H, W, 4) of an image of 8 bits a channel, reduced by ``factor``."""
    if image.has_transparency_data:  # also if a palette entry or one colour is transparent
        image = image.convert("RGBA")
    elif image.mode not in {"L", "RGB", "CMYK"}:
        image = image.convert("L" if image.mode == "1" else "RGB")
    small = image.reduce(factor) if factor > 1 else image
    return np.asarray(small.convert("RGBA"), dtype=np.float32)


def _on_background(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours (H, W, 3) of a picture (H, W, 4), with a background of good contrast behind its transparent pixels.

    Ink alone gets white or black, whichever differs more from it; a mostly opaque picture, for example one with round
    corners, gets its own median colour.
    """
    colours, opacity = pixels[..., :3], pixels[..., 3:] / 255
    if opacity.min() == 1:
        return colours
    visible = colours[opacity[..., 0] > 0.5] if opacity.max() > 0.5 else colours[opacity[..., 0] > 0]
    if not len(visible):
        raise _Transparent
    brightness = visible.mean(axis=1)
    solid = len(visible) > 0.6 * opacity.size and np.ptp(np.percentile(brightness, [2, 98])) > 40
    ground = np.median(visible, axis=0) if solid else np.full(3, 0 if brightness.mean() > 127 else 255)
    return (colours * opacity + ground * (1 - opacity)).astype(np.float32)
