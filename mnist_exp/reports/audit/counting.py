"""Count a network's parameters layer by layer, and find out which mistake gives a report's count.

Importing this module imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from torch import nn

from mnist_exp.components import build_model, image_properties, layers_of
from mnist_exp.config import Config

NEAR = 0.01  # a mistake that gives a count this near to the report's, as a fraction, is named if no mistake gives it exactly
MOST_EXPLANATIONS = 3


@dataclass(frozen=True)
class Layer:
    """A layer with parameters.

    Attributes:
        name, kind: as in the layer table. formula: how its parameters are counted. parameters: their number.
        biases: number of them among the parameters of a linear layer or a convolution.
        inputs, outputs: of a linear layer; None for others.
        side: of the feature maps, or of the image, that a linear layer gets, in pixels; None for other layers.
    """

    name: str
    kind: str
    formula: str
    parameters: int
    biases: int
    inputs: int | None = None
    outputs: int | None = None
    side: int | None = None


@dataclass(frozen=True)
class Count:
    """The parameters of a network beside a report's count.

    Attributes:
        claimed: None if the report gives none. explanations: mistakes that would give the report's count.
    """

    layers: tuple[Layer, ...]
    claimed: int | None
    explanations: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def is_wrong(self) -> bool:
        return self.claimed not in {None, self.total}


def count(config: Config, claimed: int | None) -> Count:
    """Count the parameters of a configuration's network.

    Raises:
        UsageError: the network cannot be built.
    """
    if config.data.image_size is None:
        from mnist_exp.components import build_data

        config = config.with_image_properties(image_properties(build_data(config.data)))
    model = build_model(config)
    layers: list[Layer] = []
    side = config.data.image_size or 0
    maps: tuple[int, ...] = (config.data.channels, side, side)  # the last feature maps, or the image, before this layer
    for row in layers_of(model, config):
        if row.parameters:
            layers.append(_layer(row.name, row.kind, row.parameters, model.get_submodule(row.name), maps))
        maps = row.output_shape if len(row.output_shape) == 3 else (0,) if row.kind == "Linear" else maps
    whole = Count(tuple(layers), claimed)
    return Count(whole.layers, claimed, tuple(_explain(whole)) if whole.is_wrong else ())


def _layer(name: str, kind: str, parameters: int, module: nn.Module, maps: tuple[int, ...]) -> Layer:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    biases = bias.numel() if isinstance(bias, nn.Parameter) else 0
    plus = f" + {biases:,}" if biases else ""
    if isinstance(module, nn.Linear):
        inputs, outputs = module.in_features, module.out_features
        side = maps[-1] if math.prod(maps) == inputs else None
        return Layer(name, kind, f"{inputs:,} x {outputs:,}{plus}", parameters, biases, inputs, outputs, side)
    formula = f"{parameters:,}"
    if isinstance(weight, nn.Parameter):
        sizes = [f"{size:,}" for size in weight.shape]
        if weight.numel() + biases == parameters:
            formula = " x ".join(sizes) + plus
        if weight.dim() == 1:
            biases = 0  # the shift of a normalisation is no bias that a count forgets
    return Layer(name, kind, formula, parameters, biases)


def _explain(count: Count) -> Iterator[str]:
    """The mistakes that give the report's count; if there is none, the one that comes near, if one does."""
    assert count.claimed is not None
    mistakes = list(_mistakes(count))
    exact = [text for text, total in mistakes if total == count.claimed]
    if exact:
        yield from list(dict.fromkeys(exact))[:MOST_EXPLANATIONS]
        return
    near = [(abs(total - count.claimed), text, total) for text, total in mistakes]
    apart, text, total = min(near, default=(math.inf, "", 0))
    if apart <= NEAR * count.claimed and 10 * apart < abs(count.total - count.claimed):
        yield f"{text}, which gives {total:,}, {apart:,} from the report's count"


def _mistakes(count: Count) -> Iterator[tuple[str, int]]:
    """Usual mistakes, the simplest first, and the count that each gives."""
    total, layers = count.total, count.layers
    for times in (2, 3):
        yield f"the whole network is counted {'twice' if times == 2 else 'three times'}", times * total
    if sum(layer.biases for layer in layers):
        yield "all biases are left out", total - sum(layer.biases for layer in layers)
    for layer in layers:
        yield f"{layer.name} ({layer.formula} = {layer.parameters:,}) is left out", total - layer.parameters
        yield f"{layer.name} ({layer.formula} = {layer.parameters:,}) is counted twice", total + layer.parameters
    yield from _other_inputs(count)
    with_biases = [layer for layer in layers if layer.biases]
    for size in range(1, min(4, len(with_biases))):  # fewer than all
        for some in combinations(with_biases, size):
            names = " and ".join(layer.name for layer in some)
            yield f"the biases of {names} are left out", total - sum(layer.biases for layer in some)


def _other_inputs(count: Count) -> Iterator[tuple[str, int]]:
    """A linear layer that is counted with other inputs: maps of another side, or those of another layer in place of or
    beside its own."""
    linear = [layer for layer in count.layers if layer.inputs and layer.outputs]
    for layer in linear:
        assert layer.inputs
        assert layer.outputs
        others: dict[int, str] = {}
        if layer.side:
            maps = layer.inputs // layer.side**2
            what = "maps" if maps > 3 else "images"
            for side in range(max(1, layer.side - 4), layer.side + 5):
                others[maps * side**2] = f" ({what} of {side}x{side} in place of {layer.side}x{layer.side})"
        for other in linear:
            assert other.inputs
            if other is not layer:
                others.setdefault(other.inputs, "")
                others.setdefault(layer.inputs + other.inputs, f" ({layer.inputs} + {other.inputs})")
        for inputs, why in others.items():
            if inputs != layer.inputs:
                text = f"{layer.name} is counted with {inputs:,} inputs{why}, not {layer.inputs:,}"
                yield text, count.total + (inputs - layer.inputs) * layer.outputs
