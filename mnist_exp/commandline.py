"""The command line of ``mnist-train``: Hydra's flags and overrides in any order, handed to Hydra.

``hydra.main`` would do, but it reads flags only in front of all overrides or behind them, and reports what is wrong with
them in eight lines. What it calls itself is called here; these are parts that Hydra does not promise to keep.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from omegaconf import DictConfig, OmegaConf

from mnist_exp.compose import CONF, groups, with_choices_checked
from mnist_exp.errors import (
    ArgumentParser,
    PastHydra,
    UsageError,
    as_override,
    flag_as_override,
    keys_with_ending,
    nearest,
    typed,
)
from mnist_exp.trust import add_trust

INFORMATION = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}


class TrainParser(ArgumentParser):
    """Hydra's flags. One that is none of them was meant as an override."""

    def __init__(self) -> None:
        super().__init__(
            prog="mnist-train", example="mnist-train KEY=VALUE", parents=[get_args_parser()], add_help=False
        )
        add_trust(self)

    def _explain_unknown(self, given: Sequence[str], flag: str) -> str:
        config, known = _default_config(), groups()

        def is_setting(word: str) -> bool:
            key = word.partition("=")[0]
            return "=" in word and (key in known or _has(config, key))

        name, value = flag_as_override(given, flag, is_setting)
        keys = [name] if is_setting(f"{name}=") else keys_with_ending(name, config)
        if keys:
            advice = f"; type {_as_typed_before(keys[0], value)}"
        else:
            advice = nearest(flag.partition("=")[0], self.options())
        return f"{flag} is not an option of mnist-train{advice or '; settings are typed KEY=VALUE, and mnist-train --cfg job lists them'}"


def _as_typed_before(key: str, value: str) -> str:
    """An override from what stood behind a flag, which may be a list already."""
    return (
        shlex.quote(f"{key}={value}")
        if value[:1] in {"[", "{"} or value in {"true", "false", "null"}
        else typed(key, value)
    )


def _default_config() -> dict[str, Any]:
    """What ``mnist-train`` alone amounts to, unresolved."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        tree = OmegaConf.to_container(compose("train"), resolve=False)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _has(tree: Any, key: str) -> bool:
    first, _, rest = key.partition(".")
    return isinstance(tree, dict) and first in tree and (not rest or _has(tree[first], rest))


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags, and ``overrides``.

    Raises:
        SystemExit: with 2 for a flag that there is not; with 0 after ``--version``.
    """
    following = [*arguments[1:], ""]
    # --info may stand alone, and would take the override behind it for its value.
    alone = [
        f"{word}=all"
        if word == "--info" and after not in INFORMATION
        else "-iall"
        if word == "-i" and after not in INFORMATION
        else word
        for word, after in zip(arguments, following, strict=True)
    ]
    options = TrainParser().parse(alone)
    if options.trust:
        options.overrides.append(f"trust=[{','.join(options.trust)}]")
    return options


def with_paths_quoted(arguments: Sequence[str]) -> list[str]:
    """The arguments with quotes of Hydra's around the directory of a run, whose name may hold ``=`` and commas."""

    def quoted(argument: str) -> str:
        key, _, value = argument.partition("=")
        key_of_run = key.lstrip("+") == "resume" or (key.lstrip("+") == "init_from" and Path(value).exists())
        is_path = key_of_run and value not in {"", "null"} and value[0] not in "'\""
        return as_override(key, value) if is_path else argument

    return [quoted(argument) for argument in arguments]


def folders_of(options: argparse.Namespace) -> list[Path]:
    """Where configuration files lie: the user's folder first."""
    own = [Path(options.config_dir).absolute()] if options.config_dir else []
    return [*own, Path(options.config_path).absolute() if options.config_path else CONF]


