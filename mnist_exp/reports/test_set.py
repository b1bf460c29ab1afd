"""The answers of all runs to the images of one test set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class HardDigit:
    """A test image that many runs get wrong.

    Attributes:
        index: in the test set. label: its class.
        pixels: (S, S) uint8, ink bright, or (S, S, 3) in colour.
        wrong: number of runs that get it wrong. runs: number of all runs.
        probabilities: (C,), mean over runs.
    """

    index: int
    label: int
    pixels: NDArray[np.uint8]
    wrong: int
    runs: int
    probabilities: NDArray[np.float64]


class TestSet:
    """Wrong answers and probabilities, summed over runs.

    Args:
        labels: (N,). classes: their number C.
    """

    def __init__(self, labels: NDArray[np.int64], classes: int) -> None:
        self.labels = labels
        self.runs = 0
        self.wrong = np.zeros(len(labels), dtype=np.int64)
        self.probabilities = np.zeros((len(labels), classes))
        self.pixels: dict[int, NDArray[np.uint8]] = {}

    def add(
        self, logits: NDArray[np.float32], worst: NDArray[np.int64] | None, images: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Add a run.

        Args:
            logits: (N, C).
            worst: indices (K,) of test images. images: their pixels (K, S, S) or (K, S, S, 3).

        Returns:
            probabilities (N, C) and predictions (N,).
        """
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        predicted = logits.argmax(axis=1)
        self.runs += 1
        self.wrong += predicted != self.labels
        self.probabilities += probabilities
        if worst is not None and images is not None:
            for index, pixels in zip(worst.tolist(), images, strict=False):
                # One run may have seen the images enlarged to 32x32.
                if index not in self.pixels or pixels.size < self.pixels[index].size:
                    self.pixels[index] = pixels
        return probabilities, predicted

    def hardest(self, count: int = 30) -> list[HardDigit]:
        """The images that most runs get wrong; among equals, those with the lowest probability of the label first."""
        mean = self.probabilities / max(self.runs, 1)
        own = mean[np.arange(len(self.labels)), self.labels]
        order = [int(index) for index in np.lexsort((own, -self.wrong)) if self.wrong[index]]
        return [
            HardDigit(i, int(self.labels[i]), self.pixels[i], int(self.wrong[i]), self.runs, mean[i])
            for i in [index for index in order if index in self.pixels][:count]
        ]
