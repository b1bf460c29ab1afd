"""The settings and the state of training.

``TrainState`` holds every number that changes during a run, ``TrainConfig`` everything that does not. A checkpoint is
``TrainState.state_dict()``; a run that loads it continues bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnist_exp.training.ema import ExponentialMovingAverage
from mnist_exp.training.objective import Distillation, Mixup, Objective


@dataclass(frozen=True)
class TrainConfig:
    """Settings that do not change during a run."""

    epochs: int
    batch_size: int
    eval_batch_size: int
    seed: int
    objective: Objective
    augment: Callable[[Tensor], Tensor] | None = None
    mixup: Mixup | None = None
    distillation: Distillation | None = None
    gradient_clipping: float | None = None
    evaluate_test: Literal["every", "last", "never"] = "every"  # after which epochs the test split is evaluated
    patience: int | None = None  # epochs without a lower validation loss before training ends
    bfloat16: bool = False
    compile: bool = False
    profile: bool = False  # name the parts of an epoch for a profiler

    def span(self, name: str) -> AbstractContextManager[object]:
        """A context that names a part of an epoch in a profile."""
        return record_function(name) if self.profile else nullcontext()


@dataclass
class TrainState:
    """Everything that changes during a run, and is stored in a checkpoint.

    Attributes:
        epoch: epochs completed.
        step: steps taken in the current epoch; 0 between epochs.
        loss_sum, correct: sums over the images of the current epoch, on the device, so that no step synchronises.
        seconds: duration of the steps of the current epoch.
        learning_rate: of the last step.
        best_epoch, best_accuracy, best_loss: of the epoch with the highest validation accuracy, the one with the
            lower loss if two are equal; epoch 0 if there is none yet.
        lowest_loss, lowest_loss_epoch: on validation data, for early stopping.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    ema: ExponentialMovingAverage | None
    device: torch.device
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_loss: float = float("inf")
    lowest_loss: float = float("inf")
    lowest_loss_epoch: int = 0
    loss_sum: Tensor = field(init=False)
    correct: Tensor = field(init=False)

    COUNTERS: ClassVar[tuple[str, ...]] = (
        *("epoch", "step", "seconds", "learning_rate", "best_epoch", "best_accuracy", "best_loss"),
        *("lowest_loss", "lowest_loss_epoch", "loss_sum", "correct"),
    )

    def __post_init__(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self.device)

    @property
    def evaluated_model(self) -> nn.Module:
        """The model to evaluate: the moving average if there is one, else ``model``."""
        return self.model if self.ema is None else self.ema.model

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data from which ``load_state_dict`` continues bit for bit."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "random": random_state(self.device),
            **{name: getattr(self, name) for name in self.COUNTERS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned.

        Raises:
            Exception: ``state`` lacks something, or has a value of another type or shape. PyTorch raises many types.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        for name in self.COUNTERS:
            self._set_counter(name, state[name])
        restore_random_state(state["random"], self.device)

    def _set_counter(self, name: str, value: Any) -> None:
        own = getattr(self, name)
        if isinstance(own, Tensor):
            fits = isinstance(value, Tensor) and (value.shape, value.dtype) == (own.shape, own.dtype)
        else:
            numbers = (int,) if isinstance(own, int) else (int, float)
            fits = isinstance(value, numbers) and not isinstance(value, bool)
        if not fits:
            raise TypeError(f"{name} is of another type or shape")
        setattr(self, name, value)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of all random number generators that training on ``device`` uses."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state["mps"].cpu())
