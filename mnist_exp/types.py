"""Types of settings, used by the configuration and by constructors. torch is not imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

from pydantic import Discriminator, Field, Strict, Tag


def _list_or_one(value: object) -> str:
    return "list" if isinstance(value, Sequence) and not isinstance(value, str) else "one"


# Strict: 28.0 is not an int, true not a number, 1 not a bool. OmegaConf's lists are allowed, too.
Count = Annotated[int, Strict(), Field(ge=1)]
Flag = Annotated[bool, Strict()]
Probability = Annotated[float, Strict(), Field(ge=0, lt=1)]
Positive = Annotated[float, Strict(), Field(gt=0)]
NonNegative = Annotated[float, Strict(), Field(ge=0)]
Classes = Annotated[int, Strict(), Field(ge=2)]
Channels = Annotated[int, Strict(), Field(ge=1)]
T = TypeVar("T")
# One number, or a list of one for each channel of an image.
PerChannel = Annotated[Annotated[T, Tag("one")] | Annotated[list[T], Tag("list")], Discriminator(_list_or_one)]
# One value for all layers, or a list of one for each. The discriminator avoids an error message for each type of the union.
Dropout = Annotated[
    Annotated[Probability, Tag("one")] | Annotated[Sequence[Probability], Tag("list")], Discriminator(_list_or_one)
]
BatchNorm = Annotated[Annotated[Flag, Tag("one")] | Annotated[Sequence[Flag], Tag("list")], Discriminator(_list_or_one)]
