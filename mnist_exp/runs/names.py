"""Labels of arms and runs, as a person would say them: ``lenet5 · lr 0.05``.

Reports, the terminal and Weights & Biases use the same ones. An arm is a group of runs that differ in their seed only.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mnist_exp.config import Config
from mnist_exp.errors import as_typed, unquoted
from mnist_exp.hashing import NOT_HASHED, arm_settings, changes_result
from mnist_exp.runs.record import RunRecord
from mnist_exp.runs.settings import ABSENT, Varied, shortened

SEPARATOR = " · "  # between the parts of a label
LONGEST = 120  # characters of the name of a run; W&B allows 128
# Keys that are part of no label: they do not change what is computed, or distinguish the runs of one arm.
UNNAMED = {"seed", "hydra", *(key for key in NOT_HASHED if "." not in key)}


def names_on_wandb(config: Config, overrides: Sequence[str], record: RunRecord | None) -> tuple[str, str]:
    """The name of a run on W&B, ``lenet5 · lr 0.05 · seed 1``, and that of its arm, ``lenet5 · lr 0.05``.

    Args:
        overrides: all that were typed for it.
        record: of a run that exists already. A job of a sweep has the label of its arm among those of the sweep; a run that
            was logged before keeps the name of its arm.
    """
    known = None if record is None else (record.wandb and record.wandb.arm) or record.arm
    arm = known or arm_alone(config.name, arm_settings(config), overrides)
    # A project on W&B holds runs of many sweeps, so the name of a run has what the arms of its sweep share, too.
    is_named = arm == config.name or arm.startswith((f"{config.name}{SEPARATOR}", f"{config.name} "))
    return _cut(SEPARATOR.join([*([] if is_named else [config.name]), arm, f"seed {config.seed}"])), arm


def arm_alone(name: str, settings: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """The label of an arm without others: its name, and all that was typed for it and changes the result.

    Args:
        name: of the run. settings: by dotted key. overrides: as typed.
    """
    chosen = _read_overrides(filter(changes_result, overrides))
    for key in ("model", "experiment"):
        if chosen.get(key, "").replace("/", ".") == name:
            del chosen[key]  # the name says it already
    choices = [said_choice(key, value) for key, value in chosen.items() if "." not in key]
    removed = [f"no {_words(word.lstrip('~').rpartition('.')[2])}" for word in overrides if word.startswith("~")]
    columns = [Varied(key, (), (settings.get(key, value),)) for key, value in chosen.items() if "." in key]
    return _cut(_with_settings([[name, *choices, *removed]], [0], columns)[0])


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


def _read_overrides(words: Iterable[str]) -> dict[str, str]:
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


def _short(column: Varied, others: Sequence[Varied]) -> str:
    """The last part of the key; the whole key where other settings have the same last part."""
    if column.key.endswith("._target_"):
        return column.key
    last = column.title.rpartition(".")[2]
    return last if sum(other.title.rpartition(".")[2] == last for other in others) == 1 else _spaced(column.title)


def _spaced(title: str) -> str:
    return title.replace(".", " ")


def _cut(text: str) -> str:
    """The text, or its beginning and a digest, so that two long names differ."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 7]}-{digest}"
