"""The settings that differ between arms, their order, and the labels of the arms."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mnist_exp.errors import as_typed, unquoted

ABSENT = "n/a"
SEPARATOR = " · "  # between the parts of a label
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


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; lists are not flattened."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


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


def _rank(section: str) -> int:
    return SECTIONS.index(section) if section in SECTIONS else -1


def labels(
    names: Sequence[str], varied: Sequence[Varied], typed: Sequence[Sequence[str]] = (), longest: int = 70
) -> list[str]:
    """A unique label for each arm, as a person would say it: ``mlp · adamw · lr 0.05``.

    It has the name of the arm, and what a user chose differently for it. What all arms share, and what follows from a
    choice (the learning rate in the file of an optimizer), is left out, unless labels would be equal without it. Where no
    two arms have the same name, the names are the labels.

    Args:
        names: of the runs. varied: the settings that differ, see ``split_settings``.
        typed: the overrides of each arm; empty where they are not known.
        longest: in characters; settings that are not needed for uniqueness are then left out.
    """
    if len(set(names)) == len(names):
        return _unique(list(names), longest)
    choices, keys = _chosen(names, varied, typed)
    columns = [column for key in keys for column in varied if key in (column.key, *column.aliases)]
    everyone = range(len(names))
    parts = choices
    plain = _with_settings(choices, everyone, columns)
    if len(set(names)) > 1 or (not all(plain) and (any(plain) or not varied)):
        parts = [[name, *others] for name, others in zip(names, choices, strict=True)]
    result = _with_settings(parts, everyone, columns)
    if max(map(len, result)) > longest:
        columns = _needed(everyone, columns, parts)
        result = _with_settings(parts, everyone, columns)
    same: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(result):
        same[text].append(index)
    for members in same.values():
        if len(members) > 1:
            more = _distinguishing(members, [column for column in varied if column not in columns])
            completed = _with_settings(parts, members, [*columns, *more])
            if max(map(len, completed)) > longest:
                completed = _with_settings(parts, members, [*columns, *_needed(members, more, parts)])
            for index, label in zip(members, completed, strict=True):
                result[index] = label
    return _unique(result, longest)


def _distinguishing(members: Sequence[int], columns: Sequence[Varied]) -> list[Varied]:
    """The settings that differ between some arms, kinds first, without those that follow from a kind."""
    differ = [column for column in columns if len({column.shown(index) for index in members}) > 1]
    kinds = [column for column in differ if column.key.endswith("._target_")]
    return kinds + [column for column in differ if column not in kinds and not _follows_from(kinds, column, members)]


def _follows_from(kinds: Sequence[Varied], column: Varied, members: Sequence[int]) -> bool:
    """Whether each combination of kinds has one value of the setting."""
    combinations = {tuple(kind.shown(index) for kind in kinds) for index in members}
    values = {(*(kind.shown(index) for kind in kinds), column.shown(index)) for index in members}
    return bool(kinds) and len(combinations) == len(values)


def _unique(result: list[str], longest: int) -> list[str]:
    """Labels of at most ``longest`` characters, with numbers where they are cut or equal."""
    for index, label in enumerate(result):
        if len(label) > longest:
            result[index] = f"{label[: longest - 6]}… #{index + 1}"
    seen = Counter(result)
    return [label if seen[label] == 1 else f"{label} #{index + 1}" for index, label in enumerate(result)]


# Keys that are part of no label: they do not change what is computed, or distinguish the runs of one arm.
UNNAMED = ("seed", "name", "resume", "quiet", "show_layers", "logger", "sweep", "trust", "hydra")


def _chosen(
    names: Sequence[str], varied: Sequence[Varied], typed: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[str]]:
    """What users chose: for each arm the names of its choices, and the keys that were typed for some arm, in that order."""
    chosen = [_read_overrides(words) for words in typed] or [{} for _ in names]
    keys = dict.fromkeys(key for own in chosen for key in own)
    groups = [key for key in keys if "." not in key and len({own.get(key) for own in chosen}) > 1]
    if all(own.get("model") in (None, name) for own, name in zip(chosen, names, strict=True)) and len(set(names)) > 1:
        groups = [key for key in groups if key != "model"]  # a run has the name of its model if no other is given
    choices = [[said_choice(key, own[key]) for key in groups if key in own] for own in chosen]
    known = {key for column in varied for key in (column.key, *column.aliases)}
    return choices, [key for key in keys if key in known]


def _read_overrides(words: Sequence[str]) -> dict[str, str]:
    """Key and value of each override that can be part of a label."""
    pairs = (word.lstrip("+").partition("=") for word in words)
    return {
        key: unquoted(value)
        for key, sign, value in pairs
        if sign and key.partition(".")[0].split("/")[0] not in UNNAMED
    }


def said_choice(group: str, choice: str) -> str:
    """A choice of a group as a person would say it: ``adamw`` for optimizer=adamw, ``no regularization`` for none."""
    if choice in {"none", "null", "default"}:
        return f"{'default' if choice == 'default' else 'no'} {_words(group)}"
    return choice


def said(key: str, value: Any) -> str:
    """A setting as a person would say it: ``lr 0.05``, ``batch norm``, ``no early stopping``, ``adamw``; empty if absent.

    Args:
        key: dotted; the last part is said. value: as in a configuration.
    """
    if isinstance(value, str) and value == ABSENT:
        return ""
    if key.endswith("_target_"):
        return str(value).rpartition(".")[2].lower()
    name = _words(key.rpartition(".")[2])
    if value is None or isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {value:g}" if isinstance(value, float) and len(f"{value:g}") <= 6 else f"{name} {as_typed(value)}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _with_settings(parts: Sequence[Sequence[str]], members: Sequence[int], columns: Sequence[Varied]) -> list[str]:
    texts = [_said_of_all(column, columns) for column in columns]
    return [SEPARATOR.join(filter(None, [*parts[i], *(column[i] for column in texts)])) for i in members]


def _said_of_all(column: Varied, others: Sequence[Varied]) -> list[str]:
    """The setting in words for each arm; numbers as in ``shortened``."""
    key = _short(column, others)
    number = [isinstance(value, float) and not isinstance(value, bool) for value in column.values]
    return [
        f"{_words(key)} {text}" if is_number else said(key, value)
        for value, text, is_number in zip(column.values, shortened(column), number, strict=True)
    ]


def _needed(members: Sequence[int], columns: Sequence[Varied], parts: Sequence[Sequence[str]]) -> list[Varied]:
    """The settings without which more labels would be equal."""

    def distinct(kept: Sequence[Varied]) -> int:
        return len({(*parts[index], *(column.shown(index) for column in kept)) for index in members})

    kept, most = list(columns), distinct(columns)
    for column in reversed(columns):
        others = [other for other in kept if other is not column]
        if distinct(others) == most:
            kept = others
    return kept


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


def _short(column: Varied, others: Sequence[Varied]) -> str:
    """The last part of the key; the whole key where other settings have the same last part."""
    if column.key.endswith("._target_"):
        return column.key
    last = column.title.rpartition(".")[2]
    return last if sum(other.title.rpartition(".")[2] == last for other in others) == 1 else _spaced(column.title)


def _spaced(title: str) -> str:
    return title.replace(".", " ")
