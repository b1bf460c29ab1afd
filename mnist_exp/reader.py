"""Read trained networks from run directories. Importing this module imports torch."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mnist_exp import native
from mnist_exp.components import build_model
from mnist_exp.config import Data, OwnData
from mnist_exp.data.splits import as_input
from mnist_exp.errors import UsageError
from mnist_exp.runs import Run, RunDirectoryError, read_run
from mnist_exp.runs.files import exists
from mnist_exp.runs.reading import read_predictions
from mnist_exp.training import evaluate, fitting, load_checkpoint
from mnist_exp.trust import check_target_types


def trained_model(
    run: Run, device: torch.device, trusted: Collection[str] = (), *, kernels: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network of a run (last or best epoch, averaged weights if it has them), and the content of its checkpoint.

    Args:
        trusted: packages whose code may run besides ours.
        kernels: compute it with the native kernels if they computed the run; they call no hooks of modules.

    Raises:
        UsageError: the configuration names code that is not trusted, or a constructor refuses its arguments.
        RunDirectoryError: there is no checkpoint yet, or it cannot be read.
    """
    path, config = run.path, run.whole_config
    check_target_types(config.model_copy(update={"callbacks": {}}), trusted)  # callbacks are not built here
    checkpoint = path / "checkpoints" / f"{config.trainer.selection}.pt"
    if not exists(checkpoint, below=path):
        raise RunDirectoryError(f"{path} has no {checkpoint.relative_to(path)} yet; its status is {run.status}")
    try:
        state = load_checkpoint(checkpoint, device)
    except OSError as error:
        raise RunDirectoryError(f"{checkpoint} cannot be read: {error.strerror}") from error
    model = build_model(config).to(device)
    with fitting(checkpoint):
        model.load_state_dict(state["model"] if state["ema"] is None else state["ema"]["model"])
        if not (isinstance(state["epoch"], int) and isinstance(state["step"], int)):
            raise TypeError("epoch and step are not whole numbers")
    if kernels and run.record.backend == "native" and device.type == "cpu":
        with suppress(native.NativeUnavailable):  # PyTorch's result is the same up to rounding
            native.attach(model)
    return model, state


@dataclass(frozen=True)
class TrainingImages:
    """The appearance of a network's training images, to which a user's picture is converted.

    Attributes:
        size: side in pixels of the images that the network takes; stored images have 28.
        dark_ink: the digit is darker than the background; in MNIST it is lighter.
        box: longer side of the digit, in pixels of an image of 28 pixels; MNIST's is 20.
        other: the name of a data set without digits (Fashion-MNIST, KMNIST); None: digits, or unknown.
        own: a user's own data, which may or may not be digits.
    """

    size: int
    dark_ink: bool = False
    box: int = 20
    other: str | None = None
    own: bool = False

    def as_training_image(self, colours: NDArray[np.float32]) -> tuple[NDArray[np.uint8], str | None]:
        """Convert a picture (H, W, 3), float32, 0 to 255, to such an image.

        A grey picture of the right size is not changed, except that it is inverted if its background requires it. In any
        other picture a digit is searched for, then scaled and centred as in the training images.

        Returns:
            the image, (28, 28) or (S, S), uint8; and a warning, or None.

        Raises:
            SeveralMarks, ValueError: no digit is found, or the network was not trained on digits.
        """
        stored = self._as_stored(colours)
        if stored is not None:
            return stored, None
        if self.other:
            raise ValueError(
                f"this network was trained on {self.other}, not on digits, and takes only pictures like those: "
                f"28x28 pixels, grey; this one has {colours.shape[1]}x{colours.shape[0]}"
            )
        from mnist_exp.data.handwriting import like_mnist  # loads scipy.ndimage, which training does not need

        digit = like_mnist(colours, self.box)
        remark = "was framed as a digit, and this network was trained on data of your own" if self.own else None
        return 255 - digit if self.dark_ink else digit, remark

    def _as_stored(self, colours: NDArray[np.float32]) -> NDArray[np.uint8] | None:
        """The picture, inverted if necessary, if it has the form of a training image; else None."""
        height, width = colours.shape[:2]
        if height != width or height not in {28, self.size} or np.ptp(colours, axis=2).max() > 8:
            return None
        grey = np.round(colours.mean(axis=2)).astype(np.uint8)
        corners = np.array([grey[:2, :2], grey[:2, -2:], grey[-2:, :2], grey[-2:, -2:]])
        inverted = bool((corners < 85).all() if self.dark_ink else (corners > 170).all())
        if inverted:
            grey = 255 - grey
        return grey if self.other or self.box > 21 or is_framed(255 - grey if self.dark_ink else grey) else None


