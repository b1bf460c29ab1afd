"""Multi-layer perceptrons, defined by their widths or by depth and parameter budget."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field, Strict, validate_call
from torch import Tensor, nn

from mnist_exp.models.layers import (
    Activation,
    Position,
    activated,
    batch_norm_of_layers,
    dropout_of_layers,
    sequential,
)
from mnist_exp.types import BatchNorm, Channels, Classes, Count, Dropout

LENET5_PARAMETERS = 61_706
DEFAULT_DEPTH = 2


class MLP(nn.Module):
    """Linear layers with an activation between them, on the pixels of the image as one vector.

    Images (N, ``in_channels``, ``image_size``, ``image_size``), float32, to logits (N, ``num_classes``), float32.

    Args:
        image_size: height and width of an image in pixels.
        pooling: the inputs are the means of ``pooling`` x ``pooling`` pixels; 1: the pixels themselves.
        hidden: widths of the hidden layers; an empty list is softmax regression.
        depth: number of hidden layers of equal width, the widest that ``budget`` allows; 2 if neither ``hidden``
            nor ``depth`` is given. Not together with ``hidden``.
        budget: greatest number of parameters, batch norm included; no effect if ``hidden`` is given.
        activation: a key of ``ACTIVATIONS``, after each hidden layer.
        batch_norm: a flag for each hidden layer; ``True`` means all.
        batch_norm_position: ``before`` or ``after`` the activation.
        dropout: drop probability in front of each linear layer; one number p means [0, p, ..., p], the outputs of the
            hidden layers.
        num_classes: number of outputs.
        in_channels: of the images; 1 is grey, 3 is colour.

    Raises:
        ValueError: a value is out of range, ``hidden`` and ``depth`` are both given, ``budget`` is too small, or ``pooling``
            does not divide ``image_size``.
    """

    @validate_call
    def __init__(
        self,
        *,
        image_size: Count = 28,
        pooling: Count = 1,
        hidden: Sequence[Count] | None = None,
        depth: Count | None = None,
        budget: Count = LENET5_PARAMETERS,
        activation: Activation = "relu",
        batch_norm: BatchNorm = False,
        batch_norm_position: Position = "before",
        dropout: Dropout = 0.0,
        num_classes: Classes = 10,
        in_channels: Channels = 1,
    ) -> None:
        super().__init__()
        if hidden is not None and depth is not None:
            raise ValueError(f"depth={depth} contradicts hidden={list(hidden)}; give one of them")
        if image_size % pooling:
            raise ValueError(f"pooling={pooling} does not divide the {image_size} pixels of an image's side")
        inputs = in_channels * (image_size // pooling) ** 2
        names = [
            f"linear{index}" for index in range(1, (len(hidden) if hidden is not None else depth or DEFAULT_DEPTH) + 1)
        ]
        norms = batch_norm_of_layers(batch_norm, names, [True] * len(names))
        if hidden is None:
            width = width_for_budget(
                depth=len(names), budget=budget, inputs=inputs, outputs=num_classes, normalised=sum(norms)
            )
            hidden = [width] * len(names)
        drops = dropout_of_layers(dropout, [*names, f"linear{len(names) + 1}"])

        widths = (inputs, *hidden, num_classes)
        layers: dict[str, nn.Module] = {"pool": nn.AvgPool2d(pooling)} if pooling > 1 else {}
        layers["flatten"] = nn.Flatten()
        for index, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
            if drops[index - 1] > 0:
                layers[f"dropout{index}"] = nn.Dropout(drops[index - 1])
            layers[f"linear{index}"] = nn.Linear(fan_in, fan_out)
            if index <= len(hidden):
                norm = nn.BatchNorm1d(fan_out) if norms[index - 1] else None
                layers |= activated(activation=activation, norm=norm, position=batch_norm_position, index=index)
        self.image_size, self.in_channels = image_size, in_channels
        self.layers = sequential(layers)
        self._title = "MLP " + "-".join(map(str, widths))

    @property
    def title(self) -> str:
        """Display name: "MLP" and the widths from the inputs to the classes."""
        return self._title

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def mlp_parameters(widths: Sequence[int], *, normalised: Sequence[int] = ()) -> int:
    """Number of parameters of linear layers from ``widths[0]`` inputs to ``widths[-1]`` outputs.

    ``normalised`` holds the widths of layers with batch norm, which has two parameters for each unit.
    """
    return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(widths)) + 2 * sum(normalised)


@validate_call
def width_for_budget(
    *,
    depth: Count,
    budget: Count,
    inputs: Count = 28 * 28,
    outputs: Count = 10,
    normalised: Annotated[int, Strict(), Field(ge=0)] = 0,
) -> int:
    """The largest width of ``depth`` equal hidden layers with which an MLP has at most ``budget`` parameters.

    Args:
        depth: number of hidden layers.
        budget: greatest number of parameters.
        inputs: number of pixels.
        outputs: number of classes.
        normalised: how many of the hidden layers have batch norm.

    Raises:
        ValueError: a value is out of range, or even a width of 1 needs more than ``budget``.
    """

    def parameters(width: int) -> int:
        return mlp_parameters((inputs, *[width] * depth, outputs), normalised=[width] * normalised)

    width = bisect_right(range(1, budget + 1), budget, key=parameters)
    if width == 0:
        raise ValueError(
            f"budget={budget}: must be {parameters(1)} or more, "
            f"which {depth} hidden layers of width 1 take for {inputs} pixels and {outputs} classes"
        )
    return width
