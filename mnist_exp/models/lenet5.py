"""LeNet-5 in its modern form, and its variants.

Unlike the network of 1998 (``LeNet5_1998``) it has ReLU instead of the scaled tanh, max pooling without parameters, all
connections between the two convolutions, and a linear output: 61,706 parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

from pydantic import Field, Strict, validate_call
from torch import Tensor, nn

from mnist_exp.models.layers import (
    Activation,
    Position,
    activated,
    batch_norm_of_layers,
    dropout_of_layers,
    key_of,
    sequential,
)
from mnist_exp.types import BatchNorm, Channels, Classes, Count, Dropout, Flag

POOLINGS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
Activate = Callable[..., dict[str, nn.Module]]  # `activated` with its activation and position fixed
Pair = Annotated[Sequence[Count], Field(min_length=2, max_length=2)]


class LeNet5(nn.Module):
    """Two convolutions with pooling, then linear layers, by default three (after LeCun et al. 1998, figure 2).

    Images (N, ``in_channels``, ``image_size``, ``image_size``), float32, to logits (N, ``num_classes``), float32.

    Args:
        image_size: height and width of an image in pixels.
        padding: zeros added on each side before the first convolution; the second has no padding.
        channels: maps of the two convolutions.
        hidden: widths of the hidden linear layers; an empty list leaves only the output layer.
        kernel_size: height and width of the kernels of both convolutions.
        activation: a key of ``ACTIVATIONS``, after each hidden layer.
        pooling: ``max`` or ``average``, over 2x2 pixels with stride 2.
        batch_norm: a flag for each of conv1, conv2 and the hidden linear layers linear1, linear2, ...; ``True`` means both
            convolutions.
        batch_norm_position: ``before`` or ``after`` the activation, always in front of the pooling.
        dropout: drop probability in front of each of the linear layers; one number p means [0, p, ..., p],
            the outputs of the hidden linear layers.
        softmax_output: return probabilities instead of logits. The cross-entropy applies a softmax again, so the
            loss cannot be lower than ln(e + 9) - 1 = 1.4612 for ten classes.
        num_classes: number of outputs.
        in_channels: of the images; 1 is grey, 3 is colour.

    Raises:
        ValueError: a value is out of range, or the images are too small for the kernels.
    """

    @validate_call
    def __init__(
        self,
        *,
        image_size: Count = 28,
        padding: Annotated[int, Strict(), Field(ge=0)] = 2,
        channels: Pair = (6, 16),
        hidden: Sequence[Count] = (120, 84),
        kernel_size: Count = 5,
        activation: Activation = "relu",
        pooling: Annotated[str, key_of(POOLINGS)] = "max",
        batch_norm: BatchNorm = False,
        batch_norm_position: Position = "before",
        dropout: Dropout = 0.0,
        softmax_output: Flag = False,
        num_classes: Classes = 10,
        in_channels: Channels = 1,
    ) -> None:
        super().__init__()
        maps1, maps2 = channels
        linear = [f"linear{index}" for index in range(1, len(hidden) + 2)]
        norms = batch_norm_of_layers(batch_norm, ["conv1", "conv2", *linear[:-1]], [True, True, *[False] * len(hidden)])
        drops = dropout_of_layers(dropout, linear)
        side = _last_map(image_size, padding, kernel_size)
        activate = partial(activated, activation=activation, position=batch_norm_position)
        widths = (maps2 * side * side, *hidden, num_classes)

        self.image_size, self.in_channels = image_size, in_channels
        self.features = _features((in_channels, *channels), kernel_size, padding, pooling, norms[:2], activate)
        self.classifier = _classifier(widths, drops, norms[2:], softmax_output, activate)

        differences = {
            f"{maps1}-{maps2} maps": (maps1, maps2) != (6, 16),
            f"{'-'.join(map(str, hidden)) or 'no'} hidden": tuple(hidden) != (120, 84),
            f"{kernel_size}x{kernel_size} kernels": kernel_size != 5,
            f"last maps {side}x{side}": side != 5,
            f"{in_channels} channels": in_channels != 1,
            f"{num_classes} classes": num_classes != 10,
            activation: activation != "relu",
            f"{pooling} pooling": pooling != "max",
            "batch norm": any(norms),
            "dropout": any(drops),
            "softmax output": softmax_output,
        }
        self._title = ", ".join(["LeNet-5", *(words for words, differs in differences.items() if differs)])

    @property
    def title(self) -> str:
        """Display name: "LeNet-5" and the differences from the network of 61,706 parameters."""
        return self._title

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits


def _features(
    maps: Sequence[int], kernel_size: int, padding: int, pooling: str, norms: Sequence[bool], activate: Activate
) -> nn.Sequential:
    """Both convolutions, each with its activation and pooling; only the first one has padding."""
    layers: dict[str, nn.Module] = {}
    for index, norm in enumerate(norms, start=1):
        convolution = nn.Conv2d(maps[index - 1], maps[index], kernel_size, padding=padding if index == 1 else 0)
        layers[f"conv{index}"] = convolution
        layers |= activate(norm=nn.BatchNorm2d(maps[index]) if norm else None, index=index)
        layers[f"pool{index}"] = POOLINGS[pooling](2)
    return sequential(layers)


def _classifier(
    widths: Sequence[int], drops: Sequence[float], norms: Sequence[bool], softmax_output: bool, activate: Activate
) -> nn.Sequential:
    """The linear layers, with the dropout before them and the activations between them."""
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for index, p in enumerate(drops, start=1):
        if p > 0:
            layers[f"dropout{index}"] = nn.Dropout(p)
        layers[f"linear{index}"] = nn.Linear(widths[index - 1], widths[index])
        if index < len(drops):
            layers |= activate(norm=nn.BatchNorm1d(widths[index]) if norms[index - 1] else None, index=index)
    if softmax_output:
        layers["softmax"] = nn.Softmax(dim=1)
    return sequential(layers)


def _last_map(image_size: int, padding: int, kernel_size: int) -> int:
    """Height and width in pixels of the second pooling's output.

    Raises:
        ValueError: a convolution has less than 2x2 pixels of output.
    """
    side = image_size + 2 * padding
    for layer in ("conv1", "conv2"):
        convolved = side - kernel_size + 1
        if convolved < 2:
            raise ValueError(
                f"image_size={image_size}, padding={padding}, kernel_size={kernel_size}: {layer} sees "
                f"{side}x{side} pixels and must leave 2x2 or more; use larger images, more padding or a smaller kernel"
            )
        side = convolved // 2
    return side
