"""Find the requested jobs in the sweep directory, or store them there as waiting run directories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from mnist_exp.config import Config, check_logger
from mnist_exp.hashing import HASH_VERSION
from mnist_exp.runs import RunDirectory
from mnist_exp.runs.files import refuse_links
from mnist_exp.runs.reading import read_config
from mnist_exp.runs.record import SETTLED, Status
from mnist_exp.runs.sweep import Job, read_job_status, read_sweep
from mnist_exp.sweeps.composing import Composed, compose_all, fixed_keys, without_hydra
from mnist_exp.sweeps.directory import SweepDirectory
from mnist_exp.sweeps.matching import data_folders, find_moved, identities_of, varying_overrides
from mnist_exp.sweeps.naming import name_arms, recorded_arms
from mnist_exp.trust import check_names, logger_to_use, own_packages


@dataclass(frozen=True)
class RequestedJobs:
    """The jobs that a command asks for. Each list has one element for each job.

    Attributes:
        overrides: all overrides of the job.
        composed: its configuration.
        identities: see ``directory.job_id``.
        fixed: the keys that the command line sets to one value for all jobs.
    """

    overrides: Sequence[Sequence[str]]
    composed: list[Composed]
    identities: list[str]
    fixed: set[str]

    @property
    def configs(self) -> list[Config]:
        return [job.checked for job in self.composed]


def request_jobs(
    path: Path, context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
) -> RequestedJobs:
    """Compose the jobs of a command; see ``launching.launch``.

    Args:
        path: the sweep directory.

    Raises:
        JobRefused: a job cannot run; the message names it.
        RunDirectoryError: ``sweep.json`` is damaged.
    """
    composed = compose_all(context, config, job_overrides, initial_job_idx, _settled_jobs(path))
    fixed = fixed_keys(context, config)
    identities = identities_of([job.checked for job in composed], job_overrides, fixed)
    return RequestedJobs(job_overrides, composed, identities, fixed)


def _settled_jobs(path: Path) -> Callable[[Sequence[str]], bool]:
    """A function that tells whether the job with these overrides is in the sweep directory and need not run."""
    known = read_sweep(path).jobs if (path / "sweep.json").exists() else ()
    directories = {tuple(sorted(job.arguments)): job.directory for job in known}

    def is_settled(overrides: Sequence[str]) -> bool:
        directory = directories.get(tuple(sorted(_without_sweep_keys(overrides))))
        return directory is not None and read_job_status(path / directory).status in SETTLED

    return is_settled


def find_or_add_all(sweep: SweepDirectory, requested: RequestedJobs, *, resuming: bool) -> list[Job]:
    """Find each requested job in the sweep by its identity or its overrides; add those that are new, without storing them.

    Args:
        resuming: also find jobs whose data folder has moved.
    """
    # A data set that is identified by its folder has another identity in another folder.
    folders = data_folders(sweep) if resuming else []
    jobs, as_composed = [], {}
    for config, identity, words in zip(requested.configs, requested.identities, requested.overrides, strict=True):
        arguments = _without_sweep_keys(words)
        overrides = varying_overrides(arguments, requested.fixed)
        found = sweep.find(identity) or find_moved(sweep, config, overrides, folders)
        found = found or sweep.find_composed_from(arguments)
        job = found or sweep.add(identity, overrides, arguments, config.name)
        jobs.append(job)
        if job.id == identity:  # otherwise its stored configuration is used
            as_composed[job.directory] = config
    name_arms(sweep, as_composed)
    return [sweep.jobs[job.directory] for job in jobs]


def _without_sweep_keys(arguments: Sequence[str]) -> list[str]:
    """The overrides without those of the sweep, such as ``sweep.fail_fast=true``."""
    return [argument for argument in arguments if not argument.startswith("sweep.")]


def store(
    sweep: SweepDirectory,
    jobs: Sequence[Job],
    requested: RequestedJobs,
    fields: Sequence[Mapping[str, Any]],
    known: set[str],
) -> None:
    """Write a waiting run directory for each job that has none.

    ``sweep.json`` is written first, so that after a kill in between the same command finds each job by its name.

    Args:
        fields: for each job, further fields of its ``run.json``.
        known: directory names of the jobs that ``sweep.json`` has already.
    """
    if not known.issuperset(sweep.jobs):
        sweep.write_names(known)
    each = zip(jobs, requested.composed, requested.identities, requested.overrides, fields, strict=True)
    new = {job.directory for job in jobs if not (sweep.path / job.directory / "run.json").exists()}
    arms = recorded_arms(sweep, new)
    for job, composed, identity, overrides, more in each:
        if not (sweep.path / job.directory / "run.json").exists():
            more = {"arm": arms.get(job.arm, job.arm), **more}
            _store_one(sweep, job, composed, identity, _without_sweep_keys(overrides), more)


def _store_one(
    sweep: SweepDirectory, job: Job, composed: Composed, identity: str, arguments: list[str], more: Mapping[str, Any]
) -> None:
    checked, path = composed.checked, sweep.path / job.directory
    record = {
        "name": checked.name,
        "seed": checked.seed,
        "config_hash": identity.partition("-")[0],
        "config_hash_version": HASH_VERSION,
        "command": sweep.command,
        "sweep": sweep.path.name,
        **more,
    }
    if record["threads"] is None or checked.trainer.threads is not None:
        del record["threads"]  # trainer.threads, or the default, is used
    with RunDirectory.create(path, config=checked, overrides=arguments, record=record, status=Status.WAITING):
        hydra = path / ".hydra"
        hydra.mkdir(exist_ok=True)
        whole = composed.whole()
        OmegaConf.save(without_hydra(whole), hydra / "config.yaml")
        OmegaConf.save(OmegaConf.masked_copy(whole, "hydra"), hydra / "hydra.yaml")
        OmegaConf.save(whole.hydra.overrides.task, hydra / "overrides.yaml")


def settings_of_composed_jobs(
    jobs: Sequence[Job], composed: Sequence[Composed], config: DictConfig
) -> dict[str, dict[str, Any]]:
    """The settings of each job that this command composed, by directory name: see ``job.train_directory``."""
    return {
        job.directory: {
            "logger": None if own.logger is None else own.logger.plain(),
            "callbacks": {name: callback.plain() for name, callback in own.callbacks.items()},
            "data_root": own.data.folder,
            "trusted": sorted(own_packages(own).union(config.trust)),
        }
        for job, own in zip(jobs, (one.checked for one in composed), strict=True)
    }


def settings_of_stored_jobs(
    sweep: SweepDirectory, wanted: Sequence[Job], config: DictConfig, known: set[str], composed: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Check the run directories of the jobs that are not complete, before any job starts.

    Args:
        known: directory names of the jobs that were stored before this command.
        composed: from ``settings_of_composed_jobs``.

    Returns:
        the settings of each known job that this command did not compose, by directory name: see ``job.train_directory``.

    Raises:
        UsageError, RunDirectoryError: a job cannot be trained: its configuration is damaged or not trusted, or the
            directory contains links.
    """
    settings = {}
    logger = OmegaConf.select(config, "logger")
    chosen: Any = OmegaConf.to_container(logger, resolve=True) if logger else None
    present = check_logger(chosen)
    for job in wanted:
        path = sweep.path / job.directory
        if job.directory not in known or sweep.job_status(job).status in SETTLED:
            continue
        refuse_links(path)
        stored = read_config(path)
        # The directory may have been changed since it was composed.
        check_names(stored, composed[job.directory]["trusted"] if job.directory in composed else config.trust)
        if job.directory not in composed:
            used, _ = logger_to_use(stored.logger, present, ())
            settings[job.directory] = {
                "logger": None if used is None else used.plain(),
                "data_root": None,
                "trusted": list(config.trust),
            }
    return settings
