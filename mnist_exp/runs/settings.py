"""The settings that differ between arms, their order, and their values as text."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mnist_exp.errors import as_typed

ABSENT = "n/a"
# If sections share a value by interpolation, the section in which a user sets it comes first.
SECTIONS = ("regularization", "data", "trainer", "scheduler", "optimizer", "model")
NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)")
LONG_FRACTION = re.compile(r"\d+\.\d{5,}(?:e-?\d+)?")


@dataclass(frozen=True)
class Varied:
    """A setting that differs between arms.

    Attributes:
        key: dotted.
        aliases: other keys with the same value in every arm, usually by interpolation.
        values: for each arm; ``ABSENT`` if the arm does not have the setting.
    """

    key: str
    aliases: tuple[str, ...]
    values: tuple[Any, ...]

    @property
    def title(self) -> str:
        return self.key.removesuffix("._target_")

    def shown(self, index: int) -> str:
        value = self.values[index]
        if self.key.endswith("_target_") and value != ABSENT:
            return str(value).rpartition(".")[2]
        return ABSENT if isinstance(value, str) and value == ABSENT else as_typed(value)

    @property
    def is_numeric(self) -> bool:
        """Whether all values are numbers, and at least three of them are distinct."""
        numbers = [value for value in self.values if isinstance(value, int | float) and not isinstance(value, bool)]
        return len(numbers) == len([v for v in self.values if v != ABSENT]) and len(set(numbers)) >= 3


def ordered_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of all arms, those of other sections first, then in the order of ``SECTIONS``."""
    keys = dict.fromkeys(key for arm in settings for key in arm)
    return sorted(keys, key=lambda key: _rank(key.partition(".")[0]))


def natural(value: Any) -> tuple[Any, ...]:
    """A sort key for the natural order: null, false, true, numbers by size, lists item by item, words, ``ABSENT``.

    Numbers inside words count as numbers: run-2 before run-10, lr=0.003 before lr=0.1.
    """
    if value is None or isinstance(value, bool):
        return (0, -1 if value is None else int(value))
    if isinstance(value, int | float):
        return (1, float(value), type(value).__name__)
    if isinstance(value, list | tuple):
        return (2, *(natural(item) for item in value))
    if value == ABSENT:
        return (4,)
    parts = NUMBER.split(str(value))
    return (3, *((0, float(part), part) if i % 2 else (1, 0.0, part) for i, part in enumerate(parts) if part))


def split_settings(settings: Sequence[Mapping[str, Any]]) -> tuple[list[Varied], dict[str, Any]]:
    """Split the settings of the arms into those that differ, each listed once, and those that all arms share.

    A setting that only some kinds of model (or optimizer, ...) have, with the same value in all of them, is in neither,
    because it follows from the kind.
    """
    columns: dict[str, list[str]] = defaultdict(list)
    values: dict[str, tuple[Any, ...]] = {}
    common: dict[str, Any] = {}
    for key in ordered_keys(settings):
        row = tuple(arm.get(key, ABSENT) for arm in settings)
        present = {json.dumps(arm[key], sort_keys=True) for arm in settings if key in arm}
        if len(present) == 1 and ABSENT not in row:
            common[key] = row[0]
        elif len(present) > 1 or not _follows_from_kind(key, settings):
            columns[json.dumps(row, sort_keys=True)].append(key)
            values[key] = row
    return [Varied(same[0], tuple(same[1:]), values[same[0]]) for same in columns.values()], common


def _follows_from_kind(key: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    kind = f"{key.rpartition('.')[0]}._target_"
    having = {arm.get(kind) for arm in settings if key in arm}
    return kind in settings[0] and not any(arm.get(kind) in having for arm in settings if key not in arm)


def natural_order(names: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[int]:
    """The positions of arms in the natural order of their names, then of their settings."""
    first = settings[0] if settings else {}
    differ = [
        key for key in ordered_keys(settings) if any(arm.get(key, ABSENT) != first.get(key, ABSENT) for arm in settings)
    ]
    keys = [
        (natural(name), [natural(arm.get(key, ABSENT)) for key in differ])
        for name, arm in zip(names, settings, strict=True)
    ]
    return sorted(range(len(names)), key=keys.__getitem__)


def shortened(column: Varied) -> list[str]:
    """The values of all arms as text, long fractions with as few digits as keep them distinct, but at least four."""
    whole = [column.shown(index) for index in range(len(column.values))]
    for digits in range(4, 16):
        short = [LONG_FRACTION.sub(partial(_rounded, digits), text) for text in whole]
        if len(set(short)) == len(set(whole)):
            return short
    return whole


def _rounded(digits: int, number: re.Match[str]) -> str:
    return f"{float(number[0]):.{digits}g}"


def _rank(section: str) -> int:
    return SECTIONS.index(section) if section in SECTIONS else -1
