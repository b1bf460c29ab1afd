"""Explain errors of Hydra, OmegaConf, YAML and the operating system during composition, in one line each.

Their exceptions have few attributes, so some facts are read from the text of their messages.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.compose import (
    CONF,
    choices,
    choices_with_key,
    composing_code,
    content_of,
    explain_interpolation,
    groups,
    root_of,
)
from mnist_exp.errors import UsageError, WrappedError, near_miss, nearest, same_ending, typed
from mnist_exp.plain import load_yaml

# Errors of the operating system about the user's disk, even if they do not name a file.
OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper", "hydra/job_logging", "hydra/hydra_logging")


@contextmanager
def wrap_errors_for_hydra() -> Iterator[None]:
    """Wrap an error, so that it passes through Hydra to ``commandline.run_hydra``, which raises it again."""
    try:
        yield
    except Exception as error:
        raise WrappedError(error) from error


def as_usage_error(error: Exception, folders: Sequence[Path] = (CONF,)) -> UsageError | None:
    """The user's mistake that caused this exception; None if it is a failure of ours."""
    if isinstance(error, UsageError):
        return error
    if isinstance(error, HydraException | OmegaConfBaseException) or _raised_while_composing(error):
        return UsageError(explain_composition(error, folders))
    if isinstance(error, OSError) and error.filename is not None:
        return UsageError(f"{error.filename}: {error.strerror}")
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        return UsageError(f"a file cannot be written: {error.strerror}")
    return None


def _raised_while_composing(error: Exception) -> bool:
    """Whether the exception was raised inside Hydra's loader, which does not catch those of other libraries."""
    composing = composing_code()
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is composing:
            return True
        trace = trace.tb_next
    return False


def explain_composition(error: BaseException, folders: Sequence[Path] = (CONF,)) -> str:
    """One line about an error of composition: what, where, what is allowed, what to type instead."""
    if isinstance(error, OverrideParseException):
        return _malformed(error.override)
    if isinstance(error, MissingConfigException):
        return _missing_file(error, folders)
    if isinstance(error, RecursionError):
        return "the defaults of configuration files name each other in a circle; check the one that was added last"
    if isinstance(error, HydraException):
        return _hydra(error, folders)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return explain_interpolation(error, {})
    return _file(error, folders)


def _malformed(override: str) -> str:
    """An override that Hydra cannot parse."""
    key, separator, value = override.partition("=")
    if not separator:
        if os.path.exists(Path(override) / "run.json"):  # raises no error for a name that is too long
            return f"{override} is a run directory; to continue it, type {typed('resume', override)}"
        advice = f"type {key}=VALUE" if re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", key) else "settings are typed KEY=VALUE"
        return f"{override} is no setting; {advice}"
    if value[:1] in {"[", "{", "(", '"', "'"} or value.count("[") != value.count("]"):
        return f"{override} is not valid: a bracket or a quote has no partner, or a key no value"
    return f"{override} is not valid: = ( ) {{ }} and the like need quotes; type {typed(key, value)}"


def _missing_file(error: MissingConfigException, folders: Sequence[Path]) -> str:
    text = " ".join(str(error).split())
    name = error.missing_cfg_file or ""
    where = _where(text, folders)
    if "primary config" in text.lower():
        return f"{text.partition('. Check')[0]}: --config-name and --config-path must name a file like train.yaml"
    group = max((group for group in groups(folders) if name.startswith(f"{group}/")), key=len, default="")
    if error.options is None:
        return f"{where}defaults name {name}, and there is no such file"
    group = group or name.rpartition("/")[0]
    choice = name.removeprefix(f"{group}/")
    where = where or _named_in(group, choice, folders)
    allowed = sorted({*choices(group, folders), *(error.options or ())})
    return f"{where}{group}={choice} is not a choice; choose from {', '.join(allowed)}{_near_choice(choice, allowed)}"


def _named_in(group: str, choice: str, folders: Sequence[Path]) -> str:
    """``FILE: `` for the file whose defaults name a choice that does not exist."""
    for file in (file for folder in folders for file in sorted(folder.rglob("*.yaml"))):
        defaults = content_of(file).get("defaults")
        for entry in defaults if isinstance(defaults, list) else ():
            chosen = (
                {str(key).removeprefix("override ").strip("/ "): value for key, value in dict(entry).items()}
                if isinstance(entry, dict)
                else {}
            )
            if chosen.get(group) == choice:
                return f"{file}: "
    return ""


def _near_choice(word: str, allowed: Sequence[str]) -> str:
    """``; did you mean CHOICE?`` for choices whose last part equals the word, begins with it or is similar, else nothing."""
    last = word.rpartition("/")[2]
    same = [choice for choice in allowed if choice.rpartition("/")[2] == last][:3]
    longer = [choice for choice in allowed if last and choice.rpartition("/")[2].startswith(f"{last}_")][:3]
    matches = same or longer or get_close_matches(word, allowed, n=1)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def _hydra(error: HydraException, folders: Sequence[Path]) -> str:
    """Explain an error of Hydra, which is recognised by the words of its message."""
    text = " ".join(str(error or error.__cause__ or type(error).__name__).split())
    where = _where(text, folders)
    if several := re.search(
        r"(Ambiguous value for argument|Sweep parameters) '(.*?)' ?(?:1\. To use it|requires)", text
    ):
        return _several_values(several[2], is_list=several[1].startswith("Ambiguous"), folders=folders)
    if swept := re.search(r"Sweeping over Hydra's configuration is not supported : '(.*)'$", text):
        return f"{swept[1]}: Hydra's own settings cannot be swept over; give one value"
    if folder := re.search(r"Additional config directory '(.*)' not found", text):
        return f"--config-dir {folder[1]}: there is no such folder"
    if unknown := re.search(r"Could not override '([^']*)'", text):
        return f"{where}{_unknown_key(unknown[1], error, folders)}"
    if gone := re.search(r"Could not delete (?:from config\. )?'([^']*)'", text):
        near = nearest(gone[1], groups(folders)) or _all_keys(gone[1])
        return f"{where}~{gone[1]}: there is nothing to delete, {gone[1]} does not exist or is null{near}"
    if kept := re.search(r"The value of '([^']*)' is (.*) and not (.*)\.$", text):
        return f"~{kept[1]}={kept[3]}: it is {kept[2]}; type ~{kept[1]}"
    if there := re.search(r"Either remove \+ prefix: '(.*?)' Or add", text):
        key, _, value = there[1].partition("=")
        return f"+{there[1]}: {key} exists already; type {_again(key, value)}"
    if forced := re.search(r"force-add of config groups is not supported: '\+\+(.*)'", text):
        return f"++{forced[1]}: a group is chosen without +; type {forced[1]}"
    if twice := re.search(r"Multiple values for ([^. ]+)\.", text):
        return f"{where}{twice[1]} is chosen twice; choose it without +, and in a file with defaults: - override /{twice[1]}"
    if merged := re.search(r"Error merging override (.*)$", text):
        cause = " ".join(str(error.__cause__).splitlines()[:1])
        if (
            merged[1].startswith("+") and "HydraConfig was not set" in cause
        ):  # its default is an interpolation of Hydra's
            key, _, value = merged[1].lstrip("+").partition("=")
            return f"{merged[1]}: {key} exists already; type {_again(key, value)}"
        if merged[1].startswith("~"):
            return f"{merged[1]} is not possible; give it another value instead"
        return f"{merged[1]} is not possible: {cause}"
    key = re.search(r" full_key: (?!object_type)(\S+)", text)
    text = text.replace(", set env var HYDRA_FULL_ERROR=1 to see chained exception.", "")
    text = re.sub(
        r"^In '[^']*': (\w+ raised while composing config: )?| (full_key|object_type|reference_type)[:=].*$", "", text
    )
    return f"{where}{f'{key[1]}: ' if key else ''}{text}"


def _again(key: str, value: str) -> str:
    """The override, quoted for a shell; ``value`` may have quotes already."""
    return typed(key, value) if not re.match(r"[\[{\"']", value) else f"'{key}={value}'"


def _several_values(override: str, *, is_list: bool, folders: Sequence[Path]) -> str:
    key, _, values = override.partition("=")
    sweep = f"mnist-train -m {shlex.quote(override)}"
    if not is_list or key in groups(folders):
        return f"{override} names several values; train each with {sweep}"
    return f"{override} names several values; train each with {sweep}, or write a list as {shlex.quote(f'{key}=[{values}]')}"


def _unknown_key(key: str, error: BaseException, folders: Sequence[Path]) -> str:
    """Explain a key that does not exist, and suggest a similar one."""
    known = groups(folders)
    if key in known:
        return f"{key} is a folder of choices that is not in any defaults list; type +{key}=CHOICE"
    tree = _tree(error)
    if not key.startswith("hydra."):
        tree.pop("hydra", None)
    near = same_ending(key, tree) or choices_with_key(key, folders) or near_miss(key, tree)
    return f"{key} is not a key{near or nearest(key, [*known, *HYDRA_GROUPS]) or _all_keys(key)}"


def _all_keys(key: str) -> str:
    return f"; mnist-train --cfg {'hydra' if key.startswith('hydra') else 'job'} lists the keys"


def _tree(error: BaseException | None) -> dict[str, Any]:
    """The whole configuration in which the key was not found, from OmegaConf's exception; {} if there is none."""
    while error is not None:
        parent = getattr(error, "parent_node", None)
        if isinstance(parent, DictConfig):
            tree = OmegaConf.to_container(root_of(parent), resolve=False)
            assert isinstance(tree, dict)
            return {str(key): value for key, value in tree.items()}
        error = error.__cause__
    return {}


def _where(text: str, folders: Sequence[Path]) -> str:
    """``FILE: `` for a message that begins with ``In 'NAME':``; nothing if that is our own train.yaml."""
    name = re.match(r"In '([^']*)'", text)
    if name is None or name[1] in {"train", "hydra/config"}:
        return ""
    files = [folder / f"{name[1]}.yaml" for folder in folders]
    return f"{next((file for file in files if file.exists()), name[1])}: "


def _file(error: BaseException, folders: Sequence[Path]) -> str:
    """Explain a configuration file that cannot be read, with line and column if known."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        problem = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: {problem}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    unreadable = next((problem for folder in folders for problem in _unreadable(folder)), None)
    return unreadable or f"the configuration cannot be composed: {type(error).__name__}: {text}"


def _unreadable(folder: Path) -> Iterator[str]:
    """A message for each file that is no mapping of keys, for exceptions that do not name the file."""
    for file in sorted(folder.rglob("*.yaml")):
        try:
            content = load_yaml(file.read_text(encoding="utf-8"))
        except OSError as error:
            yield f"{file}: {error.strerror}"
        except UnicodeDecodeError as error:
            yield f"{file}: byte {error.start + 1} is not UTF-8"
        except ValueError as error:
            yield f"{file}: {error}"
        else:
            if not isinstance(content, dict | None):
                yield f"{file}: should hold keys and values, and holds a {type(content).__name__}"
            elif content and not isinstance(content.get("defaults", []), list):
                yield f"{file}: defaults should be a list"
