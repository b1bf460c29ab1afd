"""What a run trains with, and where it is.

Every number that changes while a run trains lives in ``TrainState``; what stays the same is the ``TrainConfig``. A checkpoint
is ``TrainState.state_dict()``, and a run that loads it continues with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnist_exp.training.ema import ExponentialMovingAverage
from mnist_exp.training.objective import Distillation, Mixup, Objective


@dataclass(frozen=True)
class TrainConfig:
    """What does not change during a run."""

    epochs: int
    batch_size: int
    eval_batch_size: int
    seed: int
    objective: Objective
    augment: Callable[[Tensor], Tensor] | None = None
    mixup: Mixup | None = None
    distillation: Distillation | None = None
    gradient_clipping: float | None = None
    patience: int | None = None  # epochs without a lower validation loss before training ends
    bfloat16: bool = False
    compile: bool = False
    profile: bool = False  # a profiler listens: name the parts of an epoch

    def span(self, name: str) -> AbstractContextManager[object]:
        """A part of an epoch, as a profile shows it."""
        return record_function(name) if self.profile else nullcontext()


@dataclass
class TrainState:
    """Everything that changes during a run, and so everything that a checkpoint holds.

    Attributes:
        epoch: epochs completed.
        step: steps taken in the epoch under way; 0 between epochs.
        loss_sum, correct: over the images of the epoch under way, on the device, so that no step waits for it.
        seconds: spent on the steps of the epoch under way.
        learning_rate: of the last step.
        best_epoch, best_accuracy, best_loss: of the epoch with the highest validation accuracy, the lower loss where
            two are equal; epoch 0 when there is none yet.
        lowest_loss, lowest_loss_epoch: of validation data, for early stopping.
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
        """The weights that count: their moving average where there is one."""
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
    """Of all generators that training on ``device`` draws from."""
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
