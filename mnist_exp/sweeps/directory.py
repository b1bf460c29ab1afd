"""The sweep directory: one run directory for each job, and ``sweep.json``, which says what belongs to the sweep.

sweep.json       the command, and for each job its overrides, its identity and its status
multirun.yaml    as Hydra writes it
NAME/            a run directory, named by what distinguishes the job
.stop            exists while jobs are asked to checkpoint and end
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mnist_exp.config import Config
from mnist_exp.hashing import HASH_VERSION, NOT_HASHED, config_hash
from mnist_exp.runs import RunDirectoryError, Status, write_atomically
from mnist_exp.runs.directory import resume_command
from mnist_exp.runs.files import open_file, refuse_links, remove_temporaries
from mnist_exp.runs.locking import is_locked
from mnist_exp.runs.reading import read_config, read_record

LONGEST_NAME = 80
PLAIN_NAME = r"[^./\\:\x00-\x1f][^/\\:\x00-\x1f]*"  # of a folder: no path, nothing hidden


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        directory: name of its run directory below the sweep directory.
        id: hash of what it computes; jobs are matched by it.
        overrides: what distinguishes it from the other jobs of its sweep.
        arguments: all overrides it was composed from, those that all jobs share included.
    """

    directory: str
    id: str
    overrides: tuple[str, ...]
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class JobStatus:
    """The status of a job, read from its run directory.

    Attributes:
        status: of the run; killed where the record says running and no process holds the directory.
        val_accuracy, test_accuracy: of the result, fractions; None where there is none.
        seconds: spent on it, over all its parts.
        val_loss: of the result.
    """

    status: Status
    error: str | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    seconds: float | None = None
    val_loss: float | None = None


