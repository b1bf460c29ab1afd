"""Compose the jobs of a sweep once, store each as a waiting run directory, and launch those that are not complete.

Any Hydra launcher can be used: it decides where and when a job runs. It gets the path of a run directory, and the status
of the job is read from there, not from what the launcher returns.
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
from mnist_exp.runs.sweep import Job, Until
from mnist_exp.signals import StopRequest
from mnist_exp.sweeps.composing import fingerprint
from mnist_exp.sweeps.directory import SweepDirectory
from mnist_exp.sweeps.job import StopAll, train_here, train_in_worker
from mnist_exp.sweeps.matching import report_changed_configs, report_merged, update_data_folders
from mnist_exp.sweeps.progress import Progress, print_table
from mnist_exp.sweeps.shares import is_of_slurm, shares_of, warn_of_too_many_threads
from mnist_exp.sweeps.slurm import job_name, launch_on_slurm, train_on_slurm
from mnist_exp.sweeps.storing import (
    RequestedJobs,
    find_or_add_all,
    request_jobs,
    settings_of_composed_jobs,
    settings_of_stored_jobs,
    store,
)


class StoredJobs(ConfigLoader):
    """Replaces Hydra's loader in a launcher: a job's configuration is not composed again, but read from its run directory.

    Args:
        settings: of each job, by directory name: see ``job.train_directory``.
    """

    def __init__(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        self._settings = settings

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The configuration of the job whose directory name is the only element of ``sweep_overrides``."""
        (name,) = sweep_overrides
        config = master_config.copy()
        with flag_override(config, ["struct", "readonly"], False):
            config.hydra.sweep.subdir = name
            config.hydra.overrides.task = []
            config.directory = str(Path(config.hydra.sweep.dir) / name)
            config.settings = dict(self._settings.get(name, {}))
        return config

    def _unused(self, *arguments: Any, **options: Any) -> NoReturn:
        raise NotImplementedError("launchers do not need it")  # but ConfigLoader declares it abstract

    load_configuration = get_search_path = get_sources = list_groups = _unused
    get_group_options = compute_defaults_list = _unused


def launch(
    context: HydraContext,
    config: DictConfig,
    inner: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
    records: Sequence[Mapping[str, Any]],
    until: Until | None = None,
    trials: int | None = None,
) -> Sequence[JobReturn]:
    """Run the jobs that are not complete yet, and wait for them.

    Args:
        context: Hydra's, with the loader that composes the jobs.
        config: of the sweep.
        inner: configuration of the launcher that runs the jobs.
        job_overrides: of each job.
        initial_job_idx: Hydra's number of the first job.
        records: for each job, further fields of its ``run.json``.
        until: how the sweep adds seeds, for its record.
        trials: the number of trials of the whole search; None if it is not a search.

    Returns:
        for each job, in this order, its directory and its validation accuracy (None without one).

    Raises:
        UsageError: a mistake of the user, before any job runs.
        RunInterrupted, WrappedError: a signal or a failure stopped the sweep; see ``conclude``.
    """
    setup_globals()
    path = Path(config.hydra.sweep.dir).absolute()
    is_new = not (path / "sweep.json").exists()
    try:
        if config.sweep.resume and Path(config.sweep.resume).absolute() != path:
            raise UsageError(
                f"sweep.resume={config.sweep.resume} is set by a configuration file; type it: mnist-train -m "
                f"sweep.resume={config.sweep.resume}"
            )
        compose = partial(request_jobs, path, context, config, job_overrides, initial_job_idx)
        sweep, jobs, stopped_by = _launch_requested(path, context, config, inner, compose, records, until, trials)
    except UsageError:
        if is_new and [item.name for item in path.glob("*")] == ["multirun.yaml"]:
            shutil.rmtree(path)  # Hydra wrote it before the jobs were checked
        raise
    _LAST[:] = [sweep]
    if stopped_by is not None:
        conclude(stopped_by)
    return [_returned(job, sweep) for job in jobs]


def _launch_requested(
    path: Path,
    context: HydraContext,
    config: DictConfig,
    inner: DictConfig,
    compose: Callable[[], RequestedJobs],
    records: Sequence[Mapping[str, Any]],
    until: Until | None,
    trials: int | None,
) -> tuple[SweepDirectory, list[Job], int | None]:
    """Store the jobs in the sweep directory, and launch those that are not complete.

    Args:
        path: the sweep directory.
        compose: composes the jobs. It is called again at the end if a configuration file has changed, for a warning.
        context, config, inner, records, until, trials: see ``launch``.

    Returns:
        the sweep; the requested jobs, in their order; and None, or what stopped the sweep: a signal, or 0 for a failure.
    """
    files = fingerprint(context)
    requested = compose()
    shares = shares_of(inner, len(requested.configs))
    _instantiated(_with_launcher(inner, config), context, train_in_worker)  # refused before anything is written
    with SweepDirectory(path, shlex.join(["mnist-train", *sys.argv[1:]]), sys.argv[1:]) as sweep:
        known = set(sweep.jobs)
        sweep.until = until or sweep.until
        if shares.at_once is not None:
            warn_of_too_many_threads(shares.at_once, [job.checked.trainer.threads for job in requested.composed])
        jobs = find_or_add_all(sweep, requested, resuming=bool(config.sweep.resume))
        store(sweep, jobs, requested, [{**record, "threads": shares.threads} for record in records], known)
        report_merged(sweep, jobs, requested.overrides, requested.fixed)
        update_data_folders(sweep, jobs, requested.configs)
        wanted = list(dict.fromkeys([*jobs, *(sweep.jobs.values() if config.sweep.resume else ())]))
        settings = settings_of_composed_jobs(jobs, requested.composed, config)
        settings |= settings_of_stored_jobs(sweep, wanted, config, known, settings)
        left = [job for job in wanted if sweep.job_status(job).status not in SETTLED]
        with StopAll(sweep.stop_file) as stop, Progress(sweep, wanted, trials):
            if left:
                from mnist_exp.components import keep_data  # imports torch, which is needed only if jobs are left

                # Hydra's basic launcher keeps the whole configuration of each job of a launch.
                at_once = 1 if inner._target_ == BASIC_LAUNCHER else shares.at_once if shares.capped else None
                with keep_data():
                    _run(sweep, left, _launcher(inner, config, sweep, settings), stop, at_once)
        stopped_by = int(sweep.stop_file.read_text() or 0) if sweep.stop_file.exists() else None
        if fingerprint(context) != files:
            requested = compose()
        report_changed_configs(sweep, jobs, requested.configs, requested.identities)
    return sweep, jobs, stopped_by


