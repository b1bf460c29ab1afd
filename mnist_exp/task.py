"""The functions that Hydra calls for one run: a check, then the task, which starts or resumes a run.

Slow imports are inside functions, so that a mistyped key needs only Hydra, and a value out of range no torch.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from mnist_exp.compose import PACKAGE, resolve
from mnist_exp.config import check
from mnist_exp.errors import UsageError
from mnist_exp.explain import wrap_errors_for_hydra
from mnist_exp.hashing import HASH_VERSION, config_hash
from mnist_exp.runs import RunDirectory
from mnist_exp.runs.directory import refuse_unless_free
from mnist_exp.runs.provenance import provenance
from mnist_exp.stored import check_resume, check_runs_named, resumed
from mnist_exp.torch_import import import_torch

if TYPE_CHECKING:
    from mnist_exp.build import Parts


class CheckBeforeRun(Callback):
    """Hydra's callback before a run: reports a mistake before Hydra creates or changes the run directory.

    Everything is built here, so that an error in a constructor leaves nothing on disk. If the configuration has
    ``resume``, that is the run directory.

    Attributes:
        built: the built parts of the next run of this process, and the seconds that building took, import of torch
            included. A class attribute, because Hydra's callback and its task share nothing else.
    """

    built: ClassVar[tuple[Parts, float] | None] = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        HydraConfig.instance().set_config(config)
        with wrap_errors_for_hydra():
            if config.sweep.resume is not None:
                raise UsageError(f"sweep.resume={config.sweep.resume} goes with -m: mnist-train -m sweep.resume=DIR")
            if config.sweep.until is not None:
                raise UsageError(f"sweep.until={config.sweep.until} goes with -m and several arms: -m model=lenet5,mlp")
            if config.resume is not None:
                typed = [override for override in config.hydra.overrides.hydra if override != "hydra.mode=RUN"]
                check_resume(job, [*config.hydra.overrides.task, *typed])
                with read_write(config.hydra):
                    config.hydra.run.dir = config.resume
                    config.hydra.output_subdir = None  # .hydra/ stays as it is
                return
            here = Path(config.hydra.runtime.cwd)
            directory = here / config.hydra.run.dir
            checked = check(resolve(job))
            check_runs_named(checked)
            refuse_unless_free(Path(config.hydra.run.dir))
            checked = checked.with_absolute_paths(here)
            began = time.perf_counter()
            import_torch(announced=not checked.quiet)
            from mnist_exp.build import build, check_parts
            from mnist_exp.components import callback_arguments

            if checked.data.image_size is not None:
                check_parts(checked, directory)  # before data are read or downloaded
            overrides = list(config.hydra.overrides.task)
            parts = build(checked, callback_arguments=callback_arguments(directory, checked, overrides))
            CheckBeforeRun.built = parts, time.perf_counter() - began


def run_path() -> Path:
    """The run directory that Hydra chose, relative to the working directory if it is inside. Only for Hydra's task."""
    runtime = HydraConfig.get().runtime
    path, here = Path(runtime.output_dir), Path(runtime.cwd)
    return path.relative_to(here) if path.is_relative_to(here) and Path.cwd() == here else path


def start_run(composed: DictConfig, arguments: Sequence[str]) -> float | None:
    """Hydra's task: start a run in the directory that Hydra chose, or continue the run in ``resume``.

    Args:
        arguments: of the equivalent ``mnist-train`` command, for the run's record.

    Returns:
        the validation accuracy, as the objective of a search; None without validation data.

    Raises:
        WrappedError: holds the UsageError, RunFailed or other exception.
    """
    job, path = HydraConfig.get(), run_path()
    overrides = list(job.overrides.task)
    if composed.resume is not None:
        with wrap_errors_for_hydra():
            return resume_run(path, overrides, composed)  # other overrides were refused in CheckBeforeRun
    config = check(resolve(composed)).with_absolute_paths(Path(job.runtime.cwd))
    built, CheckBeforeRun.built = CheckBeforeRun.built, None
    record = {
        "name": config.name,
        "seed": config.seed,
        "config_hash": config_hash(config),
        "config_hash_version": HASH_VERSION,
        "command": shlex.join(["mnist-train", *arguments]),
        "sweep": None,
        **provenance(PACKAGE),
    }
    with (
        wrap_errors_for_hydra(),
        RunDirectory.create(path, config=config, overrides=overrides, record=record) as run,
    ):
        return train(run, built)


def resume_run(path: Path, overrides: Sequence[str], composed: DictConfig) -> float | None:
    """Continue the run in ``path`` from its last checkpoint, or from the start if it has none.

    Raises:
        UsageError: the run cannot continue with these settings; its record is unchanged.
    """
    with RunDirectory.reopen(path, partial(resumed, path, overrides, composed)) as run:
        run.may_download = any(word.lstrip("+").startswith("data.root=") for word in overrides)
        run.trusted = list(composed.trust)
        try:
            return train(run)
        except UsageError:
            run.restore()
            raise


def train(run: RunDirectory, built: tuple[Parts, float] | None = None, *, in_sweep: bool = False) -> float | None:
    """Train the run, with the parts and seconds in ``built``, or build them now. Imports torch.

    Args:
        in_sweep: this process shows the progress of a whole sweep, not of each job.
    """
    from mnist_exp.signals import StopRequest

    with StopRequest() as stop:
        began = time.perf_counter()
        import_torch(announced=not run.config.quiet)
        from mnist_exp.experiment import run_experiment

        parts, seconds = built or (None, 0.0)
        imports = time.perf_counter() - began + (seconds - parts.build_seconds if parts else 0.0)
        return run_experiment(run, stop, parts, import_seconds=imports, in_sweep=in_sweep)
