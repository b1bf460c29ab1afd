"""The record of a sweep, ``sweep.json``, and of its jobs: typed, and read back."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from mnist_exp.errors import explain_validation, printable
from mnist_exp.runs.directory import resume_command
from mnist_exp.runs.files import LARGEST_TEXT, RunDirectoryError, read_file
from mnist_exp.runs.locking import is_locked
from mnist_exp.runs.names import SEPARATOR
from mnist_exp.runs.reading import read_record
from mnist_exp.runs.record import Status


def _check_folder_name(name: str) -> str:
    if not re.fullmatch(r"[^./\\:\x00-\x1f][^/\\:\x00-\x1f]*", name):
        raise ValueError("should be the name of a folder in the sweep directory: no path, not hidden")
    return name


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        directory: name of its run directory in the sweep directory.
        id: hash of what it computes; jobs are matched by it.
        overrides: those that differ between the jobs of the sweep.
        arguments: all its overrides, those that all jobs share included.
        arm: label of the jobs with the same settings and any seed; sweeps of earlier versions have none.
    """

    directory: Annotated[str, AfterValidator(_check_folder_name)]
    id: str
    overrides: tuple[str, ...]
    arguments: tuple[str, ...]
    arm: str = field(default="", kw_only=True)

    @property
    def label(self) -> str:
        """``lenet5 · lr 0.05 · seed 1``; without the seed if none was typed."""
        seeds = [word.partition("=")[2] for word in self.arguments if word.lstrip("+").startswith("seed=")]
        return SEPARATOR.join([self.arm or self.directory, *(f"seed {seed}" for seed in seeds[-1:])])


@dataclass(frozen=True)
class JobStatus:
    """The status of a job, read from its run directory.

    Attributes:
        status: of the run; killed if the record says running and no process has locked the directory.
        error: why the run did not complete; None if it did, or is not over.
        val_accuracy, test_accuracy: of the result, fractions; None without a result.
        seconds: total, the parts before each resume included.
        val_loss: of the result, in nats.
    """

    status: Status
    error: str | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    seconds: float | None = None
    val_loss: float | None = None


@dataclass(frozen=True)
class JobRecord(JobStatus, Job):
    """A job in ``sweep.json``, with its status when the file was written."""

    @property
    def job(self) -> Job:
        return Job(self.directory, self.id, self.overrides, self.arguments, arm=self.arm)


@dataclass(frozen=True)
class Until:
    """How a sweep adds seeds, see ``sweep.until`` in ``conf/train.yaml``.

    Attributes:
        points: a difference is known if its interval is at most plus or minus so many percentage points.
        max_seeds: of each arm.
        first: number of seeds at the first look.
        planned: ``max_seeds`` of the first command; the levels of the looks follow from it, whatever is asked for later.
    """

    points: Annotated[float, Field(gt=0, le=100)]
    max_seeds: Annotated[int, Field(ge=3, le=1000)]
    first: Annotated[int, Field(ge=3, le=1000)]
    planned: Annotated[int, Field(ge=3, le=1000)]


@dataclass(frozen=True)
class SweepRecord:
    """The content of ``sweep.json``. Keys of later versions are ignored.

    Attributes:
        command: as typed in a shell.
        arguments: the words of the command, without the program's name.
        updated: when the file was written, ISO 8601 in UTC.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, allow_inf_nan=False)

    command: str
    arguments: tuple[str, ...]
    updated: str
    jobs: tuple[JobRecord, ...]
    config_hash_version: int = 1  # the first version did not write it
    until: Until | None = None  # of a sweep that adds seeds


RECORD = TypeAdapter(SweepRecord)


def read_sweep(path: Path) -> SweepRecord:
    """Read ``sweep.json`` of a sweep directory.

    Raises:
        RunDirectoryError: it is missing or damaged, a value in it has a wrong type, or a job's directory is not the name
            of a folder in ``path``.
    """
    file = path / "sweep.json"
    try:
        content = read_file(file, LARGEST_TEXT)
        tree = from_json(content)
    except FileNotFoundError as error:
        if (path / "run.json").is_file():
            raise RunDirectoryError(f"{path} holds a run, not a sweep; continue it: {resume_command(path)}") from error
        raise RunDirectoryError(f"{path} is not a sweep directory: it has no sweep.json") from error
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{file} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise RunDirectoryError(f"{file} cannot be read: it should be a JSON object")
    try:
        return RECORD.validate_json(content)
    except ValidationError as error:
        first, *others = explain_validation(error, tree, typed_by_user=False)
        more = f" (and {len(others)} more)" if others else ""
        raise RunDirectoryError(f"{file}: {printable(first)}{more}") from error


def read_job_status(path: Path) -> JobStatus:
    """Read the status of the run in this directory; failed if ``run.json`` is damaged or missing."""
    try:
        record = read_record(path)
        status = record.status
        if status == Status.RUNNING and not is_locked(path):
            record = read_record(path)  # it may have ended since the first reading
            status = Status.KILLED if record.status == Status.RUNNING else record.status
    except RunDirectoryError as problem:
        return JobStatus(Status.FAILED, str(problem))
    final = record.final or {}
    error = record.error or ("its process ended without recording why" if status == Status.KILLED else None)
    seconds = record.seconds.get("total")
    return JobStatus(
        status, error, final.get("val_accuracy"), final.get("test_accuracy"), seconds, final.get("val_loss")
    )
