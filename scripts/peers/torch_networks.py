"""The two networks and the optimizer in plain PyTorch, for all candidates that use it."""

from __future__ import annotations

import torch
from peer import MOMENTUM, RATE
from torch import nn


def make(network: str) -> nn.Module:
    """``lenet5`` (61,706 parameters) or ``mlp`` (784-71-71-10, 61,557 parameters)."""
    if network == "mlp":
        return nn.Sequential(
            *(nn.Flatten(), nn.Linear(784, 71), nn.ReLU(), nn.Linear(71, 71), nn.ReLU(), nn.Linear(71, 10))
        )
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, fused=True)
