"""Match configurations with the stored jobs of a sweep, and print which were merged, moved or changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_exp.config import Config
from mnist_exp.errors import UsageError, as_typed, report
from mnist_exp.runs.directory import write_config
from mnist_exp.runs.locking import is_locked
from mnist_exp.runs.reading import read_config
from mnist_exp.runs.record import SETTLED
from mnist_exp.runs.sweep import Job
from mnist_exp.sweeps.directory import SweepDirectory, job_id
from mnist_exp.sweeps.progress import count
from mnist_exp.terminal import say


def varying_overrides(arguments: Sequence[str], fixed: set[str]) -> list[str]:
    """The overrides of a job that differ between the jobs of the sweep.

    Args:
        fixed: keys that have the same value in all jobs.
    """
    return [a for a in arguments if not a.lstrip("+").startswith("sweep.") and a.partition("=")[0] not in fixed]


def identities_of(configs: Sequence[Config], job_overrides: Sequence[Sequence[str]], fixed: set[str]) -> list[str]:
    """The identity of each job, see ``job_id``.

    If jobs differ only in the folder of their data, which a configuration file may set, it is added to their identities.
    """
    own = [varying_overrides(overrides, fixed) for overrides in job_overrides]
    identities = [job_id(config, overrides) for config, overrides in zip(configs, own, strict=True)]
    folders: dict[str, set[str | None]] = {}
    for identity, config in zip(identities, configs, strict=True):
        folders.setdefault(identity, set()).add(config.data.folder)
    return [
        identity if len(folders[identity]) == 1 else job_id(config, [*overrides, f"data.root={config.data.folder}"])
        for identity, config, overrides in zip(identities, configs, own, strict=True)
    ]


def data_folders(sweep: SweepDirectory) -> list[str | None]:
    """The data folders in the stored configurations of a sweep, each once."""
    paths = [path for name in sweep.jobs if (path := sweep.path / name).joinpath("config.yaml").is_file()]
    return list({read_config(path).data.folder: None for path in paths})


def find_moved(
    sweep: SweepDirectory, config: Config, overrides: Sequence[str], folders: Sequence[str | None]
) -> Job | None:
    """The job that has this configuration, except that its data are in one of these folders; None if there is none."""
    if "root" not in config.data.plain():
        return None
    moved = (config.with_data(config.data.in_folder(folder)) for folder in folders)
    return next((job for other in moved if (job := sweep.find(job_id(other, overrides)))), None)


def report_merged(
    sweep: SweepDirectory, jobs: Sequence[Job], job_overrides: Sequence[Sequence[str]], fixed: set[str]
) -> None:
    """Print which requested jobs are run as one, because they compute the same."""
    same: dict[Job, list[str]] = {}
    for job, overrides in zip(jobs, job_overrides, strict=True):
        same.setdefault(job, []).append(" ".join(varying_overrides(overrides, fixed)))
    for job, asked in same.items():
        if len(asked) > 1:
            which = "; ".join(dict.fromkeys(asked))
            say(f"sweep {sweep.path.name}: {len(asked)} jobs compute the same ({which}); 1 runs: {job.directory}")


def update_data_folders(sweep: SweepDirectory, jobs: Sequence[Job], configs: Sequence[Config]) -> None:
    """Store the new data folder in jobs that are not complete; print the number of complete ones with another folder.

    A resumed job checks that the data are the same.
    """
    complete: dict[tuple[Any, Any], int] = {}
    for job, now in dict(zip(jobs, configs, strict=True)).items():
        path = sweep.path / job.directory
        stored, root = read_config(path), now.data.folder
        before = stored.data.folder
        same = before == root or (before and root and Path(before).absolute() == Path(root))
        if same or stored.data.in_folder(root) != now.data:
            continue
        if sweep.job_status(job).status in SETTLED:
            complete[before, root] = complete.get((before, root), 0) + 1
        elif not is_locked(path):
            write_config(path, stored.with_data(now.data))
    for (before, root), number in complete.items():
        say(
            f"sweep {sweep.path.name}: {count(number, 'job')} done already with data in {before}; {root} is not read for "
            "them, other data need another hydra.sweep.dir"
        )


def report_changed_configs(
    sweep: SweepDirectory, jobs: Sequence[Job], configs: Sequence[Config], identities: Sequence[str]
) -> None:
    """Warn of jobs whose stored configuration differs from that which ``conf/`` gives for their overrides now."""
    changes: dict[tuple[str, ...], int] = {}
    for job, now, identity in zip(jobs, configs, identities, strict=True):
        if identity.partition("-")[0] != job.id.partition("-")[0]:
            before = read_config(sweep.path / job.directory).with_image_properties(None)
            lines = tuple(differences(before.plain(), now.plain()))
            changes[lines] = changes.get(lines, 0) + 1
    for lines, number in changes.items():
        report(
            UsageError(
                f"conf/ has changed since {count(number, 'job')} of this sweep {'was' if number == 1 else 'were'} "
                f"composed: {'; '.join(lines)}; the stored configurations are used; for the new ones choose another "
                "hydra.sweep.dir"
            )
        )


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key: old -> new`` for every value that is not the same in two trees."""
    lines = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {as_typed(old)} -> {as_typed(new)}")
    return lines
