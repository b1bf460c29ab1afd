"""What the models share: activations, normalisation after a layer, and the checks of their arguments.

Every check raises ``ValueError`` with one line: the knob, the value it has, what is allowed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from difflib import get_close_matches
from math import isfinite
from typing import Any, Literal, NoReturn, TypeGuard

from torch import nn

Position = Literal["before", "after"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def sequential(modules: dict[str, nn.Module]) -> nn.Sequential:
    """``modules`` in order, under their names."""
    return nn.Sequential(OrderedDict(modules))


def activated(*, activation: str, norm: nn.Module | None, position: Position, index: int) -> dict[str, nn.Module]:
    """The activation of hidden layer ``index`` with its batch norm, if any, before or after it, by name."""
    act = {f"activation{index}": ACTIVATIONS[activation]()}
    if norm is None:
        return act
    batch_norm = {f"norm{index}": norm}
    return batch_norm | act if position == "before" else act | batch_norm


def reject(knob: str, value: object, allowed: str) -> NoReturn:
    """Raises the ``ValueError`` for a ``knob`` whose ``value`` is not what is ``allowed``."""
    raise ValueError(f"{knob}={value!r}: must be {allowed}")


def check_choice(knob: str, value: object, allowed: Sequence[str]) -> str:
    """``value`` if it is one of ``allowed``; the error names the nearest choice for a misspelling."""
    if isinstance(value, str) and value in allowed:
        return value
    near = get_close_matches(str(value), allowed, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    reject(knob, value, f"one of {', '.join(allowed)}{hint}")


def check_int(knob: str, value: object, *, minimum: int) -> int:
    """``value`` if it is an integer (no bool) of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        reject(knob, value, f"an integer, {minimum} or more")
    return value


def check_number(knob: str, value: object) -> float:
    """``value`` as a float if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        reject(knob, value, "a finite number")
    return float(value)


def check_bool(knob: str, value: object) -> bool:
    """``value`` if it is a bool."""
    if not isinstance(value, bool):
        reject(knob, value, "true or false")
    return value


def check_widths(knob: str, value: object, *, length: int | None = None) -> tuple[int, ...]:
    """``value`` as a tuple if it is a list of positive integers, ``length`` of them where given."""
    allowed = "a list of integers, each 1 or more" if length is None else f"{length} integers, each 1 or more"
    if not _is_list(value) or (length is not None and len(value) != length):
        reject(knob, value, allowed)
    if any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in value):
        reject(knob, value, allowed)
    return tuple(value)


def check_flags(knob: str, value: object, *, layers: Sequence[str], when_true: Sequence[bool]) -> tuple[bool, ...]:
    """One flag for each of ``layers`` from a bool (``True`` stands for ``when_true``) or a list of bools."""
    if isinstance(value, bool):
        return tuple(when_true) if value else (False,) * len(layers)
    if not _is_list(value) or len(value) != len(layers) or not all(isinstance(flag, bool) for flag in value):
        reject(knob, value, f"true, false or a list of {len(layers)} of them ({', '.join(layers)})")
    return tuple(value)


def check_dropout(knob: str, value: object, *, layers: int) -> tuple[float, ...]:
    """A drop probability in front of each of ``layers`` linear layers, from one number or a list.

    One number stands for the outputs of hidden linear layers, so for every linear layer but the first.
    """
    allowed = f"a probability (0 <= p < 1) or a list of {layers} of them, one in front of each linear layer"
    if _is_probability(value):
        return (0.0, *[float(value)] * (layers - 1))
    if not _is_list(value) or len(value) != layers or not all(map(_is_probability, value)):
        reject(knob, value, allowed)
    return tuple(float(p) for p in value)


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_probability(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
