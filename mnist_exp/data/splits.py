"""From stored digits to the tensors that are trained on: splits, resize, normalisation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from mnist_exp.data.files import DataError, Labelled


@dataclass(frozen=True, eq=False)
class Split:
    """``images`` (N, 1, S, S) float32, normalised; ``labels`` (N,) int64, 0 to 9."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Digits:
    """A data set.

    Attributes:
        background: what a black pixel becomes: (0 - mean) / std, in float32.
        digest: of the stored digits before they are split, see ``content_digest``; None where nobody computed it.
    """

    train: Split
    val: Split | None
    test: Split
    background: float
    digest: str | None = None

    def to(self, device: torch.device | str) -> Digits:
        val = None if self.val is None else self.val.to(device)
        return replace(self, train=self.train.to(device), val=val, test=self.test.to(device))


class Preparation(TypedDict, total=False):
    """What every loader takes beside the place where the digits lie; defaults in ``prepare``."""

    image_size: int
    mean: float
    std: float
    val_size: int
    split_seed: int
    limit: int | None
    swap_splits: bool


def prepare(
    train: Labelled,
    test: Labelled,
    *,
    image_size: int = 28,
    mean: float = 0.1307,
    std: float = 0.3081,
    val_size: int = 0,
    split_seed: int = 0,
    limit: int | None = None,
    swap_splits: bool = False,
) -> Digits:
    """Split, resize and normalise.

    Args:
        train: the official training digits.
        test: the official test digits; never split, never limited.
        image_size: pixels a side, 28 or 32; 32 is torchvision's ``Resize``: bilinear, antialiased, rounded to uint8.
        mean: subtracted from pixels that are scaled to [0, 1].
        std: what the difference is divided by; positive.
        val_size: training images held out for validation, stratified by label.
        split_seed: chooses which; not negative.
        limit: training images kept after that, stratified by label; a smaller limit keeps some of a larger one's.
        swap_splits: train on the test digits and test on the training digits.

    Raises:
        DataError: a setting is out of range, or asks for more images than there are.
    """
    if image_size not in (28, 32):
        raise DataError(f"data.image_size={image_size} is not 28 or 32")
    if not std > 0:
        raise DataError(f"data.std={std} is not positive")
    if split_seed < 0:
        raise DataError(f"data.split_seed={split_seed} is negative")
    digest = content_digest(train, test)
    if swap_splits:
        train, test = test, train
    total = len(train.labels)
    if not 0 <= val_size < total:
        raise DataError(f"data.val_size={val_size} is not in 0..{total - 1}: there are {total} training images")
    kept = total - val_size if limit is None else limit
    if not 1 <= kept <= total - val_size:
        raise DataError(
            f"data.limit={limit} is not in 1..{total - val_size}: {total} training images less data.val_size={val_size}"
        )

    def split(digits: Labelled, chosen: NDArray[np.intp] | slice = slice(None)) -> Split:
        if not isinstance(chosen, slice):
            chosen = np.sort(chosen)
        images = as_input(digits.images[chosen], image_size=image_size, mean=mean, std=std)
        return Split(images, torch.from_numpy(digits.labels[chosen].astype(np.int64)))

    order = stratified_order(train.labels, split_seed) if val_size or limit is not None else np.arange(total)
    return Digits(
        train=split(train, order[val_size : val_size + kept]),
        val=split(train, order[:val_size]) if val_size else None,
        test=split(test),
        background=as_input(np.zeros((1, 28, 28), dtype=np.uint8), image_size=28, mean=mean, std=std)[
            0, 0, 0, 0
        ].item(),
        digest=digest,
    )


def content_digest(train: Labelled, test: Labelled) -> str:
    """16 hexadecimal digits (the first of a SHA-256) of all images and labels, whatever files they come from."""
    digest = hashlib.sha256()
    for part in (*train, *test):
        digest.update(str(part.shape).encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:16]


def as_input(images: NDArray[np.uint8], *, image_size: int, mean: float, std: float) -> Tensor:
    """What a network sees, (N, 1, S, S) float32, of digits (N, 28, 28) as they are stored."""
    pixels = torch.from_numpy(np.array(images)).unsqueeze(1)
    if image_size != 28:
        # As torchvision resizes uint8 tensors and, to the bit, as Pillow resizes images.
        pixels = interpolate(pixels, size=(image_size, image_size), mode="bilinear", antialias=True)
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def stratified_order(labels: NDArray[np.uint8], seed: int) -> NDArray[np.intp]:
    """All indices (N,), shuffled so that every run of neighbours holds the labels in their overall proportions.

    The k-th of the n images of a class, counted in a random order, is put at (k + 1/2) / n of the way, so among any m
    neighbours there are m * n / N of that class, to within two where classes are of about the same size.
    """
    # RandomState, because its stream is frozen for ever (NumPy Enhancement Proposal 19); Generator's is not.
    random = np.random.RandomState([seed % 2**32, seed // 2**32])
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        position[random.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((labels, position))
