"""Errors of a network as pictures, for W&B."""

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
    axes = figure.subplots()
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
    """Test images whose label got the least probability, with label, prediction and its probability.

    Args:
        worst, worst_images: indices (K,) and pixels (K, S, S), worst first.
    """
    figure = _figure(columns * 1.1, rows * 1.35)
    for axes in figure.subplots(rows, columns).flat:
        axes.set_axis_off()
    for axes, index, pixels in zip(figure.axes, worst, worst_images, strict=False):
        shares = np.exp(logits[index] - logits[index].max())
        predicted = int(shares.argmax())
        axes.imshow(pixels, cmap="gray_r", vmin=0, vmax=255)
        axes.set_title(f"{labels[index]} as {predicted}, {shares[predicted] / shares.sum():.0%}", fontsize=7)
    return _drawn(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _drawn(figure: Any) -> Image.Image:
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
