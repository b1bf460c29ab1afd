"""The sweep directory: one run directory for each job, and ``sweep.json``, which lists the jobs.

sweep.json       the command, and for each job its overrides, its identity and its status
multirun.yaml    as Hydra writes it
NAME/            a run directory, named after the overrides that differ between the jobs
.stop            exists while jobs are asked to write a checkpoint and end
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from mnist_exp.config import Config
from mnist_exp.hashing import HASH_VERSION, changes_result, config_hash
from mnist_exp.runs import RunDirectoryError, Status, write_atomically
from mnist_exp.runs.files import open_file, refuse_links, remove_temporaries
from mnist_exp.runs.reading import read_config
from mnist_exp.runs.sweep import Job, JobRecord, JobStatus, SweepRecord, Until, read_job_status, read_sweep

LONGEST_NAME = 80


@dataclass
class SweepDirectory:
    """A sweep's directory, locked by one process at a time. Use as a context manager.

    Attributes:
        path: absolute, because launchers may start jobs in another folder.
        command, arguments: see ``SweepRecord``.
        jobs: by directory name, in the order in which they were added.
        until: see ``SweepRecord``.

    Raises:
        RunDirectoryError: on entering, if another process runs this sweep, or the directory holds something else.
    """

    path: Path
    command: str
    arguments: Sequence[str]
    jobs: dict[str, Job] = field(default_factory=dict)
    until: Until | None = None

    def __enter__(self) -> SweepDirectory:
        if (self.path / "run.json").exists():
            raise RunDirectoryError(f"{self.path} holds a run, not a sweep; choose another hydra.sweep.dir")
        self.path.mkdir(parents=True, exist_ok=True)
        refuse_links(self.path)
        self._lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise RunDirectoryError(f"{self.path} is in use by another process") from error
        remove_temporaries(self.path, folders=())
        if (self.path / "sweep.json").exists():
            record = read_sweep(self.path)
            is_old = record.config_hash_version != HASH_VERSION
            self.until = record.until
            for row in record.jobs:
                self.jobs[row.directory] = _with_current_hash(row.job, self.path) if is_old else row.job
        self.stop_file.unlink(missing_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop_file.unlink(missing_ok=True)
        self._lock.release()

    @property
    def shown(self) -> Path:
        """The path relative to the working directory if it is inside it, else absolute."""
        return self.path.relative_to(Path.cwd()) if self.path.is_relative_to(Path.cwd()) else self.path

    @property
    def stop_file(self) -> Path:
        return self.path / ".stop"

    def find(self, identity: str) -> Job | None:
        """The job with this identity; None if there is none."""
        return next((job for job in self.jobs.values() if job.id == identity), None)

    def find_composed_from(self, arguments: Iterable[str]) -> Job | None:
        """The job with the same overrides, whatever ``conf/`` contained when it was composed; None if there is none."""
        wanted = sorted(arguments)
        return next((job for job in self.jobs.values() if sorted(job.arguments) == wanted), None)

    def add(self, identity: str, overrides: Sequence[str], arguments: Sequence[str], title: str) -> Job:
        """Add a job with a directory name that no other job has.

        Args:
            overrides, arguments: see ``Job``.
            title: the directory name of a job without ``overrides``.
        """
        name = directory_name(overrides, identity) if overrides else title
        if name in self.jobs or (self.path / name).exists():
            name = f"{name[: LONGEST_NAME - 7]}-{identity[:6]}"
        job = Job(name, identity, tuple(overrides), tuple(arguments))
        self.jobs[name] = job
        return job

    def job_status(self, job: Job) -> JobStatus:
        return read_job_status(self.path / job.directory)

    def write_names(self, known: Collection[str]) -> None:
        """Write ``sweep.json`` before the directories of the new jobs exist.

        Args:
            known: directory names of the jobs that are not new.
        """
        waiting = JobStatus(Status.WAITING)
        self.write({name: self.job_status(job) if name in known else waiting for name, job in self.jobs.items()})

    def write(self, statuses: Mapping[str, JobStatus]) -> None:
        """Write ``sweep.json``.

        Args:
            statuses: of every job, by directory name.
        """
        record = SweepRecord(
            command=self.command,
            arguments=tuple(self.arguments),
            updated=datetime.now(UTC).isoformat(timespec="seconds"),
            jobs=tuple(JobRecord(**vars(job), **vars(statuses[name])) for name, job in self.jobs.items()),
            config_hash_version=HASH_VERSION,
            until=self.until,
        )
        write_atomically(self.path / "sweep.json", json.dumps(asdict(record), indent=2).encode() + b"\n")


def _with_current_hash(job: Job, path: Path) -> Job:
    """The job with its identity by the current version of the hash."""
    try:
        now = config_hash(read_config(path / job.directory))
    except RunDirectoryError:  # it has no run yet, or a damaged one; it is still found by its overrides
        return job
    _, dash, unhashed = job.id.partition("-")
    return replace(job, id=f"{now}{dash}{unhashed}")


def ask_to_stop(stop_file: Path, number: int | None = None) -> None:
    """Write ``.stop``, so that all jobs of the sweep stop.

    Args:
        number: the signal that stops the sweep; None if a failure does.
    """
    with open_file(stop_file, "w") as file:
        file.write("" if number is None else str(int(number)))


def job_id(config: Config, overrides: Iterable[str]) -> str:
    """The identity of a job: the hash of its resolved configuration.

    Args:
        overrides: those that differ between the jobs. Keys that the hash ignores, such as ``trainer.threads``, are added
            to the identity, because a sweep over them needs one run for each value.
    """
    unhashed = sorted(override for override in overrides if not changes_result(override))
    digest = hashlib.sha256("\n".join(unhashed).encode()).hexdigest()[:4]
    return config_hash(config) + (f"-{digest}" if unhashed else "")


def directory_name(overrides: Iterable[str], identity: str) -> str:
    """A file name for a job: short keys and values, sorted, safe on every file system.

    If characters were replaced or left out, the first digits of the identity are added, so that the names of [1,2] and
    [12], or of two long values, differ.
    """
    parts = []
    exact = True
    for override in sorted(overrides):
        key, _, value = override.lstrip("+").partition("=")
        part = f"{key.rsplit('.', 1)[-1]}={value}"
        short = re.sub(r"\d+\.\d{5,}(e-?\d+)?", lambda number: f"{float(number[0]):.4g}", part)
        safe = re.sub(r"[^A-Za-z0-9._=+-]+", "-", short).replace("=-", "=").strip("-.")
        exact = exact and safe == part
        parts.append(safe)
    name = ",".join(parts)
    if exact and len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 7]}-{identity[:6]}"
