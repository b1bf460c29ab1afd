"""One run from its composed configuration: started new, or resumed.

Imports move inwards where they take long: a mistyped key needs Hydra only, a value out of range no torch.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mnist_exp.compose import PACKAGE, resolve
from mnist_exp.errors import UsageError
from mnist_exp.explain import through_hydra

if TYPE_CHECKING:
    from mnist_exp.build import Parts
    from mnist_exp.config import Config
    from mnist_exp.runs import RunDirectory


def run_path() -> Path:
    """The run directory that Hydra chose, as the user would type it. To be called in Hydra's task."""
    runtime = HydraConfig.get().runtime
    path, here = Path(runtime.output_dir), Path(runtime.cwd)
    return path.relative_to(here) if path.is_relative_to(here) and Path.cwd() == here else path


def start_run(composed: DictConfig, arguments: Sequence[str]) -> float | None:
    """Hydra's task: a new run in the directory that Hydra chose, or the run that ``resume`` names continued.

    Args:
        arguments: of the ``mnist-train`` that this run amounts to, for its record.

    Returns:
        validation accuracy of the result, the objective of a search; None without validation data.

    Raises:
        PastHydra: with a UsageError, a RunFailed, or whatever else happened.
    """
    from mnist_exp.config import CheckBeforeRun, as_stored, check, config_hash
    from mnist_exp.runs import RunDirectory
    from mnist_exp.runs.provenance import provenance

    job, path = HydraConfig.get(), run_path()
    overrides = list(job.overrides.task)
    if composed.resume is not None:
        with through_hydra():
            return resume_run(path, overrides, composed)  # what is not of the task was refused before
    composed_tree = resolve(composed)
    config, tree = check(composed_tree), as_stored(composed_tree, Path(job.runtime.cwd))
    built, CheckBeforeRun.built = CheckBeforeRun.built, None
    record = {
        "name": config.name,
        "seed": config.seed,
        "config_hash": config_hash(tree),
        "command": shlex.join(["mnist-train", *arguments]),
        "sweep": None,
        **provenance(PACKAGE),
    }
    with (
        through_hydra(),
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


def train(
    run: RunDirectory, config: Config, built: tuple[Parts, float] | None = None, *, in_sweep: bool = False
) -> float | None:
    """Train what ``run`` describes, with what was ``built`` for it or is built now. Imports torch.

    Args:
        in_sweep: this process shows a whole sweep, and not each job.
    """
    from mnist_exp.signals import StopRequest

    with StopRequest() as stop:
        began = time.perf_counter()
        from mnist_exp.experiment import run_experiment

        parts, seconds = built or (None, 0.0)
        imports = time.perf_counter() - began + (seconds - parts.build_seconds if parts else 0.0)
        return run_experiment(run, config, stop, parts, import_seconds=imports, in_sweep=in_sweep)