@dataclass
class SweepDirectory:
    """A sweep's directory, held by one process at a time. Use as a context manager.

    Attributes:
        path: absolute, because launchers start jobs elsewhere.
        jobs: by directory name, in the order in which they were added.

    Raises:
        RunDirectoryError: another process runs this sweep, or the directory is not a sweep's.
    """

    path: Path
    command: str
    arguments: Sequence[str]
    jobs: dict[str, Job] = field(default_factory=dict)

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
            earlier = read_sweep(self.path).get("config_hash_version") != HASH_VERSION
            for job in stored_jobs(self.path):
                self.jobs[job.directory] = _hashed_anew(job, self.path) if earlier else job
        self.stop_file.unlink(missing_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop_file.unlink(missing_ok=True)
        self._lock.release()

    @property
    def shown(self) -> Path:
        """The path as the user would type it."""
        return self.path.relative_to(Path.cwd()) if self.path.is_relative_to(Path.cwd()) else self.path

    @property
    def stop_file(self) -> Path:
        return self.path / ".stop"

    def find(self, identity: str) -> Job | None:
        """The job that computes this."""
        return next((job for job in self.jobs.values() if job.id == identity), None)

    def find_composed_from(self, arguments: Iterable[str]) -> Job | None:
        """The job that the same overrides made when ``conf/`` was what it was then."""
        wanted = sorted(arguments)
        return next((job for job in self.jobs.values() if sorted(job.arguments) == wanted), None)

    def add(self, identity: str, overrides: Sequence[str], arguments: Sequence[str], title: str) -> Job:
        """A job with a directory name of its own.

        Args:
            title: its name where nothing distinguishes it.
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
        """Write ``sweep.json`` before the directories of the new jobs are there.

        Args:
            known: names of the jobs that are not new.
        """
        waiting = JobStatus(Status.WAITING)
        self.write({name: self.job_status(job) if name in known else waiting for name, job in self.jobs.items()})

    def write(self, statuses: Mapping[str, JobStatus]) -> None:
        """Write ``sweep.json``.

        Args:
            statuses: of every job, by directory name.
        """
        content = {
            "command": self.command,
            "arguments": list(self.arguments),
            "config_hash_version": HASH_VERSION,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            "jobs": [{**asdict(job), **asdict(statuses[name])} for name, job in self.jobs.items()],
        }
        write_atomically(self.path / "sweep.json", json.dumps(content, indent=2).encode() + b"\n")


def read_sweep(path: Path) -> dict[str, Any]:
    """``sweep.json`` of a sweep directory.

    Raises:
        RunDirectoryError: it is missing or damaged.
    """
    try:
        with open_file(path / "sweep.json", "r") as file:
            sweep = json.load(file)
        sweep["jobs"], sweep["arguments"]
    except FileNotFoundError as error:
        if (path / "run.json").is_file():
            raise RunDirectoryError(f"{path} holds a run, not a sweep; continue it: {resume_command(path)}") from error
        raise RunDirectoryError(f"{path} is not a sweep directory: it has no sweep.json") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunDirectoryError(f"{path / 'sweep.json'} cannot be read: {error}") from error
    if not isinstance(sweep["jobs"], list) or not isinstance(sweep["arguments"], list):
        raise RunDirectoryError(f"{path / 'sweep.json'} cannot be read: jobs and arguments are lists")
    assert isinstance(sweep, dict)
    return sweep


def stored_jobs(path: Path) -> list[Job]:
    """The jobs in ``sweep.json``, each in a directory of its own directly below ``path``.

    Raises:
        RunDirectoryError: the file is missing or damaged, or a job's directory is no plain name.
    """
    jobs = []
    for number, row in enumerate(read_sweep(path)["jobs"]):
        where = f"{path / 'sweep.json'}: job {number}"
        try:
            job = Job(row["directory"], row["id"], tuple(row["overrides"]), tuple(row["arguments"]))
        except (KeyError, TypeError) as error:
            raise RunDirectoryError(f"{where} is not described as a job") from error
        if not all(isinstance(word, str) for word in (job.directory, job.id, *job.overrides, *job.arguments)):
            raise RunDirectoryError(f"{where} is not described as a job")
        if not re.fullmatch(PLAIN_NAME, job.directory):
            raise RunDirectoryError(
                f"{where}: directory {job.directory!r} is no plain name; jobs lie directly in {path}"
            )
        jobs.append(job)
    return jobs


def _hashed_anew(job: Job, path: Path) -> Job:
    """A job of an earlier version of the hash with the identity that it has today."""
    try:
        now = config_hash(read_config(path / job.directory))
    except RunDirectoryError:  # it has no run yet, or a damaged one: its overrides still tell which job it is
        return job
    _, dash, unhashed = job.id.partition("-")
    return replace(job, id=f"{now}{dash}{unhashed}")


def ask_to_stop(stop_file: Path, number: int | None = None) -> None:
    """Make ``.stop``.

    Args:
        number: of the signal that stops the sweep; None: it is stopped by a failure.
    """
    with open_file(stop_file, "w") as file:
        file.write("" if number is None else str(int(number)))


def read_job_status(path: Path) -> JobStatus:
    """The status of the run in this directory; damaged or missing is failed."""
    try:
        record = read_record(path)
        status = record.status
        if status == Status.RUNNING and not is_locked(path):
            record = read_record(path)  # it may have ended between the two looks
            status = Status.KILLED if record.status == Status.RUNNING else record.status
    except RunDirectoryError as problem:
        return JobStatus(Status.FAILED, str(problem))
    final = record.final or {}
    error = record.error or ("its process is gone" if status == Status.KILLED else None)
    seconds = record.seconds.get("total")
    return JobStatus(
        status, error, final.get("val_accuracy"), final.get("test_accuracy"), seconds, final.get("val_loss")
    )


def job_id(config: Config, overrides: Iterable[str]) -> str:
    """What identifies a job: the hash of its resolved configuration.

    Args:
        overrides: those that distinguish the job. Threads, device and the like change no result, and the folder of the
            data is not told apart by its name, yet who sweeps over them wants a run for each.
    """

    def is_left_out(override: str) -> bool:
        key = override.lstrip("+").partition("=")[0]
        return any(key == left_out or key.startswith(f"{left_out}.") for left_out in NOT_HASHED)

    unhashed = sorted(filter(is_left_out, overrides))
    digest = hashlib.sha256("\n".join(unhashed).encode()).hexdigest()[:4]
    return config_hash(config) + (f"-{digest}" if unhashed else "")


def directory_name(overrides: Iterable[str], identity: str) -> str:
    """A file name for a job: short keys and values, sorted, safe on every file system.

    The identity's first digits are added where characters had to be replaced or left out, so that [1,2] and [12] or two
    long values stay two names.
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
