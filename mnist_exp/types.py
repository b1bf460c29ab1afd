"""Types of settings that the configuration and the constructors share. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

from pydantic import Discriminator, Field, Strict, Tag


def _list_or_one(value: object) -> str:
    return "list" if isinstance(value, Sequence) and not isinstance(value, str) else "one"


# Strict, so that 28.0 is no size, true no number and 1 no flag; any sequence is a list, OmegaConf's own too.
Count = Annotated[int, Strict(), Field(ge=1)]
Flag = Annotated[bool, Strict()]
Probability = Annotated[float, Strict(), Field(ge=0, lt=1)]
Positive = Annotated[float, Strict(), Field(gt=0)]
NonNegative = Annotated[float, Strict(), Field(ge=0)]
Classes = Annotated[int, Strict(), Field(ge=2)]
Channels = Annotated[int, Strict(), Field(ge=1)]
T = TypeVar("T")
# One number, or a list with one for each channel of an image.
PerChannel = Annotated[Annotated[T, Tag("one")] | Annotated[list[T], Tag("list")], Discriminator(_list_or_one)]
# One for all layers, or one for each; told apart first, so that a mistake is explained once.
Dropout = Annotated[
    Annotated[Probability, Tag("one")] | Annotated[Sequence[Probability], Tag("list")], Discriminator(_list_or_one)
]
BatchNorm = Annotated[Annotated[Flag, Tag("one")] | Annotated[Sequence[Flag], Tag("list")], Discriminator(_list_or_one)]
