"""Logits of a whole split, and their loss and accuracy."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mnist_exp.training.objective import Objective


def autocast(device: torch.device, *, bfloat16: bool) -> AbstractContextManager[object]:
    """Autocast to bfloat16, or a context without effect."""
    return torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()


@torch.inference_mode()
def evaluate(model: nn.Module, images: Tensor, batch_size: int, *, bfloat16: bool = False) -> Tensor:
    """Logits (N, C), float32, on the CPU, of images (N, C, S, S). The model's mode is restored.

    On the CPU because ``score`` needs float64, which Apple's mps does not have.
    """
    was_training = model.training
    model.eval()
    try:
        with autocast(images.device, bfloat16=bfloat16):
            return torch.cat([model(batch).float() for batch in torch.split(images, batch_size)]).cpu()
    finally:
        model.train(was_training)


@torch.inference_mode()
def score(logits: Tensor, labels: Tensor, objective: Objective) -> tuple[float, float]:
    """Mean loss per image, in nats, and accuracy, a fraction.

    Args:
        logits: (N, C), float32, on the CPU.
        labels: (N,), int64, on any device.
    """
    labels = labels.cpu()
    loss = objective.without_smoothing()(logits.double(), labels)
    correct = (logits.argmax(dim=1) == labels).sum()
    return float(loss), int(correct) / len(labels)
