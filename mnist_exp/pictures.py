"""Errors of a network as pictures, for W&B and ``mnist-eval``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def confusion_matrix(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Image.Image:
    """Counts of labels (rows) by predictions (columns), errors shaded; logits (N, C), labels (N,)."""
    classes = logits.shape[1]
    counts = np.bincount(labels * classes + logits.argmax(axis=1), minlength=classes**2).reshape(classes, classes)
    errors = np.where(np.eye(classes, dtype=bool), 0, counts)
    figure = _figure(5.2, 5.2)
    axes = figure.add_axes((0.1, 0.1, 0.88, 0.88))
    axes.imshow(np.sqrt(errors), cmap="Oranges")
    for row, column in np.argwhere(counts):
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8)
    axes.set(xlabel="predicted", ylabel="label", xticks=range(classes), yticks=range(classes))
    return _drawn(figure)


def worst_digits(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    worst: NDArray[np.int64],
    worst_images: NDArray[np.uint8],
    rows: int = 4,
    columns: int = 8,
) -> Image.Image:
    """Test images whose label got the least probability, with label, prediction and its probability; errors in red.

    Args:
        logits, labels: of the whole test set, (N, C) and (N,).
        worst, worst_images: indices (K,) and pixels (K, S, S), worst first.
    """
    # One pair of axes, not one for each digit: these would take ten times as long to draw.
    size = worst_images.shape[-1]
    wide, high = round(size * 1.15), round(size * 1.4)
    sheet = np.zeros((rows * high, columns * wide), dtype=np.uint8)
    figure = _figure(columns * 1.15, rows * 1.4)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for place, (index, pixels) in enumerate(zip(worst[: rows * columns], worst_images, strict=False)):
        bottom, left = (place // columns + 1) * high, place % columns * wide + (wide - size) // 2
        sheet[bottom - size : bottom, left : left + size] = pixels
        shares = np.exp(logits[index] - logits[index].max())
        predicted = int(shares.argmax())
        axes.text(
            left + size / 2,
            bottom - size - 1,
            f"{labels[index]} as {predicted}, {shares[predicted] / shares.sum():.0%}",
            color="firebrick" if predicted != labels[index] else "black",
            ha="center",
            fontsize=8,
        )
    axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=255, aspect="auto")
    return _drawn(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure


def _drawn(figure: Any) -> Image.Image:
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
