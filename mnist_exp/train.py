"""Train one network: compose, check, build, fit, record.

    mnist-train model=mlp regularization=dropout seed=3
    mnist-train resume=outputs/2026-11-21/lenet5-a1b2c3

Imports move inwards where they take long: a mistyped key needs Hydra only, a value out of range no torch.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mnist_exp.commandline import folders_of, read_arguments, run_hydra
from mnist_exp.composition import PACKAGE, help_text, resolve
from mnist_exp.explain import exit_status
from mnist_exp.mistakes import UsageError, typed, unquoted

if TYPE_CHECKING:
    from mnist_exp.config import Config
    from mnist_exp.runs import RunDirectory


def main() -> None:
    """``mnist-train``: exit status 2 for a user's mistake, 1 for a failed run, 130 or 143 when stopped."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(), end="")
        return
    options = read_arguments(sys.argv[1:])
    with exit_status(folders_of(options)):
        if directory := _resume_argument(sys.argv[1:]):
            resume_run(directory)
        else:
            sys.argv[1:] = _sweep_arguments(sys.argv[1:])  # which the sweep directory keeps
            run_hydra(start_run, read_arguments(sys.argv[1:]))


def start_run(composed: DictConfig) -> float | None:
    """Hydra's task: a new run in the directory that Hydra chose.

    Returns:
        validation accuracy of the result, the objective of a search; None without validation data.
    """
    from mnist_exp.config import check, config_hash
    from mnist_exp.runs import RunDirectory
    from mnist_exp.runs.provenance import provenance

    job = HydraConfig.get()
    path, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
    here = Path(job.runtime.cwd)
    if path.is_relative_to(here) and Path.cwd() == here:
        path = path.relative_to(here)  # as the user would type it
    tree = resolve(composed)
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


def resume_run(path: Path) -> float | None:
    """Continue the run in ``path`` from its last checkpoint, or from the start where it has none yet."""
    from mnist_exp.config import check
    from mnist_exp.runs import RunDirectory

    with RunDirectory.reopen(path) as run:
        return train(run, check(run.tree))


def train(run: RunDirectory, config: Config) -> float | None:
    """Train what ``run`` describes; the first line of this program that needs torch."""
    from mnist_exp.signals import StopRequest

    with StopRequest() as stop:
        began = time.perf_counter()
        from mnist_exp.experiment import run_experiment

        return run_experiment(run, config, stop, import_seconds=time.perf_counter() - began)


def _resume_argument(arguments: list[str]) -> Path | None:
    """The directory in ``resume=DIR``.

    Raises:
        UsageError: something else was given besides; a run continues as it began.
    """
    values = [unquoted(argument.removeprefix("resume=")) for argument in arguments if argument.startswith("resume=")]
    if not values or values[-1] in {"", "null"}:
        return None
    if others := [argument for argument in arguments if not argument.startswith("resume=")]:
        raise UsageError(f"{others[0]} cannot go with resume: a run continues as it began; leave it out")
    return Path(values[-1])


def _sweep_arguments(arguments: list[str]) -> list[str]:
    """The arguments that ``sweep.resume=DIR`` stands for: those that the sweep was started with, the given ones on top.

    Raises:
        RunDirectoryError: the directory holds no sweep.
    """
    options = read_arguments(arguments)
    resumed = [override for override in options.overrides if override.startswith("sweep.resume=")]
    directory = unquoted(resumed[-1].removeprefix("sweep.resume=")) if resumed else ""
    if directory in {"", "null"}:
        return arguments
    from mnist_exp.sweeps.directory import read_sweep

    own = [override for override in options.overrides if override not in resumed]
    started = read_sweep(Path(directory))["arguments"]
    overrides = read_arguments(started).overrides
    flags = [argument for argument in started if argument not in overrides]
    replaced = {override.partition("=")[0] for override in own} | {"hydra.sweep.dir", "sweep.resume"}
    kept = [override for override in overrides if override.partition("=")[0] not in replaced]
    here = [shlex.split(typed(key, directory))[0] for key in ("hydra.sweep.dir", "sweep.resume")]
    return [*flags, *kept, *here, *own]


if __name__ == "__main__":
    main()
