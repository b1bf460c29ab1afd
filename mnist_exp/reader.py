"""Trained networks, read back from run directories. Importing this module imports torch."""

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
from mnist_exp.data.handwriting import like_mnist
from mnist_exp.data.splits import as_input
from mnist_exp.errors import UsageError
from mnist_exp.runs import Run, RunDirectoryError, read_run
from mnist_exp.runs.files import exists
from mnist_exp.training import evaluate, load_checkpoint
from mnist_exp.trust import check_target_types


def trained_model(
    run: Run, device: torch.device, trusted: Collection[str] = (), *, kernels: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
    """The network that a run's result is about, and the checkpoint it comes from.

    Args:
        trusted: packages whose code may run besides ours.
        kernels: let native kernels compute it where they computed the run; they call no hooks of the modules.

    Raises:
        UsageError: the configuration asks for code that is not trusted, or a constructor refuses it.
        RunDirectoryError: there is no checkpoint yet, or it cannot be read.
    """
    path, config = run.path, run.whole_config
    check_target_types(config.model_copy(update={"callbacks": {}}), trusted)  # which are not made here
    checkpoint = path / "checkpoints" / f"{config.trainer.selection}.pt"
    if not exists(checkpoint, below=path):
        raise RunDirectoryError(f"{path} has no {checkpoint.relative_to(path)} yet; its status is {run.status}")
    try:
        state = load_checkpoint(checkpoint, device)
    except OSError as error:
        raise RunDirectoryError(f"{checkpoint} cannot be read: {error.strerror}") from error
    model = build_model(config).to(device)
    model.load_state_dict(state["model"] if state["ema"] is None else state["ema"]["model"])
    if kernels and run.record.backend == "native" and device.type == "cpu":
        with suppress(native.NativeUnavailable):  # PyTorch computes the same, to rounding
            native.attach(model)
    return model, state


@dataclass(frozen=True)
class TrainingImages:
    """What the images look like that a network was trained on, as far as a picture must be made to look like them.

    Attributes:
        size: pixels a side that the network takes; 28 are stored.
        dark_ink: dark on light, where MNIST is light on dark.
        box: pixels of 28 that what is shown takes up, its longer side; MNIST's 20.
        other: the name of a data set that shows no digits.
        own: a user's own data, of which nobody has said what they show.
    """

    size: int
    dark_ink: bool = False
    box: int = 20
    other: str | None = None
    own: bool = False

    def as_training_image(self, colours: NDArray[np.float32]) -> tuple[NDArray[np.uint8], str | None]:
        """A picture (H, W, 3) as these images are, (28, 28) or (S, S); and a remark where that is in doubt.

        One that has their size and is grey is taken as it is, or inverted where its ground is of the other kind. Any
        other is searched for a digit, which is framed as theirs are.

        Raises:
            SeveralMarks, ValueError: there is no digit to be found, or the network knows no digits.
        """
        stored = self._as_stored(colours)
        if stored is not None:
            return stored, None
        if self.other:
            raise ValueError(
                f"this network was trained on {self.other}, not on digits, and takes only pictures like those: "
                f"28x28 pixels, grey; this one has {colours.shape[1]}x{colours.shape[0]}"
            )
        digit = like_mnist(colours, self.box)
        remark = "was framed as a digit, and this network was trained on data of your own" if self.own else None
        return 255 - digit if self.dark_ink else digit, remark

    def _as_stored(self, colours: NDArray[np.float32]) -> NDArray[np.uint8] | None:
        """The picture where it is one of these images, or the negative of one; else None."""
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
    """Whether an image (S, S), light on dark, has what it shows where MNIST has it, and about as large."""
    side = len(grey)
    ink = grey > 25
    if not ink.any() or ink[[0, -1]].any() or ink[:, [0, -1]].any():
        return False
    mass = grey / grey.sum(dtype=np.float64)
    middle = (np.arange(side) + 0.5) * 28 / side
    centre = mass.sum(axis=1) @ middle, mass.sum(axis=0) @ middle
    return 15 <= _extent(ink) * 28 / side <= 21.5 and all(13 <= place <= 15.5 for place in centre)


def _extent(ink: NDArray[np.bool_]) -> int:
    return max(int(np.ptp(np.nonzero(ink.any(axis=axis))[0])) + 1 for axis in (0, 1))


def training_images(run: Run, data: Data | OwnData, size: int) -> TrainingImages:
    """As the run's own test images show, of which it keeps 100; like MNIST where it keeps none.

    Args:
        size: pixels a side that the network takes.
    """
    download = data.download if isinstance(data, Data) else None
    other = download if download not in {None, "MNIST"} else None
    own = download is None and data.target != "mnist_exp.data.mnist5k"
    try:
        with np.load(run.path / "predictions.npz") as arrays:
            images = arrays["worst_images"]
        edges = np.concatenate([images[:, [0, -1]].ravel(), images[:, :, [0, -1]].ravel()])
        dark_ink = bool(np.median(edges) > 127)
        shown = (255 - images if dark_ink else images) > 25
        side = float(np.median([_extent(ink) for ink in shown if ink.any()])) * 28 / images.shape[1]
    except Exception:  # absent, damaged, or of an earlier version
        return TrainingImages(size, other=other, own=own)
    return TrainingImages(size, dark_ink, 20 if side <= 21.5 else round(side), other, own)


class Classifier:
    """A trained network, and what the images look like that it takes.

    Args:
        trusted: packages whose code may run besides ours.

    Raises:
        UsageError, RunDirectoryError: there is no trained network of this project in ``path``, or one that is not for grey
            images in ten classes.
    """

    def __init__(self, path: str | Path, trusted: Collection[str] = ()) -> None:
        run = read_run(path)
        data = run.whole_config.data
        if (data.channels, data.num_classes) != (1, 10):
            colours = "grey" if data.channels == 1 else "colour"
            raise UsageError(
                f"{path} knows {data.num_classes} classes of {colours} images; pictures are classified with networks for grey "
                "images in 10 classes only"
            )
        self.path = run.path
        self.name = str(run.record.name or self.path.name)
        self._model, _ = trained_model(run, torch.device("cpu"), trusted)
        self._prepared = data.model_dump(include={"image_size", "mean", "std"})
        self.images = training_images(run, data, self._prepared["image_size"])

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(N, C) for images (N, 28, 28) or (N, S, S), which look as the training data do."""
        inputs = as_input(images, **self._prepared)
        found: NDArray[np.float64] = evaluate(self._model, inputs, 1000).double().softmax(dim=1).numpy()
        return found
