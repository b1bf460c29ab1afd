"""The exponential moving average of weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialMovingAverage:
    """A copy of the model with averaged weights (Polyak and Juditsky 1992).

    After step t: average += (1 - min(decay, (1 + t) / (10 + t))) (weights - average). The smaller decay of the first steps
    removes the random initial weights; this warm-up is the one of TensorFlow's ExponentialMovingAverage. Floating-point
    buffers, the statistics of batch normalisation, are averaged too; integer buffers are copied.

    Attributes:
        model: the averaged model, in evaluation mode, without gradients.
        averages, values: its floating-point tensors, and the same tensors of the model being trained.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        source, target = model.state_dict(keep_vars=True), self.model.state_dict(keep_vars=True)
        floating = [name for name, value in source.items() if value.is_floating_point()]
        self.averages = [target[name].detach() for name in floating]
        self.values = [source[name].detach() for name in floating]
        self._copies = [(target[name], source[name]) for name in source if name not in floating]

    def current_decay(self) -> float:
        """The decay of the next update."""
        return min(self.decay, (1 + self.steps) / (10 + self.steps))

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the model's weights; call after each optimizer step."""
        average = get_ema_multi_avg_fn(self.current_decay())  # type: ignore[no-untyped-call]  # PyTorch gives it no types
        average(self.averages, self.values, self.steps)
        self.advance()

    def advance(self) -> float:
        """Count an update and copy integer buffers; returns the weight of ``values`` in the update, which the caller does."""
        weight = 1 - self.current_decay()
        for target, source in self._copies:
            target.copy_(source)
        self.steps += 1
        return weight

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.model.load_state_dict(state["model"])
