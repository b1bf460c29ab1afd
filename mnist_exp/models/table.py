"""A model's layers: output shapes, parameters, multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mnist_exp.torch_private import FlopCounterMode, defer_dynamo


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of a model, for one image.

    Attributes:
        name: its name in the state dict, such as ``features.conv1``.
        kind: its class, such as ``Conv2d``.
        output_shape: shape of its output, without the batch.
        parameters: number of trainable parameters.
        macs: multiply-accumulates of its convolutions and matrix products, as executed (zeros of a partial
            connection table included); other arithmetic is not counted.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


def layer_table(model: nn.Module, image_size: int, in_channels: int = 1) -> list[LayerRow]:
    """The layers of ``model`` in the order they run, for images (``in_channels``, ``image_size``, ``image_size``).

    Only layers with parameters or another output shape are listed, so no activations and no dropout. The model is run
    once on a blank image, in evaluation mode and without gradients; its parameters, buffers, modes and the random number
    generators do not change. Pass a compiled model before its compilation.
    """
    names = {module: name for name, module in model.named_modules() if not list(module.children())}
    calls: list[tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((module, tuple(inputs[0].shape[1:]), tuple(output.shape[1:])))

    hooks = [module.register_forward_hook(record) for module in names]
    modes = [(module, module.training) for module in model.modules()]
    like = next(model.parameters())
    defer_dynamo()
    counter = FlopCounterMode(display=False)
    try:
        model.eval()
        with torch.no_grad(), counter:
            model(like.new_zeros(1, in_channels, image_size, image_size))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    flops = counter.get_flop_counts()
    root = type(model).__name__
    return [
        LayerRow(
            name=names[module],
            kind=type(module).__name__,
            output_shape=after,
            parameters=count_parameters(module),
            macs=sum(flops.get(f"{root}.{names[module]}", {}).values()) // 2,
        )
        for module, before, after in calls
        if before != after or count_parameters(module) > 0
    ]


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters of ``model``."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