def is_framed(grey: NDArray[np.uint8]) -> bool:
    """Whether the digit of an image (S, S), light on dark, has about the position and the size of MNIST's digits."""
    side = len(grey)
    ink = grey > 25
    if not ink.any() or ink[[0, -1]].any() or ink[:, [0, -1]].any():
        return False
    mass = grey / grey.sum(dtype=np.float64)
    middle = (np.arange(side) + 0.5) * 28 / side
    centre = mass.sum(axis=1) @ middle, mass.sum(axis=0) @ middle
    return 15 <= _extent(ink) * 28 / side <= 21.5 and all(13 <= coordinate <= 15.5 for coordinate in centre)


def _extent(ink: NDArray[np.bool_]) -> int:
    """The longer side of the bounding box, in pixels."""
    return max(int(np.ptp(np.nonzero(ink.any(axis=axis))[0])) + 1 for axis in (0, 1))


def training_images(run: Run, data: Data | OwnData, size: int) -> TrainingImages:
    """Measure the 100 test images in ``predictions.npz`` of the run; without them, assume MNIST's appearance.

    Args:
        size: side in pixels of the images that the network takes.
    """
    download = data.download if isinstance(data, Data) else None
    other = download if download not in {None, "MNIST"} else None
    own = download is None and data.target != "mnist_exp.data.mnist5k"
    try:
        images = read_predictions(run.path)["worst_images"]
        edges = np.concatenate([images[:, [0, -1]].ravel(), images[:, :, [0, -1]].ravel()])
        dark_ink = bool(np.median(edges) > 127)
        shown = (255 - images if dark_ink else images) > 25
        side = float(np.median([_extent(ink) for ink in shown if ink.any()])) * 28 / images.shape[1]
    except Exception:  # absent, damaged, or of an earlier version
        return TrainingImages(size, other=other, own=own)
    return TrainingImages(size, dark_ink, 20 if side <= 21.5 else round(side), other, own)


class Classifier:
    """A trained network for pictures of digits.

    Args:
        path: run directory.
        trusted: packages whose code may run besides ours.

    Attributes:
        images: the appearance of its training images.

    Raises:
        UsageError, RunDirectoryError: ``path`` holds no trained network, or one that is not for grey images in ten classes.
    """

    def __init__(self, path: str | Path, trusted: Collection[str] = ()) -> None:
        run = read_run(path)
        data = run.whole_config.data
        if (data.channels, data.num_classes) != (1, 10):
            colours = "grey" if data.channels == 1 else "colour"
            raise UsageError(
                f"{path} has {data.num_classes} classes of {colours} images; pictures are classified with networks for grey "
                "images in 10 classes only"
            )
        self.path = run.path
        self.name = str(run.record.name or self.path.name)
        self._model, _ = trained_model(run, torch.device("cpu"), trusted)
        self._prepared = data.model_dump(include={"image_size", "mean", "std"})
        self.images = training_images(run, data, self._prepared["image_size"])

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Probabilities (N, C), float64, for images (N, 28, 28) or (N, S, S), as ``images.as_training_image`` returns them."""
        inputs = as_input(images, **self._prepared)
        result: NDArray[np.float64] = evaluate(self._model, inputs, 1000).double().softmax(dim=1).numpy()
        return result
