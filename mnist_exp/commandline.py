"""Run Hydra with given flags and overrides.

Not by ``hydra.main``, which allows flags only before or after all overrides, and reports a wrong one in eight lines.
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
    """The argument of ``run_hydra`` for overrides without flags."""
    options = hydra_flags().parse_args([])
    options.overrides = list(overrides)
    return options


def with_paths_quoted(arguments: Sequence[str]) -> list[str]:
    """The arguments with Hydra's quotes around a run directory, because its name may contain ``=`` and commas."""

    def quoted(argument: str) -> str:
        key, _, value = argument.partition("=")
        key_of_run = key.lstrip("+") == "resume" or (key.lstrip("+") == "init_from" and Path(value).exists())
        is_path = key_of_run and value not in {"", "null"} and value[0] not in "'\""
        return as_override(key, value) if is_path else argument

    return [quoted(argument) for argument in arguments]


def folders_of(options: argparse.Namespace) -> list[Path]:
    """The folders of configuration files, the user's first."""
    own = [Path(options.config_dir).absolute()] if options.config_dir else []
    return [*own, Path(options.config_path).absolute() if options.config_path else CONF]


def only_prints(options: argparse.Namespace) -> bool:
    """Whether the flags ask for output only, and for no run."""
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
    """Compose the configuration; then run ``task`` or a sweep, or print, as the flags ask.

    Raises:
        UsageError: flags contradict each other.
        Exception: of Hydra's composition, of ``task`` and of our callbacks.
    """
    commands = [*(["--run"] if options.run else []), *_printing_flags(options)]
    if options.experimental_rerun:
        raise UsageError("--experimental-rerun is not supported; to continue a run, type resume=DIR")
    if len(commands) > 1 or (options.run and options.multirun):
        raise UsageError(f"{' and '.join([*commands, '--multirun'][:2])} contradict each other; leave one out")
    if options.multirun and "hydra.mode=RUN" in options.overrides:
        raise UsageError("hydra.mode=RUN and --multirun contradict each other; leave one out")
    if options.resolve and not options.cfg:
        raise UsageError("--resolve needs --cfg: mnist-train --cfg job --resolve")
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
    wrapped: Exception | None = None
    with _exceptions_raised(), _separate_hydra_state():
        try:
            run_hydra_app(options, task)
        except WrappedError as wrapper:
            wrapped = wrapper.error
        except ValueError as error:
            if not prints:
                raise
            raise UsageError(" ".join(str(error).split())) from error
    if wrapped is not None:
        raise wrapped  # outside of the except clause, so that its own cause is kept


def _parsed(overrides: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(overrides))


def _shared_by_all_jobs(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides with one value, which are the same for all jobs of a sweep, and those with several."""
    parsed = _parsed(overrides)
    shared, varying = (
        [str(override.input_line) for override in parsed if override.is_sweep_override() is sweep]
        for sweep in (False, True)
    )
    return [*shared, "hydra.mode=MULTIRUN"], varying


def _with_first_choices(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The overrides with ``GROUP=A`` inserted before ``GROUP=A,B``.

    Hydra first composes a sweep without the overrides of several values. Without this, a key of all these choices that the
    default choice does not have would be unknown: ``optimizer=adam,adamw 'optimizer.betas=[0.9,0.99]'``.
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
def _exceptions_raised() -> Iterator[None]:
    """Make Hydra raise exceptions. Otherwise it prints them and exits."""
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
def _separate_hydra_state() -> Iterator[None]:
    """Restore Hydra's global state afterwards: its configuration, its loader and its log handlers.

    A notebook that uses Hydra itself, and the next run in this process, must not be affected by this run.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    config, loader = HydraConfig.instance().cfg, GlobalHydra.instance().hydra
    HydraConfig.instance().cfg = None
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        HydraConfig.instance().cfg, GlobalHydra.instance().hydra = config, loader
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
