"""What the models share: the types of their arguments, activations, and one value for each layer.

Types are declared only here and in the constructors: pydantic's ``validate_call`` checks each call of a constructor
against its annotations and raises ``pydantic.ValidationError``, which is a ``ValueError``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator
from torch import nn

from mnist_exp.errors import nearest

T = TypeVar("T")

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def key_of(choices: Mapping[str, object]) -> AfterValidator:
    """The type of an argument that names one of ``choices``."""

    def check(name: str) -> str:
        if name not in choices:
            raise ValueError(f"should be one of {', '.join(choices)}{nearest(name, choices)}")
        return name

    return AfterValidator(check)


Activation = Annotated[str, key_of(ACTIVATIONS)]
Position = Literal["before", "after"]


def sequential(modules: dict[str, nn.Module]) -> nn.Sequential:
    """An ``nn.Sequential`` with named modules."""
    return nn.Sequential(OrderedDict(modules))


def activated(*, activation: str, norm: nn.Module | None, position: Position, index: int) -> dict[str, nn.Module]:
    """The activation of hidden layer ``index`` with its batch norm, if any, before or after it, by name."""
    act = {f"activation{index}": ACTIVATIONS[activation]()}
    if norm is None:
        return act
    batch_norm = {f"norm{index}": norm}
    return batch_norm | act if position == "before" else act | batch_norm


def batch_norm_of_layers(
    batch_norm: bool | Sequence[bool], layers: Sequence[str], when_true: Sequence[bool]
) -> tuple[bool, ...]:
    """A flag for each of ``layers``; ``True`` stands for ``when_true``.

    Raises:
        ValueError: the list has another length.
    """
    if isinstance(batch_norm, bool):
        return tuple(when_true) if batch_norm else (False,) * len(layers)
    return _one_for_each("batch_norm", batch_norm, layers, lambda flag: "true" if flag else "false")


def dropout_of_layers(dropout: float | Sequence[float], layers: Sequence[str]) -> tuple[float, ...]:
    """The drop probability in front of each of the linear ``layers``.

    A single number applies to the outputs of hidden linear layers, so to every linear layer but the first.

    Raises:
        ValueError: the list has another length.
    """
    if isinstance(dropout, int | float):
        return (0.0, *[float(dropout)] * (len(layers) - 1))
    return _one_for_each("dropout", dropout, layers, str)


def _one_for_each(knob: str, values: Sequence[T], layers: Sequence[str], show: Callable[[T], str]) -> tuple[T, ...]:
    if len(values) != len(layers):
        raise ValueError(
            f"{knob}=[{','.join(map(show, values))}] has {len(values)} values; this model has {len(layers)} layers that "
            f"take one ({', '.join(layers)}): give one for each, or a single one"
        )
    return tuple(values)