# The last sweep of this process, for ``conclude`` at the end of the program; a search launches several times.
_LAST: list[SweepDirectory] = []


def conclude(stopped_by: int = 0) -> None:
    """Print the table of the last sweep, if it has not been printed.

    Args:
        stopped_by: the signal that stopped the sweep, or 0.

    Raises:
        RunInterrupted: a signal stopped the sweep.
        WrappedError: with a RunFailed, if a job failed.
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
    """A function that runs jobs with the chosen launcher.

    Args:
        settings: of each job, by directory name: see ``job.train_directory``.

    Raises:
        UsageError: this launcher cannot be used here.
    """
    on_slurm = is_of_slurm(inner)
    job = _with_launcher(inner, config)
    with flag_override(job, ["struct", "readonly"], False):
        job.directory = ""
        job.launched_by = {"host": platform.node(), "pid": os.getpid()}
        job.stop_file = str(sweep.stop_file)
        job.fail_fast = bool(config.sweep.fail_fast)
        job.hydra.callbacks = {}
        job.hydra.output_subdir = None  # .hydra/ exists already
        job.hydra.sweep.dir = str(sweep.path)
        if folder := job.hydra.launcher.get("submitit_folder"):
            # submitit unpickles files that are named by a job's number, so the folder must be new.
            job.hydra.launcher.submitit_folder = str(Path(folder).parent / secrets.token_hex(4) / Path(folder).name)
        if on_slurm:
            job.hydra.launcher.name = job_name(sweep.path)
        elif "ray" in inner:
            _set_ray_defaults(job.hydra.launcher.ray)
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


def _set_ray_defaults(ray: DictConfig) -> None:
    """Change Ray's defaults in a launcher's settings; what the user has set stays.

    By default Ray repeats a job whose worker was killed, prints what output.log has already, and without an address joins
    a running cluster, which refuses the plugin's default ``object_store_memory``.
    """
    ray.remote = {"max_retries": 0, **ray.remote}
    own = {"include_dashboard": False, **ray.init, "address": "local"}
    cluster = {"object_store_memory": None, **ray.init}
    ray.init = {"log_to_driver": False, **(own if ray.init.get("address") is None else cluster)}


def _with_launcher(inner: DictConfig, config: DictConfig) -> DictConfig:
    """The ``hydra`` section of the sweep's configuration, with ``inner`` as the launcher."""
    job = OmegaConf.masked_copy(config, "hydra")
    OmegaConf.set_readonly(job.hydra, None)
    with flag_override(job, ["struct", "readonly"], False):
        job.hydra.launcher = inner
    return job


def _instantiated(config: DictConfig, context: HydraContext, task: TaskFunction) -> Launcher:
    """Make the launcher of a configuration.

    Raises:
        UsageError: it cannot be imported, or it refuses its settings.
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
    left: list[Job],
    launch_all: Callable[[Sequence[Job]], None],
    stop: StopRequest,
    at_once: int | None,
) -> None:
    """Launch jobs until each has begun.

    A launcher may not start all of its jobs, because a worker died or because it stops at the first error; those that did
    not begin are launched again, as long as at least one of them begins. If a process of joblib's pool dies, joblib kills
    the others, too: each job that was running then is launched once more, alone.

    Args:
        left: the jobs that are not complete.
        at_once: the number of jobs in one launch; None: all.

    Raises:
        UsageError: the launcher failed twice without starting any of the jobs.
    """
    tried: set[Job] = set()
    suspects: list[Job] = []
    while (left or suspects) and not stop():
        alone = suspects[:1]
        batch = alone or left[: at_once or len(left)]
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
        if not begun and tried.issuperset(batch):
            reason = (
                f"{type(failure).__name__}: {' '.join(str(failure).split())}" if failure else "it reported no reason"
            )
            raise UsageError(
                f"the launcher started no job (they are stored, and the same command starts them): {reason}"
            ) from failure
        tried.update(batch)
        left = [job for job in left if job not in begun]


def _returned(job: Job, sweep: SweepDirectory) -> JobReturn:
    result = JobReturn(overrides=list(job.arguments), status=JobStatus.COMPLETED)
    result.working_dir = str(sweep.path / job.directory)
    result.return_value = sweep.job_status(job).val_accuracy
    return result
