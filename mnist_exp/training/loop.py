"""The training loop.

Every number that changes while a run trains lives in ``TrainState``; what stays the same is the ``TrainConfig``. A checkpoint
is ``TrainState.state_dict()``, and a run that loads it continues with the same bits.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnist_exp.data import Dataset
from mnist_exp.training.ema import ExponentialMovingAverage
from mnist_exp.training.evaluation import autocast, evaluate, score
from mnist_exp.training.events import RESERVED, Callback, EpochMetrics, StepDone, TrainingStarted
from mnist_exp.training.objective import Distillation, Mixup, Objective


class Diverged(Exception):
    """A loss or a weight is not finite any more."""


class Interrupted(Exception):
    """Training was asked to stop, and did after the step it was in."""


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
            "random": _random_state(self.device),
            **{name: getattr(self, name) for name in self.COUNTERS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        for name in self.COUNTERS:
            setattr(self, name, state[name])
        _restore_random_state(state["random"], self.device)


def fit(
    state: TrainState,
    dataset: Dataset,
    train_config: TrainConfig,
    *,
    callbacks: Sequence[Callback] = (),
    save: Callable[[TrainState, EpochMetrics | None, bool], None] = lambda state, metrics, is_best: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train from where ``state`` is until the last epoch, or until patience ends.

    Args:
        state: moved on in place; its model, optimizer and average must be on the device of ``dataset``.
        dataset: test data are evaluated after every epoch and choose nothing.
        callbacks: told of every step and epoch.
        save: called after each epoch, before callbacks are told of it, with its metrics and whether it is the best on
            validation data so far; called without metrics before ``Interrupted``.
        stop: asked after each step.

    Raises:
        Diverged: a loss or weight is not finite; nothing is saved from that epoch.
        Interrupted: ``stop`` said so; the state was saved.
    """
    images_per_epoch = len(dataset.train)
    steps_per_epoch = -(-images_per_epoch // train_config.batch_size)
    forward = torch.compile(state.model) if train_config.compile else state.model
    title = str(getattr(state.model, "title", type(state.model).__name__))
    started = TrainingStarted(title, train_config.epochs, state.epoch + 1, steps_per_epoch, images_per_epoch)
    for callback in callbacks:
        callback.on_start(started)
    while state.epoch < train_config.epochs and not _out_of_patience(state, train_config):
        _train_epoch(state, forward, dataset, train_config, callbacks, save, stop)
        metrics = _evaluate_epoch(state, dataset, train_config)
        is_best = _compare(state, metrics)
        state.epoch += 1
        state.step, state.seconds = 0, 0.0
        state.loss_sum.zero_()
        state.correct.zero_()
        metrics = replace(metrics, extra=_extra_metrics(state, dataset, callbacks))
        save(state, metrics, is_best)
        for callback in callbacks:
            callback.on_epoch(metrics)


def _train_epoch(
    state: TrainState,
    forward: Callable[[Tensor], Tensor],
    dataset: Dataset,
    train_config: TrainConfig,
    callbacks: Sequence[Callback],
    save: Callable[[TrainState, EpochMetrics | None, bool], None],
    stop: Callable[[], bool],
) -> None:
    images, labels = dataset.train.images, dataset.train.labels
    optimizer, scheduler, ema = state.optimizer, state.scheduler, state.ema
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    objective = train_config.objective
    order = _order(train_config.seed, state.epoch, len(labels)).to(state.device)
    batches = torch.split(order, train_config.batch_size)
    epoch = state.epoch + 1
    state.model.train()
    began = time.perf_counter() - state.seconds
    for index in batches[state.step :]:
        batch, targets = images.index_select(0, index), labels.index_select(0, index)  # faster than images[index]
        if train_config.augment is not None:
            batch = train_config.augment(batch)
        if train_config.mixup is not None:
            batch, targets, second_targets, weight = train_config.mixup(batch, targets)
        with autocast(state.device, bfloat16=train_config.bfloat16):
            logits = forward(batch)
            loss = objective(logits.float(), targets)
            if train_config.mixup is not None:
                loss = weight * loss + (1 - weight) * objective(logits.float(), second_targets)
            if train_config.distillation is not None:
                loss = train_config.distillation(loss, logits.float(), batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if train_config.gradient_clipping is not None:
            nn.utils.clip_grad_norm_(parameters, train_config.gradient_clipping)
        state.learning_rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        if ema is not None:
            ema.update()
        with torch.no_grad():
            state.loss_sum += loss * len(index)
            state.correct += (logits.argmax(dim=1) == targets).sum()
        state.step += 1
        done = StepDone(epoch, state.step, min(state.step * train_config.batch_size, len(labels)))
        for callback in callbacks:
            callback.on_step(done)
        if stop():
            state.seconds = time.perf_counter() - began
            _require_finite(state)
            save(state, None, False)
            raise Interrupted(f"after step {state.step} of epoch {epoch}")
    _synchronize(state.device)
    state.seconds = time.perf_counter() - began


def predict(state: TrainState, images: Tensor, train_config: TrainConfig) -> Tensor:
    """Logits (N, C), float32, on the CPU, of the weights that count for images (N, C, S, S)."""
    return evaluate(state.evaluated_model, images, train_config.eval_batch_size, bfloat16=train_config.bfloat16)


def _evaluate_epoch(state: TrainState, dataset: Dataset, train_config: TrainConfig) -> EpochMetrics:
    began = time.perf_counter()
    _require_finite(state)
    figures: dict[str, float] = {}
    for name, split in (("test", dataset.test), ("val", dataset.val)):
        if split is not None:
            logits = predict(state, split.images, train_config)
            figures[f"{name}_loss"], figures[f"{name}_accuracy"] = score(logits, split.labels, train_config.objective)
    for name, value in figures.items():
        if not np.isfinite(value):
            raise Diverged(f"{name} is {value} after epoch {state.epoch + 1}")
    images = len(dataset.train)
    return EpochMetrics(
        epoch=state.epoch + 1,
        images_seen=images * (state.epoch + 1),
        train_loss=float(state.loss_sum) / images,
        train_accuracy=int(state.correct) / images,
        test_loss=figures["test_loss"],
        test_accuracy=figures["test_accuracy"],
        val_loss=figures.get("val_loss"),
        val_accuracy=figures.get("val_accuracy"),
        learning_rate=state.learning_rate,
        train_seconds=state.seconds,
        eval_seconds=time.perf_counter() - began,
        images_per_second=images / max(state.seconds, 1e-9),  # a clock may stand still
    )


def _extra_metrics(state: TrainState, dataset: Dataset, callbacks: Sequence[Callback]) -> dict[str, float]:
    """What callbacks add to the figures of an epoch.

    Raises:
        ValueError: a name that is taken, or no name.
    """
    extra: dict[str, float] = {}
    for callback in callbacks:
        kind = type(callback)
        if kind.epoch_metrics is Callback.epoch_metrics:
            continue
        random_state = _random_state(state.device)
        found = callback.epoch_metrics(state, dataset)
        _restore_random_state(random_state, state.device)
        for name, value in found.items():
            where = f"{kind.__name__}.epoch_metrics: {name!r}"
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", name):
                raise ValueError(f"{where} is no name of a metric: letters, digits and _ . / - only, a letter first")
            if name in RESERVED or name in extra:
                owner = "of the run itself" if name in RESERVED else "of another callback"
                raise ValueError(f"{where} is a metric {owner}; choose another name")
            extra[name] = float(value.detach() if isinstance(value, Tensor) else value)
    return extra


def _compare(state: TrainState, metrics: EpochMetrics) -> bool:
    """Whether this epoch is the best on validation data; remembers it if so."""
    loss, accuracy = metrics.val_loss, metrics.val_accuracy
    if loss is None or accuracy is None:
        return False
    if loss < state.lowest_loss:
        state.lowest_loss, state.lowest_loss_epoch = loss, metrics.epoch
    if (-accuracy, loss) >= (-state.best_accuracy, state.best_loss):
        return False
    state.best_epoch, state.best_accuracy, state.best_loss = metrics.epoch, accuracy, loss
    return True


def _out_of_patience(state: TrainState, train_config: TrainConfig) -> bool:
    return train_config.patience is not None and state.epoch - state.lowest_loss_epoch >= train_config.patience


def _order(seed: int, epoch: int, count: int) -> Tensor:
    """The order of images in an epoch: a function of seed and epoch alone, so that two arms with the same seed see the
    same batches whatever else they draw."""
    (state,) = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.randperm(count, generator=torch.Generator().manual_seed(int(state) >> 1))


def _require_finite(state: TrainState) -> None:
    tensors = [state.loss_sum, *(parameter.detach() for parameter in state.model.parameters())]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise Diverged(f"the training loss or a weight is not finite in epoch {state.epoch + 1}; lower optimizer.lr")


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def _restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state["mps"].cpu())


def _synchronize(device: torch.device) -> None:
    """Wait for what was queued, so that the clock stops when the work does."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
