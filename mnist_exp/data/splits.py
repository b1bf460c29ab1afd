"""From stored images to tensors: splits, resizing, normalisation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from mnist_exp.data.files import DataError, Labelled


@dataclass(frozen=True, eq=False)
class Split:
    """``images`` (N, C, S, S) float32, normalised; ``labels`` (N,) int64, 0 to one less than the number of classes."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set.

    Attributes:
        background: a normalised black pixel, (0 - mean) / std, in float32; (C, 1, 1) if there are several channels.
        digest: of the stored images before the split, see ``content_digest``; None if it was not computed.
        mean, std: used for the normalisation: one number, or one for each channel.
    """

    train: Split
    val: Split | None
    test: Split
    background: float | Tensor
    digest: str | None = None
    mean: float | list[float] = 0.0
    std: float | list[float] = 1.0

    def to(self, device: torch.device | str) -> Dataset:
        val = None if self.val is None else self.val.to(device)
        background = self.background.to(device) if isinstance(self.background, Tensor) else self.background
        return replace(self, train=self.train.to(device), val=val, test=self.test.to(device), background=background)


class Preparation(TypedDict, total=False):
    """The arguments of every loader apart from the path; defaults in ``prepare``."""

    image_size: int | None
    channels: int
    num_classes: int
    mean: float | list[float] | None
    std: float | list[float] | None
    val_size: int
    split_seed: int
    limit: int | None
    swap_splits: bool


def prepare(
    train: Labelled,
    test: Labelled,
    *,
    image_size: int | None = 28,
    channels: int = 1,
    num_classes: int = 10,
    mean: float | list[float] | None = 0.1307,
    std: float | list[float] | None = 0.3081,
    val_size: int = 0,
    split_seed: int = 0,
    limit: int | None = None,
    swap_splits: bool = False,
) -> Dataset:
    """Split, resize and normalise.

    Args:
        train: the official training images.
        test: the official test images; never split, never limited.
        image_size: height and width in pixels; images of another size are resized like torchvision's ``Resize``:
            bilinear, antialiased, rounded to uint8. None: the stored size.
        channels: of the images; 1 is grey, 3 is colour.
        num_classes: labels are 0 to ``num_classes`` - 1.
        mean: subtracted from pixels that are scaled to [0, 1]: a number, or one for each channel. None: the mean of the
            stored training images of this run, for each channel.
        std: divisor of the result; positive. None: the standard deviation of the same images.
        val_size: training images held out for validation, stratified by label.
        split_seed: seed of the choice; not negative.
        limit: training images kept after that, stratified by label; a smaller limit keeps a subset of a larger one's.
        swap_splits: train on the test digits and test on the training digits.

    Raises:
        DataError: a setting is out of range, does not match the images, or needs more images than there are.
    """
    _check_ranges(image_size, std, split_seed)
    check_images(train, test, channels, num_classes)
    digest = content_digest(train, test)
    if swap_splits:
        train, test = test, train
    total = len(train.labels)
    kept = _training_size(total, val_size, limit)

    order = stratified_order(train.labels, split_seed) if val_size or limit is not None else np.arange(total)
    trained_on = np.sort(order[val_size : val_size + kept])
    if mean is None or std is None:
        own_mean, own_std = pixel_statistics(train.images[trained_on])
        mean, std = own_mean if mean is None else mean, own_std if std is None else std
    options: dict[str, Any] = {"image_size": image_size, "mean": mean, "std": std}

    def split(stored: Labelled, chosen: NDArray[np.intp] | slice = slice(None)) -> Split:
        labels = torch.from_numpy(stored.labels[chosen].astype(np.int64))
        return Split(as_input(stored.images[chosen], **options), labels)

    background = as_input(np.zeros_like(train.images[:1, :1, :1]), **{**options, "image_size": None})[0]
    return Dataset(
        train=split(train, trained_on),
        val=split(train, np.sort(order[:val_size])) if val_size else None,
        test=split(test),
        background=background.item() if channels == 1 else background,
        digest=digest,
        mean=mean,
        std=std,
    )


def _check_ranges(image_size: int | None, std: float | Sequence[float] | None, split_seed: int) -> None:
    if image_size is not None and image_size < 1:
        raise DataError(f"data.image_size={image_size} is not positive")
    if std is not None and not np.all(np.array(std) > 0):
        raise DataError(f"data.std={std} is not positive")
    if split_seed < 0:
        raise DataError(f"data.split_seed={split_seed} is negative")


def _training_size(total: int, val_size: int, limit: int | None) -> int:
    """The number of images to train on, of ``total`` training images.

    Raises:
        DataError: ``val_size`` or ``limit`` leaves none or asks for more than there are.
    """
    if not 0 <= val_size < total:
        raise DataError(f"data.val_size={val_size} is not in 0..{total - 1}: there are {total} training images")
    if limit is None:
        return total - val_size
    if not 1 <= limit <= total - val_size:
        raise DataError(
            f"data.limit={limit} is not in 1..{total - val_size}: {total} training images less data.val_size={val_size}"
        )
    return limit


def labelled(returned: Any, num_classes: int) -> tuple[Labelled, Labelled]:
    """The training and the test images that a user's loader returned.

    Args:
        returned: four arrays, or an object with attributes of their names: ``train_images``, ``train_labels``,
            ``test_images``, ``test_labels``.
        num_classes: greatest label plus one; labels are stored as uint8 up to 256 classes, else as int64.

    Raises:
        DataError: it is something else; images are not uint8, (N, H, W) or (N, H, W, C); or labels are not integers in range.
    """
    names = ("train_images", "train_labels", "test_images", "test_labels")
    if not isinstance(returned, tuple | list):
        returned = [getattr(returned, name, None) for name in names]
    if len(returned) != len(names) or any(part is None for part in returned):
        raise DataError(f"returned something else than four arrays: {', '.join(names)}")
    parts = [np.asarray(part) for part in returned]
    for name, part in zip(names, parts, strict=True):
        if name.endswith("images"):
            if part.dtype != np.uint8:
                raise DataError(f"{name} are {part.dtype}; images are uint8, from 0 to 255")
            if part.ndim not in {3, 4}:
                raise DataError(f"{name} have the shape {part.shape}; it should be (N, S, S) or (N, S, S, channels)")
        elif part.ndim != 1 or part.dtype.kind not in "iu":
            raise DataError(f"{name} are {part.dtype} of the shape {part.shape}; labels are integers of the shape (N,)")
        elif part.size and not 0 <= part.min() <= part.max() < num_classes:
            wrong = int(np.flatnonzero((part < 0) | (part >= num_classes))[0])
            raise DataError(
                f"{name} hold {part[wrong]} at index {wrong}; with data.num_classes={num_classes} they are 0 to {num_classes - 1}"
            )
    kind = np.uint8 if num_classes <= 256 else np.int64
    train_images, train_labels, test_images, test_labels = parts
    return Labelled(train_images, train_labels.astype(kind)), Labelled(test_images, test_labels.astype(kind))


def check_images(train: Labelled, test: Labelled, channels: int, num_classes: int) -> None:
    """Check images and labels of both splits against the settings.

    Raises:
        DataError: sizes or channels differ, images are not square, there are none, or a label is out of range.
    """
    for name, part in (("training", train), ("test", test)):
        if len(part.images) == 0 or len(part.images) != len(part.labels):
            raise DataError(f"there are {len(part.images)} {name} images and {len(part.labels)} labels of them")
        height, width, *rest = part.images.shape[1:]
        own = rest[0] if rest else 1
        if height != width:
            raise DataError(f"the {name} images have {height}x{width} pixels; only square ones can be used")
        if own != channels:
            hint = f"type data.channels={own}" if own in {1, 3} else "1 and 3 are possible, the last of the dimensions"
            raise DataError(f"data.channels={channels}, and the {name} images have {own}; {hint}")
        if (largest := part.labels.max()) >= num_classes:
            raise DataError(f"data.num_classes={num_classes}, and the {name} images have the label {largest}")
    if train.images.shape[1:3] != test.images.shape[1:3]:
        sizes = " and ".join(f"{part.images.shape[1]}x{part.images.shape[2]}" for part in (train, test))
        raise DataError(f"training and test images have different sizes: {sizes} pixels")


def pixel_statistics(images: NDArray[np.uint8]) -> tuple[float | list[float], float | list[float]]:
    """Mean and standard deviation of pixels scaled to [0, 1], exact to rounding: numbers, or lists if there are channels."""
    by_channel = images.reshape(-1, images.shape[3]) if images.ndim == 4 else images.reshape(-1, 1)
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in by_channel.T:
        shares = np.bincount(channel, minlength=256) / len(channel)
        means.append(float(shares @ levels))
        stds.append(float(np.sqrt(shares @ (levels - means[-1]) ** 2)) or 1.0)  # 1 if all pixels are equal
    return (means[0], stds[0]) if len(means) == 1 else (means, stds)


def content_digest(train: Labelled, test: Labelled) -> str:
    """16 hexadecimal digits (the first of a SHA-256) of all images and labels; independent of the file format."""
    digest = hashlib.sha256()
    for part in (*train, *test):
        digest.update(str(part.shape).encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:16]


def as_input(
    images: NDArray[np.uint8],
    *,
    image_size: int | None,
    mean: float | Sequence[float],
    std: float | Sequence[float],
) -> Tensor:
    """The network's input, (N, C, S, S) float32, from stored images (N, H, W) or (N, H, W, C)."""
    pixels = torch.from_numpy(np.array(images))
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    if image_size is not None and pixels.shape[2:] != (image_size, image_size):
        # Bit-identical to torchvision (uint8 tensors) and to Pillow.
        pixels = interpolate(pixels, size=(image_size, image_size), mode="bilinear", antialias=True)
    return normalised(pixels.to(torch.float32).div_(255), mean, std)