def run_hydra(task: Callable[[DictConfig], Any], options: argparse.Namespace) -> None:
    """Do what the flags say: compose, and run ``task``, a sweep, or print.

    Raises:
        UsageError: flags that do not go together.
        Exception: what Hydra raises while it composes, and what ``task`` and our callbacks raise.
    """
    given = {
        "--run": options.run,
        "--cfg": options.cfg,
        "--info": options.info,
        "--hydra-help": options.hydra_help,
        "--shell-completion": options.shell_completion,
        "--experimental-rerun": options.experimental_rerun,
    }
    commands = [flag for flag, value in given.items() if value]
    if options.experimental_rerun:
        raise UsageError("--experimental-rerun is not supported; to continue a run, type resume=DIR")
    if len(commands) > 1 or (options.run and options.multirun):
        raise UsageError(f"{' and '.join([*commands, '--multirun'][:2])} do not go together; leave one out")
    if options.multirun and "hydra.mode=RUN" in options.overrides:
        raise UsageError("hydra.mode=RUN and --multirun do not go together; leave one out")
    if options.resolve and not options.cfg:
        raise UsageError("--resolve goes with --cfg: mnist-train --cfg job --resolve")
    folders = folders_of(options)
    overrides = with_choices_checked(options.overrides, folders)
    if options.hydra_help:
        overrides = [override for override in overrides if override.startswith("hydra")]
    prints = bool(commands) and not options.run
    if prints and options.multirun:
        overrides, varying = _shared_by_all_jobs(overrides)
        options.multirun = False
        if options.cfg:
            print(f"# jobs differ in: {' '.join(varying)}")
    elif not prints:
        overrides = _with_first_choices(overrides, folders)
    options.overrides = overrides
    version.setbase("1.3")
    carried: Exception | None = None
    with _exceptions_handed_on(), _hydra_of_its_own():
        try:
            _run_hydra(
                args=options,
                args_parser=get_args_parser(),
                task_function=task,
                config_path=options.config_path or str(CONF),
                config_name=options.config_name or "train",
            )
        except PastHydra as passing:
            carried = passing.error
        except ValueError as error:
            if not prints:
                raise
            raise UsageError(" ".join(str(error).split())) from error
    if carried is not None:
        raise carried  # here, so that it keeps its own cause


def _parsed(overrides: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(overrides))


def _shared_by_all_jobs(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """What a sweep's jobs have in common, its master configuration; and what they have not."""
    parsed = _parsed(overrides)
    shared, varying = (
        [str(override.input_line) for override in parsed if override.is_sweep_override() is sweep]
        for sweep in (False, True)
    )
    return [*shared, "hydra.mode=MULTIRUN"], varying


def _with_first_choices(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """In front of ``GROUP=A,B`` also ``GROUP=A``.

    Hydra composes a sweep without what varies, so a key that all of these choices have would be unknown where the
    default choice does not have it: ``optimizer=adam,adamw 'optimizer.betas=[0.9,0.99]'``.
    """
    known = groups(folders)
    result: list[str] = []
    for override in _parsed(overrides):
        value = override.value()
        if isinstance(value, ChoiceSweep) and override.is_sweep_override() and override.key_or_group in known:
            first = next(override.sweep_string_iterator())
            if not override.is_hydra_override() and first.lower() != "null":
                result.append(f"{override.get_key_element()}={first}")
        result.append(str(override.input_line))
    return result


@contextmanager
def _exceptions_handed_on() -> Iterator[None]:
    """Hydra prints exceptions itself and leaves, unless the environment has this."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _hydra_of_its_own() -> Iterator[None]:
    """What ``${hydra:...}`` reads, which loader composes, and where Hydra logs, is one for the whole process: a notebook that
    uses Hydra itself, and the next run, must not find this one's."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    of_caller, loader = HydraConfig.instance().cfg, GlobalHydra.instance().hydra
    HydraConfig.instance().cfg = None
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        HydraConfig.instance().cfg, GlobalHydra.instance().hydra = of_caller, loader
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
