"""One optimizer step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mnist_exp import native
from mnist_exp.data import Split
from mnist_exp.training.evaluation import autocast
from mnist_exp.training.state import TrainConfig, TrainState


class Step:
    """Takes optimizer steps on batches of ``split``: with the native kernels if they cover all settings, else with PyTorch.
    Only ``state`` changes.

    Args:
        forward: the model of the state, or its compiled version.
    """

    def __init__(
        self, state: TrainState, train_config: TrainConfig, split: Split, forward: Callable[[Tensor], Tensor]
    ) -> None:
        self._state, self._config, self._forward = state, train_config, forward
        self._images, self._labels = split.images, split.labels
        self._parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
        covered = (train_config.mixup, train_config.distillation, train_config.objective.rubbish_logit) == (None,) * 3
        self._fused = None
        if covered and forward is state.model and not train_config.bfloat16:
            self._fused = native.fused_step(
                state.model,
                state.optimizer,
                state.ema,
                label_smoothing=train_config.objective.label_smoothing,
                gradient_clipping=train_config.gradient_clipping,
            )

    def __call__(self, index: Tensor) -> None:
        """Train on the images with the indices ``index``, (n,), int64."""
        state, augment = self._state, self._config.augment
        state.learning_rate = state.optimizer.param_groups[0]["lr"]
        images: Tensor | None = None
        if augment is not None:
            with self._config.span("augmentation"):
                images = augment(self._images.index_select(0, index))
        with self._config.span("step"):
            if not self._take_fused(images, index):
                self._take(self._images.index_select(0, index) if images is None else images, index)
        state.scheduler.step()

    def _take_fused(self, images: Tensor | None, index: Tensor) -> bool:
        if self._fused is None:
            return False
        sums = self._state.loss_sum, self._state.correct
        if images is None:
            return self._fused(self._images, self._labels, index, *sums)
        return self._fused(images, self._labels.index_select(0, index), None, *sums)

    def _take(self, images: Tensor, index: Tensor) -> None:
        state, config = self._state, self._config
        labels = self._labels.index_select(0, index)  # faster than labels[index]
        if config.mixup is not None:
            images, labels, second_labels, weight = config.mixup(images, labels)
        with autocast(state.device, bfloat16=config.bfloat16):
            logits = self._forward(images)
            loss = config.objective(logits.float(), labels)
            if config.mixup is not None:
                loss = weight * loss + (1 - weight) * config.objective(logits.float(), second_labels)
            if config.distillation is not None:
                loss = config.distillation(loss, logits.float(), images)
        state.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # PyTorch gives it no types
        if config.gradient_clipping is not None:
            nn.utils.clip_grad_norm_(self._parameters, config.gradient_clipping)
        state.optimizer.step()
        if state.ema is not None:
            state.ema.update()
        with torch.no_grad():
            state.loss_sum += loss * len(index)
            state.correct += (logits.argmax(dim=1) == labels).sum()
