"""Hydra's flags and overrides, handed to Hydra.

``hydra.main`` would do, but it reads flags only in front of all overrides or behind them, and reports what is wrong with
them in eight lines.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import version
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from omegaconf import DictConfig

from mnist_exp.compose import CONF, groups, hydra_flags, run_hydra_app, with_choices_checked
from mnist_exp.errors import UsageError, WrappedError, as_override


def without_flags(overrides: Sequence[str]) -> argparse.Namespace:
    """What ``run_hydra`` takes for overrides that no flag comes with."""
    options = hydra_flags().parse_args([])
    options.overrides = list(overrides)
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


def only_prints(options: argparse.Namespace) -> bool:
    """Whether the flags ask for something to read, and for no run."""
    return bool(_printing_flags(options))


def _printing_flags(options: argparse.Namespace) -> list[str]:
    given = {
        "--cfg": options.cfg,
        "--info": options.info,
        "--hydra-help": options.hydra_help,
        "--shell-completion": options.shell_completion,
    }
    return [flag for flag, value in given.items() if value]


def run_hydra(task: Callable[[DictConfig], Any], options: argparse.Namespace) -> None:
    """Do what the flags say: compose, and run ``task``, a sweep, or print.

    Raises:
        UsageError: flags that do not go together.
        Exception: what Hydra raises while it composes, and what ``task`` and our callbacks raise.
    """
    commands = [*(["--run"] if options.run else []), *_printing_flags(options)]
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
    prints = only_prints(options)
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
            run_hydra_app(options, task)
        except WrappedError as passing:
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
