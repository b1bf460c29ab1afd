"""What the training loop tells callbacks: plain Python values, no tensors, nothing to synchronise.

A callback overrides the methods it needs. The loop calls them in the order ``on_start``, then per epoch ``on_step`` (many
times), ``epoch_metrics`` (once) and ``on_epoch`` (once). The owner of the run calls ``on_end``, once, whatever happened.
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


@dataclass(frozen=True)
class TrainingStarted:
    """The first event of a run, or of its continuation."""

    title: str  # of the model, as a figure would label it: "LeNet-5"
    epochs: int  # in the whole run
    first_epoch: int  # the one about to be trained, counted from 1; above 1 when a run is resumed
    steps_per_epoch: int
    images_per_epoch: int


@dataclass(frozen=True)
class StepDone:
    """One optimizer step has been taken (on a GPU: has been queued)."""

    epoch: int
    step: int  # within the epoch, counted from 1
    images: int  # trained on so far in this epoch


@dataclass(frozen=True)
class EpochMetrics:
    """One line of ``metrics.jsonl``. Losses are means per image in nats; accuracies are fractions.

    Train figures are those seen while the epoch ran, in training mode, before each step; test and validation figures
    are those of the weights after the epoch (of their exponential moving average where there is one).
    """

    epoch: int
    images_seen: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    learning_rate: float  # of the epoch's last step
    train_seconds: float
    eval_seconds: float
    images_per_second: float
    val_loss: float | None = None
    val_accuracy: float | None = None
    extra: Mapping[str, float] = field(default_factory=dict)  # what callbacks add: Callback.epoch_metrics

    def as_row(self) -> dict[str, float | int | None]:
        """The line: fields in order, without validation figures where there is no validation split, then ``extra``.

        A value of ``extra`` that is not finite is None, because JSON has no other name for it.
        """
        own = {key: value for key, value in asdict(self).items() if value is not None and key != "extra"}
        return {**own, **{key: value if math.isfinite(value) else None for key, value in self.extra.items()}}

    def as_curves(self) -> dict[str, float | int]:
        """The figures that loggers draw, by the names that they have there: ``train/loss``."""
        own = {name: getattr(self, key) for key, name in CURVES.items()}
        return {**{name: value for name, value in own.items() if value is not None}, **self.extra}


@dataclass(frozen=True)
class TrainingEnded:
    """How a run ended."""

    status: str  # completed, failed, diverged or interrupted
    error: str | None
    summary: Mapping[str, Any]  # final figures by name: test_accuracy, parameters, seconds ...


# Names that ``epoch_metrics`` may not use: fields of the line, names of curves, and what a summary says besides.
RESERVED = {*(item.name for item in fields(EpochMetrics)), *CURVES.values(), "parameters", "seconds", "status"}


class Pruned(Exception):
    """A callback's reason to end a run that is not worth finishing."""


class Callback:
    """Is told everything and does nothing: the base class of loggers and of a user's own callbacks.

    The constructor makes the object and writes nothing, because the run directory is not there yet. What a callback
    raises ends the run as failed.
    """

    def on_start(self, event: TrainingStarted) -> None:
        """The first event; the run directory is there."""

    def on_step(self, event: StepDone) -> None:
        """After every optimizer step."""

    def epoch_metrics(self, state: TrainState, dataset: Dataset) -> Mapping[str, float]:
        """Further figures of the epoch that has just ended, for its line in ``metrics.jsonl`` and all that read it.

        Args:
            state: its model, as it was trained, in training mode, and ``evaluated_model``, the weights that are
                evaluated. Leave both as they are. Random numbers drawn here change no later batch.
            dataset: the splits ``train``, ``test`` and ``val`` (None without validation data) on the device.

        Returns:
            by name (letters, digits, ``_ . / -``), numbers or tensors with one element.
        """
        return {}

    def on_epoch(self, event: EpochMetrics) -> None:
        """After every epoch, when its line and its checkpoint are written."""

    def on_end(self, event: TrainingEnded) -> None:
        """The last event; the files of the run are complete."""
