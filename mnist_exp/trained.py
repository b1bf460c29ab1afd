"""Networks read back from run directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mnist_exp import experiment
from mnist_exp.config import Config, check
from mnist_exp.data.splits import as_input
from mnist_exp.runs import Run, RunDirectoryError, read_run
from mnist_exp.runs.files import exists
from mnist_exp.training import evaluate, load_checkpoint
from mnist_exp.trust import authorize


def trained_model(run: Run, config: Config, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """The network that a run's result is about, and the checkpoint it comes from.

    Raises:
        RunDirectoryError: there is no checkpoint yet, or it cannot be read.
    """
    path = run.path
    checkpoint = path / "checkpoints" / f"{config.trainer.selection}.pt"
    if not exists(checkpoint, below=path):
        raise RunDirectoryError(f"{path} has no {checkpoint.relative_to(path)} yet; its status is {run.status}")
    try:
        state = load_checkpoint(checkpoint, device)
    except Exception as error:
        raise RunDirectoryError(f"{checkpoint} cannot be read: {' '.join(str(error).split())}") from error
    model = experiment.build_model(run.config, config.seed).to(device)
    model.load_state_dict(state["model"] if state["ema"] is None else state["ema"]["model"])
    return model, state


class Classifier:
    """A trained network that takes digits as they are stored.

    Raises:
        UsageError, RunDirectoryError: there is no trained network of this project in ``path``.
    """

    def __init__(self, path: Path) -> None:
        run = read_run(path)
        config = check(run.config)
        authorize(run.config)
        self.path = path
        self.name = str(run.record.get("name") or path.name)
        self._data = config.data
        self._model, _ = trained_model(run, config, torch.device("cpu"))

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(N, C) for digits (N, 28, 28), ink bright."""
        data = self._data
        inputs = as_input(images, image_size=data.image_size, mean=data.mean, std=data.std)
        found: NDArray[np.float64] = evaluate(self._model, inputs, 1000).double().softmax(dim=1).numpy()
        return found
