"""Compose the jobs of a sweep once, store each as a run directory that waits, and launch those that are not complete.

Any Hydra launcher will do: it decides where and when a job runs. What it is given to run is a run directory, and what
became of the job is read there, not from what the launcher returns.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, flag_override

from mnist_exp.compose import BASIC_LAUNCHER, empty_callbacks
from mnist_exp.errors import RunFailed, RunInterrupted, UsageError, WrappedError
from mnist_exp.runs.locking import is_locked
from mnist_exp.runs.record import FAILED, SETTLED, Status
from mnist_exp.signals import StopRequest
from mnist_exp.sweeps.composing import compose_all, fingerprint, fixed_keys
from mnist_exp.sweeps.directory import Job, SweepDirectory
from mnist_exp.sweeps.job import StopAll, train_here, train_in_worker
from mnist_exp.sweeps.matching import (
    folders_of,
    follow_data,
    identities_of,
    report_edits,
    report_merged,
)
from mnist_exp.sweeps.progress import Progress, print_table
from mnist_exp.sweeps.shares import is_of_slurm, shares_of, warn_of_too_many_threads
from mnist_exp.sweeps.slurm import job_name, launch_on_slurm, train_on_slurm
from mnist_exp.sweeps.storing import find_or_add, settings_of_composed_jobs, settings_of_stored_jobs, store


class StoredJobs(ConfigLoader):
    """Stands in for Hydra's loader in a launcher: a job is what was stored when the sweep began, whatever ``conf/`` says
    now; ``sweep_overrides`` is the name of its directory."""

    def __init__(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        self._settings = settings

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        (name,) = sweep_overrides
        config = master_config.copy()
        with flag_override(config, ["struct", "readonly"], False):
            config.hydra.sweep.subdir = name
            config.hydra.overrides.task = []
            config.directory = str(Path(config.hydra.sweep.dir) / name)
            config.settings = dict(self._settings.get(name, {}))
        return config

    def _unused(self, *arguments: Any, **options: Any) -> NoReturn:
        raise NotImplementedError("launchers compose nothing else")

    load_configuration = get_search_path = get_sources = list_groups = _unused
    get_group_options = compute_defaults_list = _unused


def launch(
    context: HydraContext,
    config: DictConfig,
    inner: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
    records: Sequence[Mapping[str, Any]],
) -> Sequence[JobReturn]:
    """Run jobs that are not complete yet, and wait for them.

    Args:
        context: of Hydra, whose loader composes the jobs.
        config: of the sweep.
        inner: configuration of the launcher that runs the jobs.
        job_overrides: of each job.
        initial_job_idx: number of the first, as Hydra counts.
        records: what else the ``run.json`` of each job says.

    Returns:
        the validation accuracy of each job, in this order; None for a job that has none.

    Raises:
        UsageError: a mistake, before anything runs.
        RunFailed, RunInterrupted: see ``conclude``; after an interruption.
    """
    setup_globals()
    path = Path(config.hydra.sweep.dir).absolute()
    fresh = not (path / "sweep.json").exists()
    files = fingerprint(context)
    try:
        if config.sweep.resume and Path(config.sweep.resume).absolute() != path:
            raise UsageError(
                f"sweep.resume={config.sweep.resume} is set by a configuration file; type it: mnist-train -m "
                f"sweep.resume={config.sweep.resume}"
            )
        composed = compose_all(context, config, job_overrides, initial_job_idx)
        fixed = fixed_keys(context, config)
        identities = identities_of([job.checked for job in composed], job_overrides, fixed)
        shares = shares_of(inner, len(composed))
        _instantiated(_with_launcher(inner, config), context, train_in_worker)  # refused before anything is written
        with SweepDirectory(path, shlex.join(["mnist-train", *sys.argv[1:]]), sys.argv[1:]) as sweep:
            known = set(sweep.jobs)
            if shares.at_once is not None:
                warn_of_too_many_threads(shares.at_once, [job.checked.trainer.threads for job in composed])
            # Finishing a sweep whose data moved: a job is known by the folder of that time where that was its data's name.
            folders = folders_of(sweep) if config.sweep.resume else []
            more = [{**record, "threads": shares.threads} for record in records]
            jobs = [
                find_or_add(sweep, job.checked, identity, overrides, fixed, folders)
                for job, identity, overrides in zip(composed, identities, job_overrides, strict=True)
            ]
            store(sweep, jobs, composed, identities, job_overrides, more, known)
            report_merged(sweep, jobs, job_overrides, fixed)
            follow_data(sweep, jobs, [job.checked for job in composed])
            wanted = list(dict.fromkeys(jobs))
            if config.sweep.resume:
                wanted = list(dict.fromkeys([*wanted, *sweep.jobs.values()]))
            settings = settings_of_composed_jobs(jobs, composed, config)
            settings |= settings_of_stored_jobs(sweep, wanted, config, known, settings)
            with StopAll(sweep.stop_file) as stop, Progress(sweep, wanted):
                at_once = shares.at_once if shares.capped else None
                _run(sweep, wanted, _launcher(inner, config, sweep, settings), stop, at_once)
            stopped_by = sweep.stop_file.read_text() if sweep.stop_file.exists() else None
            if fingerprint(context) != files:
                composed = compose_all(context, config, job_overrides, initial_job_idx)
                identities = identities_of([job.checked for job in composed], job_overrides, fixed)
            report_edits(sweep, jobs, [job.checked for job in composed], identities)
    except UsageError:
        if fresh and [item.name for item in path.glob("*")] == ["multirun.yaml"]:
            shutil.rmtree(path)  # Hydra made it before anybody looked
        raise
    _LAST[:] = [sweep]
    if stopped_by is not None:
        conclude(int(stopped_by or 0))
    return [_returned(job, sweep) for job in jobs]


# The sweep that ran last in this process, for the end of the program; a search launches several times.
_LAST: list[SweepDirectory] = []


def conclude(stopped_by: int = 0) -> None:
    """Print the table of the sweep.

    Args:
        stopped_by: the signal that stopped the sweep; 0 where none did.

    Raises:
        RunInterrupted: there was a signal.
        WrappedError: with a RunFailed, if any job failed.
    """
    if not _LAST:
        return
    sweep = _LAST.pop()
    statuses = {name: sweep.job_status(job) for name, job in sweep.jobs.items()}
    print_table(sweep, statuses)
    if stopped_by:
        raise RunInterrupted("", stopped_by)
    if any(job_status.status in FAILED | {Status.INTERRUPTED} for job_status in statuses.values()):
        raise WrappedError(RunFailed(""))


def _launcher(
    inner: DictConfig, config: DictConfig, sweep: SweepDirectory, settings: Mapping[str, Mapping[str, Any]]
) -> Callable[[Sequence[Job]], None]:
    """The chosen launcher, which gets directories to train in.

    Args:
        settings: of each job by name, what its directory does not decide: see ``job.train_directory``.
    """
    on_slurm = is_of_slurm(inner)
    job = _with_launcher(inner, config)
    with flag_override(job, ["struct", "readonly"], False):
        job.directory = ""
        job.launched_by = {"host": platform.node(), "pid": os.getpid()}
        job.stop_file = str(sweep.stop_file)
        job.fail_fast = bool(config.sweep.fail_fast)
        job.hydra.callbacks = {}
        job.hydra.output_subdir = None  # .hydra/ is there already
        job.hydra.sweep.dir = str(sweep.path)
        if folder := job.hydra.launcher.get("submitit_folder"):
            # submitit unpickles what it finds under a job's number, so nobody may have put something there before.
            job.hydra.launcher.submitit_folder = str(Path(folder).parent / secrets.token_hex(4) / Path(folder).name)
        if on_slurm:
            job.hydra.launcher.name = job_name(sweep.path)
        elif "ray" in inner:
            ray = job.hydra.launcher.ray
            # By default Ray runs a job again whose worker was killed, prints what is in output.log already, and without an
            # address joins a cluster that happens to run; which refuses the plugin's default size.
            ray.remote = {"max_retries": 0, **ray.remote}
            own = {"include_dashboard": False, **ray.init, "address": "local"}
            ray.init = {
                "log_to_driver": False,
                **(own if ray.init.get("address") is None else {"object_store_memory": None, **ray.init}),
            }
    task = train_here if inner._target_ == BASIC_LAUNCHER else train_on_slurm if on_slurm else train_in_worker
    if task is not train_here and "forkserver" not in multiprocessing.get_all_start_methods():
        raise UsageError(
            f"{str(inner._target_).rpartition('.')[2]} gives each job a forked process, which Windows does "
            "not have; leave hydra/launcher out, and jobs run one after the other"
        )
    context = HydraContext(config_loader=StoredJobs(settings), callbacks=empty_callbacks())
    launcher = _instantiated(job, context, task)

    def launch_all(jobs: Sequence[Job]) -> None:
        launch = partial(launcher.launch, [[job.directory] for job in jobs], initial_job_idx=0)
        if on_slurm:
            launch_on_slurm(launch, job_name(sweep.path), sweep.stop_file)
        else:
            launch()

    return launch_all


def _with_launcher(inner: DictConfig, config: DictConfig) -> DictConfig:
    """Hydra's part of the sweep's configuration with the launcher that was chosen."""
    job = OmegaConf.masked_copy(config, "hydra")
    OmegaConf.set_readonly(job.hydra, None)
    with flag_override(job, ["struct", "readonly"], False):
        job.hydra.launcher = inner
    return job


def _instantiated(config: DictConfig, context: HydraContext, task: TaskFunction) -> Launcher:
    """The launcher of a configuration.

    Raises:
        UsageError: there is none of that name, or it refuses its settings.
    """
    try:
        return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
    except Exception as error:
        reason = " ".join(str(error).splitlines()[:1]) or type(error).__name__
        raise UsageError(
            f"hydra.launcher._target_={config.hydra.launcher._target_} cannot be used: {reason}"
        ) from error


def _run(
    sweep: SweepDirectory,
    wanted: Sequence[Job],
    launch_all: Callable[[Sequence[Job]], None],
    stop: StopRequest,
    parallel: int | None,
) -> None:
    """Launch jobs until each had its turn.

    A launcher may lose jobs it was given, because a worker died or because it stops listening at the first error; those
    that did not begin are given to it again, as long as that gets some of them going. A pool of processes (joblib's) that
    loses one kills the others, too: each job that ran then is given another chance, alone.
    """
    left = [job for job in wanted if sweep.job_status(job).status not in SETTLED]
    tried: set[Job] = set()
    suspects: list[Job] = []
    while (left or suspects) and not stop():
        alone = suspects[:1]
        batch = alone or left[: parallel or len(left)]
        failure: Exception | None = None
        try:
            launch_all(batch)
        except Exception as error:
            failure = error
        while any(is_locked(sweep.path / job.directory) for job in batch):
            time.sleep(0.5)
        if sweep.stop_file.exists():
            return
        statuses = {job: sweep.job_status(job).status for job in batch}
        begun = [job for job in batch if statuses[job] != Status.WAITING]
        if alone:
            del suspects[0]
        elif isinstance(failure, BrokenProcessPool):
            suspects = [job for job in begun if statuses[job] == Status.KILLED]
        if not begun and failure is not None and tried.issuperset(batch):
            message = " ".join(str(failure).split())
            raise UsageError(f"the launcher started no job: {type(failure).__name__}: {message}") from failure
        tried.update(batch)
        left = [job for job in left if job not in begun]


def _returned(job: Job, sweep: SweepDirectory) -> JobReturn:
    result = JobReturn(overrides=list(job.arguments), status=JobStatus.COMPLETED)
    result.working_dir = str(sweep.path / job.directory)
    result.return_value = sweep.job_status(job).val_accuracy
    return result
