"""The arm of each job of a sweep: the jobs with its settings and any seed, and the label that reports give them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mnist_exp.config import Config
from mnist_exp.hashing import arm_settings, changes_result
from mnist_exp.runs import RunDirectoryError
from mnist_exp.runs.names import labels
from mnist_exp.runs.reading import read_config, read_record
from mnist_exp.runs.settings import natural_order, split_settings
from mnist_exp.runs.sweep import Job
from mnist_exp.sweeps.directory import SweepDirectory

Named = tuple[str, dict[str, Any]]  # the name of a run, and the settings of its arm by dotted key


def name_arms(sweep: SweepDirectory, configs: Mapping[str, Config]) -> None:
    """Set the arm of every job of a sweep.

    Two command lines may add seeds of one arm with different overrides, so that an arm is known by its configuration.

    Args:
        configs: of the jobs that this command composed, by directory name; others are read.
    """
    arms: dict[str, tuple[Named, list[Job]]] = {}
    for job in sweep.jobs.values():
        named = _named(configs[job.directory]) if job.directory in configs else _stored(sweep.path / job.directory)
        name, settings = named or (job.directory, {})  # a damaged run: its arm is not known
        # The hash ignores them, but a sweep over them compares them.
        unhashed = (word.lstrip("+").partition("=") for word in job.overrides if not changes_result(word))
        settings = {**settings, **{key: value for key, _, value in unhashed}}
        key = json.dumps(settings, sort_keys=True) if named else job.directory
        arms.setdefault(key, ((name, settings), []))[1].append(job)
    found = list(arms.values())
    order = natural_order([name for (name, _), _ in found], [settings for (_, settings), _ in found])
    found = [found[place] for place in order]
    varied, _ = split_settings([settings for (_, settings), _ in found])
    typed = [jobs[0].arguments for _, jobs in found]
    for label, (_, jobs) in zip(labels([name for (name, _), _ in found], varied, typed), found, strict=True):
        sweep.jobs |= {job.directory: replace(job, arm=label) for job in jobs}


def recorded_arms(sweep: SweepDirectory, new: Collection[str]) -> dict[str, str]:
    """For each arm of new jobs, by its label, the name under which its earlier jobs were logged.

    The label of an arm gets longer when other arms are added to the sweep; W&B should not take the arm for two.

    Args:
        new: directory names.
    """
    wanted = {sweep.jobs[name].arm for name in new}
    found: dict[str, str] = {}
    for name, job in sweep.jobs.items():
        if name not in new and job.arm in wanted and job.arm not in found:
            with suppress(RunDirectoryError):
                found[job.arm] = read_record(sweep.path / name).arm or job.arm
    return found


def _named(config: Config) -> Named:
    return config.name, arm_settings(config)


@lru_cache(maxsize=10_000)  # each step of a search asks for all trials before it
def _stored(path: Path) -> Named | None:
    try:
        return _named(read_config(path))
    except RunDirectoryError:
        return None
