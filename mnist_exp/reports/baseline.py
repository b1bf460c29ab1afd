"""Choose the baseline: the arm with which the others are compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir

from mnist_exp.compose import CONF, resolve
from mnist_exp.config import check
from mnist_exp.errors import UsageError, as_typed, nearest
from mnist_exp.hashing import arm_settings
from mnist_exp.runs import RunDirectoryError
from mnist_exp.runs.settings import ABSENT
from mnist_exp.runs.sweep import read_sweep

if TYPE_CHECKING:
    from mnist_exp.reports.collect import Arm


def choose(arms: Sequence[Arm], asked: str | None) -> tuple[int, str]:
    """Choose the baseline.

    By default it is the arm of the sweep's first job, if all runs belong to one sweep; else the arm that differs least
    from the default settings. An arm without a completed run is chosen only if no arm has one.

    Args:
        asked: label, name or settings (``lr=0.01,model=lenet5``) of an arm; None: the default.

    Returns:
        its position in ``arms``, and the reason in words.

    Raises:
        UsageError: ``asked`` matches no arm, or more than one.
    """
    if asked is not None:
        return _asked_for(arms, asked), "asked for with --baseline"
    if len(arms) == 1:
        return 0, "the only arm"
    candidates = [index for index, arm in enumerate(arms) if arm.runs] or list(range(len(arms)))
    if jobs := _jobs([run.path for arm in arms for run in [*arm.runs.values(), *arm.others]]):
        places = {
            index: min(jobs[run.path] for run in [*arms[index].runs.values(), *arms[index].others])
            for index in candidates
        }
        chosen = min(places, key=places.__getitem__)
        first = places[chosen] == 0
        return chosen, "the sweep's first job" if first else "the first job of the sweep with a result here"
    default = _default_settings()
    distances = {index: _distance(arms[index].settings, default) for index in candidates}
    chosen = min(candidates, key=lambda index: (distances[index], -len(arms[index].runs), index))
    return chosen, "the arm that differs least from the default settings"


def _asked_for(arms: Sequence[Arm], asked: str) -> int:
    labels, names = [arm.label for arm in arms], [arm.name for arm in arms]
    for known in (labels, names, [_words(label) for label in labels]):
        wanted = asked if known is labels or known is names else _words(asked)
        if known.count(wanted) == 1:
            return known.index(wanted)
    settings = [part.partition("=") for part in re.split(r",(?=[\w.]+=)", asked)]
    fitting = [
        index
        for index, arm in enumerate(arms)
        if all(sign and _has(arm.settings, key, text) for key, sign, text in settings)
    ]
    if len(fitting) == 1:
        return fitting[0]
    choices = [labels[index] for index in fitting] or labels
    shown = ", ".join(repr(label) for label in choices[:12]) + (", ..." if len(choices) > 12 else "")
    problem = f"fits {len(fitting)} arms" if fitting else "is not one arm"
    raise UsageError(f"--baseline {asked!r} {problem}; choose from {shown}{'' if fitting else nearest(asked, labels)}")


def _has(settings: dict[str, Any], key: str, text: str) -> bool:
    """Whether a setting, named by its key, the end of its key or its group, has the value that was typed."""
    for known, value in settings.items():
        if known == f"{key}._target_" and _plain(str(value).rpartition(".")[2]) == _plain(text):
            return True
        if (known == key or known.endswith(f".{key}")) and (as_typed(value) == text or _number(value) == _number(text)):
            return True
    return False


def _words(label: str) -> str:
    """A label as it may be typed: lenet5 lr=0.1 or lenet5 lr 0.1 for lenet5 · lr 0.1."""
    return " ".join(re.split(r"[\s=·]+", label.strip()))


def _plain(name: str) -> str:
    """A name without underscores and capitals: lenet5_1998 and LeNet5_1998 are one model."""
    return name.replace("_", "").lower()


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return as_typed(value)


def _jobs(paths: Sequence[Path]) -> dict[Path, int]:
    """The position of each run among the jobs of its sweep; empty if the runs are not all in one sweep."""
    folders = {path.parent for path in paths}
    if len(folders) != 1:
        return {}
    (folder,) = folders
    try:
        jobs = {folder / job.directory: place for place, job in enumerate(read_sweep(folder).jobs)}
    except RunDirectoryError:
        return {}
    return jobs if jobs.keys() >= set(paths) else {}


def _default_settings() -> dict[str, Any]:
    """The settings of ``mnist-train`` without arguments."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        tree = resolve(compose("train", overrides=["name=default"]))
    return arm_settings(check(tree))


def _distance(settings: dict[str, Any], default: dict[str, Any]) -> int:
    return sum(settings.get(key, ABSENT) != default.get(key, ABSENT) for key in settings.keys() | default.keys())
