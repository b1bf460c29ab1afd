"""Pictures of a network's errors, for W&B and ``mnist-eval``.

Drawn with Pillow, because every job of a sweep draws them and matplotlib takes twenty times as long.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

RED = (178, 34, 34)
# Colours from no errors to the most errors; above DARK, text is white.
SHADES = ((255, 245, 235), (253, 141, 60), (127, 39, 4))
DARK = 0.65


def confusion_matrix(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Image.Image:
    """Counts of labels (rows) by predictions (columns), errors shaded; logits (N, C), labels (N,)."""
    classes = logits.shape[1]
    counts = np.bincount(labels * classes + logits.argmax(axis=1), minlength=classes**2).reshape(classes, classes)
    errors = np.sqrt(np.where(np.eye(classes, dtype=bool), 0, counts))
    errors /= max(errors.max(), 1)
    cell, margin = 46, 52
    end = margin + classes * cell
    image = Image.new("RGB", (end + 8, end + 8), "white")
    draw, font, large = ImageDraw.Draw(image), ImageFont.load_default(14), ImageFont.load_default(16)
    for row, column in np.ndindex(classes, classes):
        left, top, shade = margin + column * cell, margin + row * cell, float(errors[row, column])
        draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill=_shade(shade))
        if counts[row, column]:
            ink, place = "white" if shade > DARK else "black", (left + cell / 2, top + cell / 2)
            draw.text(place, str(counts[row, column]), fill=ink, font=font, anchor="mm")
    for number in range(classes):
        middle = margin + (number + 0.5) * cell
        draw.text((middle, margin - 14), str(number), fill="black", font=font, anchor="mm")
        draw.text((margin - 14, middle), str(number), fill="black", font=font, anchor="mm")
    draw.text(((margin + end) / 2, 14), f"predicted, of {len(labels):,} images", fill="black", font=large, anchor="mm")
    upright = Image.new("RGB", (60, 24), "white")
    ImageDraw.Draw(upright).text((30, 12), "label", fill="black", font=large, anchor="mm")
    image.paste(upright.rotate(90, expand=True), (2, (margin + end) // 2 - 30))
    return image


def worst_digits(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    worst: NDArray[np.int64],
    worst_images: NDArray[np.uint8],
    rows: int = 4,
    columns: int = 8,
) -> Image.Image:
    """Test images with the lowest probability of their label, with label, prediction and its probability; errors in red.

    Args:
        logits, labels: of the whole test set, (N, C) and (N,).
        worst, worst_images: indices (K,) and pixels (K, S, S), or (K, S, S, 3) in colour, worst first.
    """
    side, wide, high = 98, 116, 134
    image = Image.new("RGB", (columns * wide, rows * high), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for place, (index, pixels) in enumerate(zip(worst[: rows * columns], worst_images, strict=False)):
        left, bottom = place % columns * wide, (place // columns + 1) * high
        digit = picture_of(pixels).resize((side, side), Image.Resampling.NEAREST)
        image.paste(digit, (left + (wide - side) // 2, bottom - side - 4))
        odds = np.exp(logits[index] - logits[index].max())
        predicted = int(odds.argmax())
        caption = f"{labels[index]} as {predicted}, {odds[predicted] / odds.sum():.0%}"
        ink = RED if predicted != labels[index] else "black"
        draw.text((left + wide / 2, bottom - side - 20), caption, fill=ink, font=font, anchor="mm")
    return image


def picture_of(pixels: NDArray[np.uint8]) -> Image.Image:
    """A picture of an image (S, S), inverted to dark ink on white, or of an image (S, S, 3) in its colours."""
    return Image.fromarray(pixels if pixels.ndim == 3 else 255 - pixels)


def _shade(share: float) -> tuple[int, int, int]:
    red, green, blue = (round(float(np.interp(share, (0, 0.5, 1), channel))) for channel in zip(*SHADES, strict=True))
    return red, green, blue
