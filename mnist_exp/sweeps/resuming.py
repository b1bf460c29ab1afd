"""``sweep.resume=DIR``: the arguments that are taken from ``sweep.json``, which may be another person's file.

Overrides of this project's own keys are data and are taken. Arguments that decide where and how jobs run (launcher,
callbacks, folders of configuration files) or where results are sent must be typed by the user.
"""

from __future__ import annotations

import re
import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import yaml

from mnist_exp.compose import CONF
from mnist_exp.config import Config
from mnist_exp.errors import UsageError, report, typed, unquoted
from mnist_exp.runs.sweep import read_sweep
from mnist_exp.trust import ALLOWED_TARGETS

GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}
OWN = {*Config.model_fields, *GROUPS} - {"logger", "callbacks", "resume"}  # callbacks are code
KEY = re.compile(r"\+{0,2}\w+(\.\w+)*")
# A choice is the name of a file below conf/; with dots in it, it could name a file elsewhere.
NAME = r"\w[\w-]*(/\w[\w-]*)*"
CHOICES = re.compile(rf"(choice\()?{NAME}(\s*,\s*{NAME})*\)?")
# These run no other code and send nothing.
SAFE = {
    *("hydra/launcher=basic", "hydra/sweeper=basic", "hydra/sweeper=optuna"),
    *("logger=wandb", "logger=none", "logger.mode=offline", "logger.mode=disabled"),
    *("logger=tensorboard", "logger=[wandb,tensorboard]", "logger=[tensorboard,wandb]"),
}
REPLACED = {"hydra.sweep.dir", "hydra.run.dir", "hydra.mode", "sweep.resume"}
FLAGS = {"-cd": "config_dir", "-cn": "config_name", "-cp": "config_path"}


def arguments_to_finish(arguments: Sequence[str], given: Namespace) -> list[str]:
    """Replace ``sweep.resume=DIR`` by the overrides that the sweep was started with, followed by the given ones.

    Args:
        given: ``arguments``, parsed.

    Raises:
        RunDirectoryError: the directory is not a sweep, or its ``sweep.json`` is damaged.
        UsageError: the sweep was started with arguments that must be typed again.
    """
    resumed = [word for word in given.overrides if word.lstrip("+").startswith("sweep.resume=")]
    directory = unquoted(resumed[-1].partition("=")[2]) if resumed else ""
    if directory in {"", "null"}:
        return list(arguments)
    path = Path(directory)
    own = [word for word in arguments if word not in {"-m", "--multirun", *resumed}]
    started = read_sweep(path).arguments
    answered = {_key(word) for word in given.overrides} | {flag for flag, name in FLAGS.items() if getattr(given, name)}
    missing = [words for words in _left_to_user(started) if not _is_answered(words[0], answered)]
    if any(not words[0].startswith("logger") for words in missing):
        words = [word for words in missing for word in words]
        command = " ".join(["mnist-train -m", typed("sweep.resume", path), shlex.join([*own, *words])])
        raise UsageError(
            _printable(
                f"{path / 'sweep.json'} contains {shlex.join(words)}, which sweep.resume does not take over; if you "
                f"trust it, type it: {command}"
            )
        )
    for words in missing:
        report(UsageError(_printable(f"{words[0]} is not taken over from {path}; if you want it, type it, too")))
    kept = [renamed(word) for word in started if is_own(word) and _key(word) not in answered | REPLACED]
    here = [shlex.split(typed(key, directory))[0] for key in ("hydra.sweep.dir", "sweep.resume")]
    return ["-m", *kept, *here, *own]


def renamed(word: str) -> str:
    """An override of an earlier version in the spelling of this version."""
    return re.sub(r"\bstep\b", "step_decay", word) if _key(word) == "scheduler" else word


def left_to_user(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``mnist-train`` that ``sweep.resume`` does not take over, so that the user must type them again."""
    return [word for words in _left_to_user(arguments) for word in words]


def is_own(word: str) -> bool:
    """Whether an argument overrides a key of this project, or of its search, and its value is plain data."""
    key, separator, value = word.partition("=")
    if word in SAFE:
        return True
    if not separator or "$" in word or not KEY.fullmatch(key):
        return False
    if "_target_" in word and not (key.endswith("._target_") and value.startswith(ALLOWED_TARGETS)):
        return False  # code outside this project
    first, _, rest = key.lstrip("+").partition(".")
    if first == "hydra":
        if "_target_" in word or "{" in value:
            return False  # Hydra would instantiate it
        knob, _, tried = rest.removeprefix("sweeper.").partition(".")
        return rest.startswith("sweeper.") and (
            is_own(f"{tried}={value}") if knob == "params" else not tried and knob in _search_knobs()
        )
    return first in OWN and (bool(rest) or first not in GROUPS or CHOICES.fullmatch(value) is not None)


def _search_knobs() -> set[str]:
    content = yaml.safe_load((CONF / "hydra" / "sweeper" / "optuna.yaml").read_text(encoding="utf-8"))
    return {key for key in content if not key.startswith("_")} - {"params", "defaults"}


def _left_to_user(arguments: Sequence[str]) -> list[list[str]]:
    """As ``left_to_user``, with each flag and its value in one list."""
    left: list[list[str]] = []
    words = iter(arguments)
    for word in words:
        if word in {"-m", "--multirun"} or is_own(word) or _key(word) in REPLACED:
            continue
        takes_value = word.startswith("-") and "=" not in word
        left.append([word, *([value] if takes_value and (value := next(words, None)) is not None else [])])
    return left


def _is_answered(word: str, answered: set[str]) -> bool:
    """Whether the user typed the same flag or key, or chose the launcher, sweeper or group that the key belongs to."""
    if word.startswith("-"):
        flag = word.partition("=")[0]
        return {"--config-dir": "-cd", "--config-name": "-cn", "--config-path": "-cp"}.get(flag, flag) in answered
    key = _key(word)
    section = {"hydra.launcher": "hydra/launcher", "hydra.sweeper": "hydra/sweeper"}
    return key in answered or section.get(".".join(key.split(".")[:2]), key.split(".")[0]) in answered


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _printable(text: str) -> str:
    """Replace control characters, which a stored word could contain, by question marks."""
    return "".join(character if character.isprintable() else "?" for character in text)
