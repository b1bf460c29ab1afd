"""The jobs of a sweep in its directory: found again, or stored as run directories that wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_exp.config import Config, check_logger
from mnist_exp.hashing import HASH_VERSION
from mnist_exp.runs import RunDirectory
from mnist_exp.runs.files import refuse_links
from mnist_exp.runs.reading import read_config
from mnist_exp.runs.record import SETTLED, Status
from mnist_exp.sweeps.composing import Composed
from mnist_exp.sweeps.directory import Job, SweepDirectory
from mnist_exp.sweeps.matching import distinguishing, find_moved
from mnist_exp.trust import check_names, logger_to_use, own_packages


def find_or_add(
    sweep: SweepDirectory,
    checked: Config,
    identity: str,
    arguments: Sequence[str],
    fixed: set[str],
    folders: Sequence[str | None],
) -> Job:
    """The job that computes this, or that the same overrides made when the sweep began; else a new one, not stored yet."""
    arguments = _without_sweep_keys(arguments)
    overrides = distinguishing(arguments, fixed)
    found = sweep.find(identity) or find_moved(sweep, checked, overrides, folders)
    return found or sweep.find_composed_from(arguments) or sweep.add(identity, overrides, arguments, checked.name)


def _without_sweep_keys(arguments: Sequence[str]) -> list[str]:
    """Arguments of the job alone: ``sweep.fail_fast=true`` and the like are the sweep's."""
    return [argument for argument in arguments if not argument.startswith("sweep.")]


def store(
    sweep: SweepDirectory,
    jobs: Sequence[Job],
    composed: Sequence[Composed],
    identities: Sequence[str],
    job_overrides: Sequence[Sequence[str]],
    more: Sequence[Mapping[str, Any]],
    known: set[str],
) -> None:
    """Write down every job that is not, so that it waits.

    ``sweep.json`` names them first: after a kill in between, the same command finds each again under its name.

    Args:
        known: names of the jobs that ``sweep.json`` holds.
    """
    if not known.issuperset(sweep.jobs):
        sweep.write_names(known)
    for job, made, identity, arguments, own in zip(jobs, composed, identities, job_overrides, more, strict=True):
        if not (sweep.path / job.directory / "run.json").exists():
            _store_one(sweep, job, made, identity, _without_sweep_keys(arguments), own)


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
        del record["threads"]  # else its share of the cores, now and when it is resumed
    with RunDirectory.create(path, config=checked, overrides=arguments, record=record, status=Status.WAITING):
        hydra = path / ".hydra"
        hydra.mkdir(exist_ok=True)
        OmegaConf.save(composed.task, hydra / "config.yaml")
        OmegaConf.save(OmegaConf.masked_copy(composed.config, "hydra"), hydra / "hydra.yaml")
        OmegaConf.save(composed.config.hydra.overrides.task, hydra / "overrides.yaml")


def settings_of_composed_jobs(
    jobs: Sequence[Job], composed: Sequence[Composed], config: DictConfig
) -> dict[str, dict[str, Any]]:
    """What this command says of each job that it composed itself, by name: see ``job.train_directory``."""
    return {
        job.directory: {
            "logger": None if made.checked.logger is None else made.checked.logger.plain(),
            "callbacks": {name: callback.plain() for name, callback in made.checked.callbacks.items()},
            "data_root": made.checked.data.folder,
            "trusted": sorted(own_packages(made.checked).union(config.trust)),
        }
        for job, made in zip(jobs, composed, strict=True)
    }


def settings_of_stored_jobs(
    sweep: SweepDirectory, wanted: Sequence[Job], config: DictConfig, known: set[str], composed: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Check the run directories of jobs that are not complete, before any starts.

    Args:
        known: names of the jobs that were there before.
        composed: of the jobs that this command composed itself, by name, what it says of them.

    Returns:
        for each other job by name, what this command says of it: see ``job.train_directory``.

    Raises:
        UsageError: one of them could not be trained: its configuration is none, or it holds links.
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
        # What lies there need not be what was composed.
        check_names(stored, composed[job.directory]["trusted"] if job.directory in composed else config.trust)
        if job.directory not in composed:
            used, _ = logger_to_use(stored.logger, present, ())
            settings[job.directory] = {
                "logger": None if used is None else used.plain(),
                "data_root": None,
                "trusted": list(config.trust),
            }
    return settings
