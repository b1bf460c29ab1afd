"""The base class that users inherit: our networks pass it, and each kind of faulty network fails the test for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mnist_exp.models import MLP, LeNet5, LeNet5_1998
from mnist_exp.testing import NetworkTests


class TestLeNet5(NetworkTests):
    def build(self) -> nn.Module:
        return LeNet5(batch_norm=True, dropout=0.2)


class TestMLP(NetworkTests):
    def build(self) -> nn.Module:
        return MLP(hidden=[16])


class TestLeNet5Of1998(NetworkTests):
    image_shape = (1, 32, 32)

    def build(self) -> nn.Module:
        return LeNet5_1998(output="linear")


class Faulty(nn.Module):
    """A linear network with one fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.linear = nn.Linear(784, 9 if fault == "classes" else 10)
        self.unused = nn.Linear(1, 1) if fault == "unused" else None
        self.register_buffer("calls", torch.zeros(()), persistent=fault == "state")
        self.scale = 1.0 + float(torch.rand(())) if fault == "not saved" else 1.0
        if fault == "seed":
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        if self.fault == "state":
            self.calls += 1
        pixels = images.flatten(1)
        if self.fault == "mixes":
            pixels = pixels - pixels.mean(dim=0)
        logits: Tensor = self.linear(pixels) * self.scale
        if self.fault == "random":
            logits = logits + torch.rand_like(logits)
        return logits.detach().requires_grad_() if self.fault == "detached" else logits


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        ("classes", "test_shape_of_the_logits"),
        ("mixes", "test_images_of_a_batch_do_not_mix_in_evaluation"),
        ("unused", "test_every_parameter_gets_a_gradient"),
        ("detached", "test_a_few_steps_lower_the_loss"),
        ("seed", "test_the_seed_decides_the_weights"),
        ("random", "test_evaluation_is_deterministic_and_changes_nothing"),
        ("state", "test_evaluation_is_deterministic_and_changes_nothing"),
        ("not saved", "test_a_checkpoint_restores_the_network"),
    ],
)
def test_each_fault_is_found(fault: str, test: str) -> None:
    class Tests(NetworkTests):
        def build(self) -> nn.Module:
            return Faulty(fault)

    run: Callable[..., Any] = getattr(Tests(), test)
    with pytest.raises(AssertionError):
        run()


def test_a_class_without_build_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="write build"):
        NetworkTests().seeded()
