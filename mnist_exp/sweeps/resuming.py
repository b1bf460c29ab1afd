"""``sweep.resume=DIR``: what is taken over from ``sweep.json``, which may be somebody else's.

What the runs are, overrides of this project's own keys, is data and is taken over. Where and how they run (Hydra's launcher,
callbacks, folders of configuration files), and who is told, is for whoever types the command to say.
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
from mnist_exp.sweeps.directory import read_sweep
from mnist_exp.trust import ALLOWED_TARGETS

GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}
OWN = {*Config.model_fields, *GROUPS} - {"logger", "callbacks", "resume"}  # callbacks are code
KEY = re.compile(r"\+{0,2}\w+(\.\w+)*")
# A choice is the name of a file below conf/; with dots in it, it could lead to a file of somebody else's.
NAME = r"\w[\w-]*(/\w[\w-]*)*"
CHOICES = re.compile(rf"(choice\()?{NAME}(\s*,\s*{NAME})*\)?")
# Nothing runs elsewhere, and nothing is sent, because of these.
SAFE = {
    *("hydra/launcher=basic", "hydra/sweeper=basic", "hydra/sweeper=optuna"),
    *("logger=wandb", "logger=none", "logger.mode=offline", "logger.mode=disabled"),
    *("logger=tensorboard", "logger=[wandb,tensorboard]", "logger=[tensorboard,wandb]"),
}
REPLACED = {"hydra.sweep.dir", "hydra.run.dir", "hydra.mode", "sweep.resume"}
FLAGS = {"-cd": "config_dir", "-cn": "config_name", "-cp": "config_path"}


def arguments_to_finish(arguments: Sequence[str], given: Namespace) -> list[str]:
    """What ``sweep.resume=DIR`` stands for: the overrides that the sweep was started with, the given ones on top.

    Args:
        given: the same arguments, read.

    Raises:
        UsageError: the directory holds no sweep, or one that was started with more than it can decide.
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
                f"{path / 'sweep.json'} says {shlex.join(words)}, which is not for a directory to decide; if you trust "
                f"it, type it yourself: {command}"
            )
        )
    for words in missing:
        report(UsageError(_printable(f"{words[0]} is not taken over from {path}; if you want it, type it, too")))
    kept = [renamed(word) for word in started if is_own(word) and _key(word) not in answered | REPLACED]
    here = [shlex.split(typed(key, directory))[0] for key in ("hydra.sweep.dir", "sweep.resume")]
    return ["-m", *kept, *here, *own]


def renamed(word: str) -> str:
    """An override of an earlier version, as it is typed now."""
    return re.sub(r"\bstep\b", "step_decay", word) if _key(word) == "scheduler" else word


def left_to_user(arguments: Sequence[str]) -> list[str]:
    """Arguments of ``mnist-train`` that ``sweep.resume`` does not take over, so that they must be typed again."""
    return [word for words in _left_to_user(arguments) for word in words]


def is_own(word: str) -> bool:
    """Whether an argument is an override of this project's own keys, or of what its search tries, and plain data."""
    key, separator, value = word.partition("=")
    if word in SAFE:
        return True
    if not separator or "$" in word or not KEY.fullmatch(key):
        return False
    if "_target_" in word and not (key.endswith("._target_") and value.startswith(ALLOWED_TARGETS)):
        return False  # code of somebody else's: to be typed by who trusts it
    first, _, rest = key.lstrip("+").partition(".")
    if first == "hydra":
        if "_target_" in word or "{" in value:
            return False  # Hydra makes what it finds there
        knob, _, tried = rest.removeprefix("sweeper.").partition(".")
        return rest.startswith("sweeper.") and (
            is_own(f"{tried}={value}") if knob == "params" else not tried and knob in _search_knobs()
        )
    return first in OWN and (bool(rest) or first not in GROUPS or CHOICES.fullmatch(value) is not None)


def _search_knobs() -> set[str]:
    content = yaml.safe_load((CONF / "hydra" / "sweeper" / "optuna.yaml").read_text(encoding="utf-8"))
    return {key for key in content if not key.startswith("_")} - {"params", "defaults"}


def _left_to_user(arguments: Sequence[str]) -> list[list[str]]:
    """The same, each flag together with its value."""
    left: list[list[str]] = []
    words = iter(arguments)
    for word in words:
        if word in {"-m", "--multirun"} or is_own(word) or _key(word) in REPLACED:
            continue
        takes_value = word.startswith("-") and "=" not in word
        left.append([word, *([value] if takes_value and (value := next(words, None)) is not None else [])])
    return left


def _is_answered(word: str, typed: set[str]) -> bool:
    """Whether what was typed says something about the same thing; a launcher comes with options of its own."""
    if word.startswith("-"):
        flag = word.partition("=")[0]
        return {"--config-dir": "-cd", "--config-name": "-cn", "--config-path": "-cp"}.get(flag, flag) in typed
    key = _key(word)
    section = {"hydra.launcher": "hydra/launcher", "hydra.sweeper": "hydra/sweeper"}
    return key in typed or section.get(".".join(key.split(".")[:2]), key.split(".")[0]) in typed


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _printable(text: str) -> str:
    """What a terminal shows as it is; a stored word could hold its commands."""
    return "".join(character if character.isprintable() else "?" for character in text)
