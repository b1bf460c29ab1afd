"""What the training loop tells whoever listens: plain Python values, no tensors, nothing to synchronise.

A listener overrides the methods it cares about. The loop calls them in the order ``on_start``, then per epoch
``on_step`` (many times) and ``on_epoch`` (once). Whoever owns the run calls ``on_end``, once, whatever happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass


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

    def as_row(self) -> dict[str, float | int]:
        """The fields in order, without validation figures where there is no validation split."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class TrainingEnded:
    """How a run ended."""

    status: str  # completed, failed, diverged or interrupted
    error: str | None
    summary: Mapping[str, float | int | str]  # final figures by name: test_accuracy, parameters, seconds ...


class Pruned(Exception):
    """A listener's reason to end a run that is not worth finishing."""


class Listener:
    """Hears everything, does nothing: the base of whatever wants to know how training goes."""

    def on_start(self, event: TrainingStarted) -> None: ...

    def on_step(self, event: StepDone) -> None: ...

    def on_epoch(self, event: EpochMetrics) -> None: ...

    def on_end(self, event: TrainingEnded) -> None: ...
