"""Callbacks and their events, which hold plain Python values only, so that they need no synchronisation with a GPU.

A callback overrides the methods it needs. The loop calls them in the order ``on_start``, then per epoch ``on_step`` (many
times), ``epoch_metrics`` (once) and ``on_epoch`` (once). ``on_end`` is called once, also after a failure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_exp.data import Dataset
    from mnist_exp.training.state import TrainState

# Names of the curves in W&B and TensorBoard, by the name in metrics.jsonl.
CURVES = {
    "epoch": "epoch",
    "images_seen": "images_seen",
    "train_loss": "train/loss",
    "train_accuracy": "train/accuracy",
    "test_loss": "test/loss",
    "test_accuracy": "test/accuracy",
    "val_loss": "val/loss",
    "val_accuracy": "val/accuracy",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
}


def curves_of(row: Mapping[str, Any]) -> dict[str, float | int]:
    """The values of a line of ``metrics.jsonl`` that are curves, by their names there; see ``EpochMetrics.as_curves``."""
    times = {"train_seconds", "eval_seconds"}
    return {CURVES.get(key, key): value for key, value in row.items() if value is not None and key not in times}


@dataclass(frozen=True)
class TrainingStarted:
    """The first event of a new or resumed run."""

    title: str  # display name of the model: "LeNet-5"
    epochs: int  # in the whole run
    first_epoch: int  # counted from 1; above 1 if the run was resumed
    steps_per_epoch: int
    images_per_epoch: int


@dataclass(frozen=True)
class StepDone:
    """After an optimizer step (on a GPU the step is queued, and may not be done)."""

    epoch: int
    step: int  # within the epoch, counted from 1
    images: int  # number of images of this epoch so far


@dataclass(frozen=True)
class EpochMetrics:
    """One line of ``metrics.jsonl``. Losses are means per image in nats; accuracies are fractions.

    Training values are measured during the epoch, in training mode, before each step; test and validation values are
    measured after the epoch (with the exponential moving average of the weights if there is one).
    """

    epoch: int
    images_seen: int
    train_loss: float
    train_accuracy: float
    test_loss: float | None  # None: not evaluated after this epoch
    test_accuracy: float | None
    learning_rate: float  # of the epoch's last step
    train_seconds: float
    eval_seconds: float
    images_per_second: float
    val_loss: float | None = None
    val_accuracy: float | None = None
    extra: Mapping[str, float] = field(default_factory=dict)  # from Callback.epoch_metrics

    def as_row(self) -> dict[str, float | int | None]:
        """The line: fields in order, without the values of splits that were not evaluated, then ``extra``.

        A value of ``extra`` that is not finite is None, because JSON has no NaN or infinity.
        """
        own = {key: value for key, value in asdict(self).items() if value is not None and key != "extra"}
        return {**own, **{key: value if math.isfinite(value) else None for key, value in self.extra.items()}}

    def as_curves(self) -> dict[str, float | int]:
        """The values for loggers, by their names there, such as ``train/loss``."""
        own = {name: getattr(self, key) for key, name in CURVES.items()}
        return {**{name: value for name, value in own.items() if value is not None}, **self.extra}


@dataclass(frozen=True)
class TrainingEnded:
    """How a run ended."""

    status: str  # completed, failed, diverged or interrupted
    error: str | None
    summary: Mapping[str, Any]  # final values by name: test_accuracy, parameters, seconds ...


# Names that ``epoch_metrics`` must not use: fields of the line, names of curves, and names in a summary.
RESERVED = {*(item.name for item in fields(EpochMetrics)), *CURVES.values(), "parameters", "seconds", "status"}


class Pruned(Exception):
    """Raised by a callback to end a run that is not worth finishing; the message is the reason."""


class Callback:
    """The base class of loggers and of a user's own callbacks; its methods do nothing.

    The constructor must not write files, because the run directory does not exist yet. An exception in a callback ends
    the run as failed.
    """

    def on_start(self, event: TrainingStarted) -> None:
        """Called first; the run directory exists."""

    def on_step(self, event: StepDone) -> None:
        """Called after every optimizer step."""

    def epoch_metrics(self, state: TrainState, dataset: Dataset) -> Mapping[str, float]:
        """Additional values of the epoch that has just ended, for its line in ``metrics.jsonl``, loggers and reports.

        Args:
            state: ``model``, in training mode, and ``evaluated_model``, the weights that are evaluated. Do not change
                them. Random numbers drawn here do not affect later batches.
            dataset: the splits ``train``, ``test`` and ``val`` (None without validation data) on the device.

        Returns:
            numbers or tensors with one element, by name (letters, digits, ``_ . / -``).
        """
        return {}

    def on_epoch(self, event: EpochMetrics) -> None:
        """Called after every epoch, after its line and its checkpoint were written."""

    def on_end(self, event: TrainingEnded) -> None:
        """Called last; the files of the run are complete."""
