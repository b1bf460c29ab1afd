"""Train one network: compose, check, build, fit, record.

    mnist-train model=mlp regularization=dropout seed=3
    mnist-train resume=outputs/2026-11-21/lenet5-a1b2c3

Imports move inwards where they take long: a mistyped key needs Hydra only, a value out of range no torch.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.composition import CONF, PACKAGE, explain_composition, help_text, resolve
from mnist_exp.mistakes import RunFailed, UsageError, report

if TYPE_CHECKING:
    from mnist_exp.config import Config
    from mnist_exp.runs import RunDirectory


def main() -> None:
    """``mnist-train``: exit status 2 for a user's mistake, 1 for a failed run, 130 or 143 when stopped."""
    with exit_status():
        if {"--help", "-h"} & set(sys.argv[1:]):
            print(help_text(), end="")
            return
        os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands exceptions on instead of printing and leaving
        sys.argv[1:] = [_quoted(argument) for argument in _sweep_arguments(sys.argv[1:])]
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(start_run)()


@contextmanager
def exit_status() -> Iterator[None]:
    """Turn what is known to go wrong into one line and an exit status; the rest keeps its traceback."""
    try:
        yield
    except UsageError as error:
        report(error)
        sys.exit(2)
    except (HydraException, OmegaConfBaseException) as error:
        report(UsageError(explain_composition(error)))
        sys.exit(2)
    except RunFailed as error:
        report(error)
        sys.exit(1)


def start_run(composed: DictConfig) -> float | None:
    """Hydra's task: a new run in the directory that Hydra chose, or the run that ``resume`` names continued.

    Returns:
        validation accuracy of the result, the objective of a search; None without validation data.
    """
    from mnist_exp.config import check, config_hash, with_absolute_paths
    from mnist_exp.runs import RunDirectory
    from mnist_exp.runs.provenance import provenance

    job = HydraConfig.get()
    path, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
    here = Path(job.runtime.cwd)
    if path.is_relative_to(here) and Path.cwd() == here:
        path = path.relative_to(here)  # as the user would type it
    if composed.resume is not None:
        with exit_status():
            return resume_run(path, overrides, composed)  # what is not of the task was refused before
    tree = with_absolute_paths(resolve(composed), here)
    config = check(tree)
    del tree["sweep"]  # what a run computes does not depend on it
    record = {
        "name": config.name,
        "seed": config.seed,
        "config_hash": config_hash(tree),
        "command": shlex.join(["mnist-train", *sys.argv[1:]]),
        "sweep": None,
        **provenance(PACKAGE),
    }
    with (
        exit_status(),  # Hydra would print a line of its own
        RunDirectory.create(path, tree=tree, overrides=overrides, record=record) as run,
    ):
        return train(run, config)


def resume_run(path: Path, overrides: Sequence[str], composed: DictConfig) -> float | None:
    """Continue the run in ``path`` from its last checkpoint, or from the start where it has none yet.

    Raises:
        UsageError: it cannot go on like that; its record is what it was.
    """
    from mnist_exp.config import check
    from mnist_exp.runs import RunDirectory
    from mnist_exp.stored import resumed

    with RunDirectory.reopen(path, partial(resumed, path, overrides, composed)) as run:
        try:
            return train(run, check(run.tree))
        except UsageError:
            run.restore()
            raise


def train(run: RunDirectory, config: Config) -> float | None:
    """Train what ``run`` describes; the first line of this program that needs torch."""
    from mnist_exp.signals import StopRequest

    with StopRequest() as stop:
        began = time.perf_counter()
        from mnist_exp.experiment import run_experiment

        return run_experiment(run, config, stop, import_seconds=time.perf_counter() - began)


def _sweep_arguments(arguments: list[str]) -> list[str]:
    """The arguments that ``sweep.resume=DIR`` stands for: those that the sweep was started with, the given ones on top.

    Raises:
        RunDirectoryError: the directory holds no sweep.
    """
    arguments = [re.sub(r"^\+{1,2}(?=sweep\.resume=)", "", argument) for argument in arguments]
    values = [argument.removeprefix("sweep.resume=") for argument in arguments if argument.startswith("sweep.resume=")]
    if not values or values[-1] in {"", "null"}:
        return arguments
    from mnist_exp.sweeps.directory import read_sweep

    parse = get_args_parser().parse_args
    own = [override for override in parse(arguments).overrides if not override.startswith("sweep.resume=")]
    started = read_sweep(Path(values[-1]))["arguments"]
    overrides = parse(started).overrides
    flags = [argument for argument in started if argument not in overrides]
    replaced = {override.partition("=")[0] for override in own} | {"hydra.sweep.dir", "sweep.resume"}
    kept = [override for override in overrides if override.partition("=")[0] not in replaced]
    directory = _as_value(values[-1])
    return [*flags, *kept, f"hydra.sweep.dir={directory}", f"sweep.resume={directory}", *own]


def _quoted(argument: str) -> str:
    """The argument with quotes of Hydra's around the directory of a run, whose name may hold ``=`` and commas."""
    key, _, value = argument.partition("=")
    key_of_run = key.lstrip("+") == "resume" or (key.lstrip("+") == "init_from" and Path(value).exists())
    is_path = key_of_run and value not in {"", "null"} and value[0] not in "'\""
    return f"{key}={_as_value(value)}" if is_path else argument


def _as_value(path: str) -> str:
    """A path as Hydra reads it."""
    return path if re.fullmatch(r"[\w./-]+", path) else "'" + path.replace("'", r"\'") + "'"


if __name__ == "__main__":
    main()
