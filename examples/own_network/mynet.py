"""Your own network: one class that takes its settings by name, and imports nothing from mnist_exp."""

from __future__ import annotations

from torch import Tensor, nn


class MyNet(nn.Module):
    """Two convolutions and an average over the image: (N, 1, S, S) float32, S at least 8, to logits (N, 10).

    Args:
        width: channels of the first convolution; the second has twice as many.
        dropout: drop probability in front of the linear layer. mnist-train passes the value of ``regularization.dropout``.

    Raises:
        ValueError: ``width`` is less than 1; mnist-train shows this as one line.
    """

    def __init__(self, *, width: int = 8, dropout: float = 0.0) -> None:
        if width < 1:
            raise ValueError(f"width={width} should be at least 1")
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(4),
        )
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8 * width, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits
