"""Composition of the configuration: the folder ``conf/``, its groups and choices, interpolations.

Only Hydra is imported, so that a mistyped key is reported quickly. All private parts of Hydra and OmegaConf that this
package uses are at the end of this module.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, Node, OmegaConf, base
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mnist_exp.errors import NUMBER, UsageError, near_miss, same_ending
from mnist_exp.plain import load_yaml

PACKAGE = Path(__file__).parent
# In a checkout conf/ is beside the package, in an installed wheel inside it.
CONF = PACKAGE.parent / "conf" if (PACKAGE.parent / "conf" / "train.yaml").is_file() else PACKAGE / "conf"

# Groups that may be empty: null, or deleted with ~GROUP. A run needs a choice of every other group.
OPTIONAL = ("logger", "callbacks", "experiment", "sweep")


def _from_environment(name: str, default: str | None = None) -> str | None:
    """The environment variable; ``default`` if it is empty or not set."""
    return os.environ.get(name) or default


def _list_from_environment(name: str) -> ListConfig:
    """The words between the commas in the environment variable."""
    return ListConfig([word.strip() for word in os.environ.get(name, "").split(",") if word.strip()])


OmegaConf.register_new_resolver("environment", _from_environment, replace=True)
OmegaConf.register_new_resolver("environment_list", _list_from_environment, replace=True)
OmegaConf.register_new_resolver("run_token", lambda: secrets.token_hex(3), use_cache=True, replace=True)


def first_comment(file: Path) -> str:
    """The first comment of a configuration file, without Hydra's ``@package`` directive."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        comments = (line.removeprefix("# ").rstrip() for line in lines if line.startswith("# "))
        return next((comment for comment in comments if not comment.startswith("@package")), "")


def required_groups() -> list[str]:
    """The groups of ``conf/`` that may not be empty."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in {*OPTIONAL, "hydra"})


def choices(group: str, folders: Sequence[Path] = (CONF,)) -> list[str]:
    """The choices of a group: the files in its folders, at any depth."""
    files = [(folder / group, file) for folder in folders for file in (folder / group).rglob("*.yaml")]
    names = {file.relative_to(parent).with_suffix("").as_posix() for parent, file in files}
    return sorted(name for name in names if not name.startswith("common/"))


def groups(folders: Sequence[Path] = (CONF,)) -> list[str]:
    """All groups in these folders, including Hydra's."""
    found = {file.parent.relative_to(folder).as_posix() for folder in folders for file in folder.rglob("*.yaml")}
    outer = {name if name.startswith("hydra/") else name.partition("/")[0] for name in found - {"."}}
    return sorted(outer)


def choices_with_key(key: str, folders: Sequence[Path] = (CONF,)) -> str:
    """``; GROUP.KEY is a key of GROUP=CHOICE only``, for a key that only some choices of a group have, else nothing."""
    section, _, last = key.rpartition(".")
    found: dict[str, list[str]] = {}
    for group in [section] if section else required_groups():
        for choice in choices(group, folders):
            if any(last in content_of(folder / group / f"{choice}.yaml") for folder in folders):
                found.setdefault(group, []).append(choice)
    for group, names in found.items():
        return f"; {group}.{last} is a key of {group}={' and '.join(names)} only"
    return ""


def content_of(file: Path) -> dict[str, Any]:
    """The content of a configuration file; {} if it cannot be read or is no mapping."""
    try:
        content = load_yaml(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def with_choices_checked(
    overrides: Sequence[str], folders: Sequence[Path] = (CONF,), known: Collection[str] | None = None
) -> list[str]:
    """The overrides with ``GROUP=null`` replaced by ``~GROUP``, because Hydra refuses null for a group.

    Args:
        known: all groups in the folders; None: they are listed.

    Raises:
        UsageError: a group that every run needs is deleted, or a group is set to a number, true or false.
    """
    required, known = required_groups(), groups(folders) if known is None else known
    checked = []
    for override in overrides:
        key, separator, value = override.partition("=")
        group, word = key.lstrip("+~"), value.strip().lower()
        deleted = key.startswith("~") or word == "null"
        if group in required and deleted:
            raise UsageError(f"{override}: a run needs a {group}; choose from {', '.join(choices(group, folders))}")
        if group in OPTIONAL and separator and word == "null":
            checked.append(f"~{group}")
            continue
        if group in known and (word in {"true", "false"} or NUMBER.fullmatch(word)):
            raise UsageError(f"{override} is not a choice; choose from {', '.join(choices(group, folders))}")
        checked.append(override)
    return checked


def resolve(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain data, with the values of all interpolations.

    Raises:
        UsageError: a section or a mandatory value is missing, or an interpolation names a key that does not exist.
    """
    for group in required_groups():
        if OmegaConf.select(config, group, default=None) is None:
            raise UsageError(f"{group} is missing; a run needs one, choose from {', '.join(choices(group))}")
    try:
        tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or str(error).rsplit(": ", 1)[-1].splitlines()[0]
        raise UsageError(f"{key} is not set and has no default; type {key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise UsageError(explain_interpolation(error, OmegaConf.to_container(config, resolve=False))) from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def explain_interpolation(error: OmegaConfBaseException, tree: Any) -> str:
    """One line: which key cannot be resolved, and why."""
    text = str(error).splitlines()[0]
    if missing := re.search(r"Interpolation key '([^']+)' not found", text):
        near = same_ending(missing[1], tree) or near_miss(missing[1], tree)
        return f"{error.full_key}: there is no {missing[1]} to take its value from{near}"
    if "Recursive interpolation" in text:
        return f"{error.full_key}: its value refers to itself; give it a value of its own"
    return f"{error.full_key}: {text}"


# Private parts of Hydra 1.3 and OmegaConf 2.3 from here on. tests/test_private_parts.py fails if they change.

# The launcher that runs one job after the other in this process, and the sweeper that runs every combination. They have no
# public names.
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def hydra_flags() -> argparse.ArgumentParser:
    """The argument parser of ``hydra.main``, whose public interface reads ``sys.argv`` only."""
    from hydra._internal.utils import get_args_parser

    return get_args_parser()


def run_hydra_app(options: argparse.Namespace, task: Callable[[DictConfig], Any]) -> None:
    """Do what ``hydra.main`` does after it has read the options.

    Raises:
        Exception: of Hydra, a callback or ``task``, if ``HYDRA_FULL_ERROR`` is set.
    """
    from hydra._internal.utils import _run_hydra

    with nullcontext() if _may_set_mode(options) else _mode_not_composed():
        _run_hydra(
            args=options,
            args_parser=hydra_flags(),
            task_function=task,
            config_path=options.config_path or str(CONF),
            config_name=options.config_name or "train",
        )


def _may_set_mode(options: argparse.Namespace) -> bool:
    """Whether something other than ``--multirun`` may decide between one run and several; in ``conf`` only sweeps do."""
    keys = {override.lstrip("+~").partition("=")[0] for override in options.overrides}
    own = options.config_dir or options.config_path or options.config_name
    return bool(own or keys & {"sweep", "hydra", "hydra.mode", "hydra.searchpath"})


@contextmanager
def _mode_not_composed() -> Iterator[None]:
    """Keep Hydra from composing the whole configuration once more, only to read ``hydra.mode``: half of its time."""
    from hydra._internal.hydra import Hydra

    original = Hydra.get_mode
    setattr(Hydra, "get_mode", lambda *arguments, **options: None)  # noqa: B010  # mypy allows no other assignment
    try:
        yield
    finally:
        setattr(Hydra, "get_mode", original)  # noqa: B010  # see above


def composing_code() -> CodeType:
    """The code of the function in which Hydra composes, to recognise exceptions of other libraries by their frames."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    return ConfigLoaderImpl.load_configuration.__code__


def directory_part_of(overrides: Sequence[Override], config: DictConfig) -> str:
    """The value of ``hydra.job.override_dirname`` for a job with these overrides."""
    from hydra._internal.config_loader_impl import get_overrides_dirname

    settings = config.hydra.job.config.override_dirname
    return get_overrides_dirname(
        overrides=list(overrides),
        kv_sep=settings.kv_sep,
        item_sep=settings.item_sep,
        exclude_keys=settings.exclude_keys,
    )


def empty_callbacks() -> Any:
    """The empty collection of callbacks that a ``HydraContext`` needs; it has no public class."""
    from hydra._internal.callbacks import Callbacks

    return Callbacks()


def root_of(node: Node) -> Any:
    """The whole configuration that contains a node; OmegaConf has no public function for this."""
    return node._get_root()  # noqa: SLF001  # no public name, see above


@contextmanager
def interpolations_parsed_once() -> Iterator[None]:
    """Keep OmegaConf from parsing the same interpolation again for each job of a sweep: a seventh of the time of a job.

    The tree that its parser returns is only read.
    """
    original = getattr(base, "parse")  # noqa: B009  # mypy: it is not exported
    setattr(base, "parse", cache(original))  # noqa: B010  # mypy allows no other assignment
    try:
        yield
    finally:
        setattr(base, "parse", original)  # noqa: B010  # see above
