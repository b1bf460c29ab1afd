"""The training loop."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mnist_exp.data import Dataset, Split
from mnist_exp.training.evaluation import evaluate, score
from mnist_exp.training.events import RESERVED, Callback, EpochMetrics, StepDone, TrainingStarted
from mnist_exp.training.state import TrainConfig, TrainState, random_state, restore_random_state
from mnist_exp.training.train_step import Step


class Diverged(Exception):
    """A loss or a weight is not finite."""


class Interrupted(Exception):
    """Training was asked to stop, and stopped after a step."""


def fit(
    state: TrainState,
    dataset: Dataset,
    train_config: TrainConfig,
    *,
    callbacks: Sequence[Callback] = (),
    save: Callable[[TrainState, EpochMetrics | None, bool], None] = lambda state, metrics, is_best: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train from ``state`` to the last epoch, or until early stopping.

    Args:
        state: changed in place; its model, optimizer and average must be on the device of ``dataset``.
        dataset: its test split is not used for any choice. ``train_config.evaluate_test`` says when it is evaluated.
        callbacks: called after every step and epoch.
        save: called after each epoch, before ``on_epoch``, with its metrics and whether it is the best on validation
            data so far; called without metrics before ``Interrupted`` is raised.
        stop: called after each step; True ends training.

    Raises:
        Diverged: a loss or weight is not finite; nothing is saved from that epoch.
        Interrupted: ``stop`` returned True; the state was saved.
    """
    images_per_epoch = len(dataset.train)
    steps_per_epoch = -(-images_per_epoch // train_config.batch_size)
    forward = torch.compile(state.model) if train_config.compile else state.model
    title = str(getattr(state.model, "title", type(state.model).__name__))
    started = TrainingStarted(title, train_config.epochs, state.epoch + 1, steps_per_epoch, images_per_epoch)
    for callback in callbacks:
        callback.on_start(started)
    while state.epoch < train_config.epochs and not _out_of_patience(state, train_config, state.epoch):
        _train_epoch(state, forward, dataset, train_config, callbacks, save, stop)
        with train_config.span("evaluation"):
            metrics, is_best = _evaluate_epoch(state, dataset, train_config)
        state.epoch += 1
        state.step, state.seconds = 0, 0.0
        state.loss_sum.zero_()
        state.correct.zero_()
        metrics = replace(metrics, extra=_extra_metrics(state, dataset, callbacks))
        with train_config.span("checkpoint"):
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
    order = _order(train_config.seed, state.epoch, len(dataset.train)).to(state.device)
    batches = torch.split(order, train_config.batch_size)
    epoch = state.epoch + 1
    state.model.train()
    take_step = Step(state, train_config, dataset.train, forward)
    began = time.perf_counter() - state.seconds
    for index in batches[state.step :]:
        take_step(index)
        state.step += 1
        done = StepDone(epoch, state.step, min(state.step * train_config.batch_size, len(order)))
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
    """Logits (N, C), float32, on the CPU, of ``state.evaluated_model`` for images (N, C, S, S)."""
    return evaluate(state.evaluated_model, images, train_config.eval_batch_size, bfloat16=train_config.bfloat16)


def _evaluate_epoch(state: TrainState, dataset: Dataset, train_config: TrainConfig) -> tuple[EpochMetrics, bool]:
    """The metrics of an epoch, and whether it is the best on validation data."""
    began = time.perf_counter()
    _require_finite(state)
    figures: dict[str, float] = {}

    def evaluate_split(name: str, split: Split) -> None:
        logits = predict(state, split.images, train_config)
        figures[f"{name}_loss"], figures[f"{name}_accuracy"] = score(logits, split.labels, train_config.objective)
        for figure, value in figures.items():
            if not np.isfinite(value):
                raise Diverged(f"{figure} is {value} after epoch {state.epoch + 1}")

    if dataset.val is not None:  # first, because it tells whether this epoch is the last one
        evaluate_split("val", dataset.val)
    is_best = _compare(state, figures)
    epoch = state.epoch + 1
    is_last = epoch >= train_config.epochs or _out_of_patience(state, train_config, epoch)
    if train_config.evaluate_test == "every" or (train_config.evaluate_test == "last" and is_last):
        evaluate_split("test", dataset.test)
    images = len(dataset.train)
    metrics = EpochMetrics(
        epoch=epoch,
        images_seen=images * epoch,
        train_loss=float(state.loss_sum) / images,
        train_accuracy=int(state.correct) / images,
        test_loss=figures.get("test_loss"),
        test_accuracy=figures.get("test_accuracy"),
        val_loss=figures.get("val_loss"),
        val_accuracy=figures.get("val_accuracy"),
        learning_rate=state.learning_rate,
        train_seconds=state.seconds,
        eval_seconds=time.perf_counter() - began,
        images_per_second=images / max(state.seconds, 1e-9),  # the clock may not have advanced
    )
    return metrics, is_best


def _extra_metrics(state: TrainState, dataset: Dataset, callbacks: Sequence[Callback]) -> dict[str, float]:
    """The values of an epoch that callbacks add.

    Raises:
        ValueError: a name is not allowed or already used.
    """
    extra: dict[str, float] = {}
    for callback in callbacks:
        kind = type(callback)
        if kind.epoch_metrics is Callback.epoch_metrics:
            continue
        before = random_state(state.device)
        found = callback.epoch_metrics(state, dataset)
        restore_random_state(before, state.device)
        for name, value in found.items():
            where = f"{kind.__name__}.epoch_metrics: {name!r}"
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", name):
                raise ValueError(f"{where} is no name of a metric: letters, digits and _ . / - only, a letter first")
            if name in RESERVED or name in extra:
                owner = "of the run itself" if name in RESERVED else "of another callback"
                raise ValueError(f"{where} is a metric {owner}; choose another name")
            extra[name] = float(value.detach() if isinstance(value, Tensor) else value)
    return extra


def _compare(state: TrainState, figures: Mapping[str, float]) -> bool:
    """Whether the epoch that has just ended is the best on validation data; stores the best values in ``state``."""
    if not figures:
        return False
    epoch, loss, accuracy = state.epoch + 1, figures["val_loss"], figures["val_accuracy"]
    if loss < state.lowest_loss:
        state.lowest_loss, state.lowest_loss_epoch = loss, epoch
    if (-accuracy, loss) >= (-state.best_accuracy, state.best_loss):
        return False
    state.best_epoch, state.best_accuracy, state.best_loss = epoch, accuracy, loss
    return True


def _out_of_patience(state: TrainState, train_config: TrainConfig, epoch: int) -> bool:
    """Whether early stopping ends training after this epoch."""
    return train_config.patience is not None and epoch - state.lowest_loss_epoch >= train_config.patience


def _order(seed: int, epoch: int, count: int) -> Tensor:
    """The order of images in an epoch. It depends on seed and epoch only, so that two configurations with the same seed
    have the same batches."""
    (state,) = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.randperm(count, generator=torch.Generator().manual_seed(int(state) >> 1))


def _require_finite(state: TrainState) -> None:
    tensors = [state.loss_sum, *(parameter.detach() for parameter in state.model.parameters())]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise Diverged(f"the training loss or a weight is not finite in epoch {state.epoch + 1}; lower optimizer.lr")


def _synchronize(device: torch.device) -> None:
    """Wait for queued work, so that it is included in the measured time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