def normalised(pixels: Tensor, mean: float | Sequence[float], std: float | Sequence[float]) -> Tensor:
    """``pixels`` (N, C, S, S), floating point in [0, 1], minus ``mean`` and divided by ``std``, in place."""
    return pixels.sub_(_for_channels(mean, pixels)).div_(_for_channels(std, pixels))


def pixels_of(images: Tensor, mean: float | Sequence[float], std: float | Sequence[float]) -> NDArray[np.uint8]:
    """Undo the normalisation of images (N, C, S, S): (N, S, S), or (N, S, S, 3) for three channels; uint8."""
    shown = (
        (images * _for_channels(std, images) + _for_channels(mean, images)).mul(255).round().clamp(0, 255).byte().cpu()
    )
    found: NDArray[np.uint8] = (shown[:, 0] if shown.shape[1] == 1 else shown.permute(0, 2, 3, 1)).numpy()
    return found


def _for_channels(value: float | Sequence[float], images: Tensor) -> float | Tensor:
    return images.new_tensor(value).view(1, -1, 1, 1) if isinstance(value, Sequence) else value


def stratified_order(labels: NDArray[np.integer[Any]], seed: int) -> NDArray[np.intp]:
    """All indices (N,), shuffled so that every contiguous part has the labels in their overall proportions.

    The k-th of the n images of a class, counted in a random order, gets position (k + 1/2) / n, so any m
    neighbours contain m * n / N of that class, to within two if classes have about the same size.
    """
    # RandomState, because its stream never changes (NumPy Enhancement Proposal 19); Generator's may.
    random = np.random.RandomState([seed % 2**32, seed // 2**32])
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        position[random.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((labels, position))
