"""A model's structure as the kernels need it, read from its modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from mnist_exp.models import MLP, LeNet5
from mnist_exp.native.build import NativeUnavailable

# The same numbers as in vectors.h.
ACTIVATIONS: dict[type[nn.Module], int] = {nn.ReLU: 0, nn.Tanh: 1, nn.Sigmoid: 2, nn.GELU: 3, nn.SiLU: 4}
MAX_LAYERS = 64  # as in shards.h
MAX_PIXELS = 64 * 64
MAX_WEIGHTS = 2**20  # of a layer; beyond it PyTorch is faster


class NotCovered(NativeUnavailable):
    """The kernels do not cover this network."""


BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


class Part(NamedTuple):
    """A layer with weights, and its dropout and batch norm."""

    module: nn.Conv2d | nn.Linear
    dropout: nn.Dropout | None  # in front of it
    norm: BatchNorm | None = None
    position: int = 0  # of the norm: 1 before the activation, 2 after it; as in shards.h

    def parameters(self) -> list[Tensor]:
        found = [self.module.weight, self.module.bias]
        if self.norm is not None:
            found += [self.norm.weight, self.norm.bias]
        return [parameter for parameter in found if parameter is not None]


class Structure(NamedTuple):
    """A model's structure as the kernels need it."""

    constants: Mapping[str, int]  # macros of the source
    parts: tuple[Part, ...]
    image_shape: tuple[int, int, int]  # of the model's input
    before: nn.Module | None  # applied to the images by PyTorch, in front of the kernels
    after: nn.Module | None  # applied to the logits by PyTorch


def structure(model: nn.Module) -> Structure:
    """Read a model's modules.

    Raises:
        NotCovered: it is not a LeNet5 or MLP, or has a part without a kernel.
    """
    if type(model) not in {LeNet5, MLP}:
        raise NotCovered(f"there are no kernels for {type(model).__name__}")
    parts: list[Part] = []
    activations: set[type[nn.Module]] = set()
    activated = average = False
    waiting: nn.Dropout | None = None
    before: nn.Module | None = None
    after: nn.Module | None = None
    for module in model.modules():
        match module:
            case nn.Conv2d() | nn.Linear():
                parts.append(Part(module, waiting))
                waiting, activated = None, False
            case nn.Dropout():
                waiting = module
            case nn.Softmax():
                after = module
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                parts[-1] = parts[-1]._replace(norm=module, position=2 if activated else 1)
            case nn.AvgPool2d() if isinstance(model, MLP):
                before = module
            case nn.AvgPool2d():
                average = True
            case _ if type(module) in ACTIVATIONS:
                activations.add(type(module))
                activated = True
    if len(parts) > MAX_LAYERS:
        raise NotCovered(f"there are kernels for {MAX_LAYERS} layers at most, and this model has {len(parts)}")
    if (largest := max(part.module.weight.numel() for part in parts)) > MAX_WEIGHTS:
        raise NotCovered(
            f"PyTorch is faster for layers with more than {MAX_WEIGHTS:,} weights, and this model has one of {largest:,}"
        )
    constants = {"ACTIVATION": ACTIVATIONS[activations.pop()] if activations else 0}
    assert isinstance(model, LeNet5 | MLP)
    image_size, first = model.image_size, parts[0].module
    if isinstance(first, nn.Conv2d):
        if model.in_channels != 1:
            raise NotCovered(
                f"there are kernels for convolutions of grey images only, and these have {model.in_channels} channels"
            )
        kernel, padding = int(first.kernel_size[0]), int(first.padding[0])
        if (image_size + 2 * padding) ** 2 > MAX_PIXELS:
            raise NotCovered(f"there are kernels for {MAX_PIXELS} pixels at most, padding included")
        maps1, maps2 = (part.module.weight.shape[0] for part in parts[:2])
        constants |= {"SIDE": image_size, "PADDING": padding, "KERNEL": kernel, "CHANNELS1": maps1, "CHANNELS2": maps2}
        constants |= {"DENSE": int(average or any(part.norm for part in parts[:2])), "AVERAGE": int(average)}
    return Structure(constants, tuple(parts), (model.in_channels, image_size, image_size), before, after)
