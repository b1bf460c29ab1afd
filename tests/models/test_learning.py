"""Each model learns: ten noisy patterns in a few dozen steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_exp.models import MLP, LeNet5, LeNet5_1998


def patterns(per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Smooth class templates under noise: (10 * per_class, 1, 28, 28) and their labels."""
    templates = F.interpolate(
        torch.randn(10, 1, 7, 7, generator=torch.Generator().manual_seed(1)), size=28, mode="bilinear"
    )
    labels = torch.arange(10).repeat(per_class)
    noise = torch.randn(len(labels), 1, 28, 28, generator=generator)
    return templates[labels] + 0.5 * noise, labels


MODELS = {
    "lenet5": lambda: LeNet5(),
    "lenet5 batch norm, dropout": lambda: LeNet5(batch_norm=True, dropout=0.2),
    "lenet5 average, tanh": lambda: LeNet5(activation="tanh", pooling="average"),
    "mlp": lambda: MLP(),
    "mlp batch norm": lambda: MLP(depth=3, batch_norm=True),
    "1998 rbf": lambda: LeNet5_1998(image_size=28),
    "1998 linear": lambda: LeNet5_1998(image_size=28, output="linear"),
}


@pytest.mark.parametrize("name", MODELS)
def test_learns_ten_patterns(name: str) -> None:
    torch.manual_seed(0)
    model: nn.Module = MODELS[name]()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(2)
    rubbish = getattr(model, "rubbish_logit", None)
    for _ in range(60):
        images, labels = patterns(5, generator)
        logits = model(images)
        if rubbish is not None:
            logits = torch.cat([logits, logits.new_full((len(logits), 1), rubbish)], dim=1)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    images, labels = patterns(20, generator)
    with torch.inference_mode():
        accuracy = (model(images).argmax(dim=1) == labels).float().mean().item()
    assert accuracy > 0.9
