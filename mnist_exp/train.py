"""Train one network: compose, check, build, fit, record.

    mnist-train model=mlp regularization=dropout seed=3
    mnist-train resume=outputs/2026-11-21/lenet5-a1b2c3

Imports move inwards where they take long: a mistyped key needs Hydra only, a value out of range no torch.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mnist_exp.commandline import folders_of, read_arguments, run_hydra
from mnist_exp.composition import PACKAGE, help_text, resolve
from mnist_exp.explain import exit_status
from mnist_exp.mistakes import UsageError, typed

if TYPE_CHECKING:
    from mnist_exp.build import Parts
    from mnist_exp.config import Config
    from mnist_exp.runs import RunDirectory


def main() -> None:
    """``mnist-train``: exit status 2 for a user's mistake, 1 for a failed run, 130 or 143 when stopped."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(), end="")
        return
    options = read_arguments(sys.argv[1:])
    with exit_status(folders_of(options)):
        if any(word.lstrip("+").startswith("sweep.resume=") for word in options.overrides):
            from mnist_exp.sweeps.resuming import arguments_to_finish

            sys.argv[1:] = arguments_to_finish(sys.argv[1:])
        sys.argv[1:] = [_quoted(argument) for argument in sys.argv[1:]]  # which the sweep directory keeps
        run_hydra(start_run, read_arguments(sys.argv[1:]))


def start_run(composed: DictConfig) -> float | None:
    """Hydra's task: a new run in the directory that Hydra chose, or the run that ``resume`` names continued.

    Returns:
        validation accuracy of the result, the objective of a search; None without validation data.
    """
    from mnist_exp.config import CheckBeforeRun, as_stored, check, config_hash
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
    composed_tree = resolve(composed)
    config, tree = check(composed_tree), as_stored(composed_tree, here)
    built, CheckBeforeRun.built = CheckBeforeRun.built, None
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
        return train(run, config, built)


def resume_run(path: Path, overrides: Sequence[str], composed: DictConfig) -> float | None:
    """Continue the run in ``path`` from its last checkpoint, or from the start where it has none yet.

    Raises:
        UsageError: it cannot go on like that; its record is what it was.
    """
    from mnist_exp.config import check
    from mnist_exp.runs import RunDirectory
    from mnist_exp.stored import resumed

    with RunDirectory.reopen(path, partial(resumed, path, overrides, composed)) as run:
        run.may_download = any(word.lstrip("+").startswith("data.root=") for word in overrides)
        run.trusted = list(composed.trust)
        try:
            return train(run, check(run.tree))
        except UsageError:
            run.restore()
            raise


def train(run: RunDirectory, config: Config, built: tuple[Parts, float] | None = None) -> float | None:
    """Train what ``run`` describes, with what was ``built`` for it or is built now. Imports torch."""
    from mnist_exp.signals import StopRequest

    with StopRequest() as stop:
        began = time.perf_counter()
        from mnist_exp.experiment import run_experiment

        parts, seconds = built or (None, 0.0)
        imports = time.perf_counter() - began + (seconds - parts.build_seconds if parts else 0.0)
        return run_experiment(run, config, stop, parts, import_seconds=imports)


def _quoted(argument: str) -> str:
    """The argument with quotes of Hydra's around the directory of a run, whose name may hold ``=`` and commas."""
    key, _, value = argument.partition("=")
    key_of_run = key.lstrip("+") == "resume" or (key.lstrip("+") == "init_from" and Path(value).exists())
    is_path = key_of_run and value not in {"", "null"} and value[0] not in "'\""
    return shlex.split(typed(key, value))[0] if is_path else argument


if __name__ == "__main__":
    main()
