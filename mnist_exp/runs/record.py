"""The schema of ``run.json``: status, origin and result of a run."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mnist_exp.config import ImageProperties


class Status(StrEnum):
    """The state of a run."""

    WAITING = "waiting"  # stored, not started
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    DIVERGED = "diverged"
    INTERRUPTED = "interrupted"
    PRUNED = "pruned"  # ended by a search, because it was worse than others
    KILLED = "killed"  # never recorded: the record has running, and no process holds the lock


NOT_RESUMABLE = frozenset({Status.COMPLETED, Status.DIVERGED})  # a diverged run would diverge again
SETTLED = NOT_RESUMABLE | {Status.PRUNED}  # a sweep does not run these again
FAILED = frozenset({Status.FAILED, Status.DIVERGED, Status.KILLED})

# Keys of a line of metrics.jsonl that training records; callbacks add others.
FIGURES = (
    *("epoch", "images_seen", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate"),
    *("train_seconds", "eval_seconds", "images_per_second", "val_loss", "val_accuracy"),
)


LARGEST_FLOAT = sys.float_info.max


def _check_metrics(row: dict[str, Any]) -> dict[str, Any]:
    for name, value in row.items():
        # A comparison is false for NaN, and possible for an integer that is too large for a float.
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_FLOAT
        if not is_number and (value is not None or name in FIGURES):  # a callback's infinite value is stored as null
            raise ValueError(f"{name}={value} should be a finite number")
        if name.endswith("_accuracy") and name in FIGURES and not 0 <= value <= 1:
            raise ValueError(f"{name}={value} should be a fraction")
    if not isinstance(row.get("epoch"), int) or row["epoch"] < 1:
        raise ValueError("it has no epoch")
    return row


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("should hold no control characters")
    return text


# A line of metrics.jsonl: finite numbers by name; accuracies are fractions. Null for a callback's value that is not finite.
Metrics = Annotated[dict[str, Any], AfterValidator(_check_metrics)]
Printable = Annotated[str, AfterValidator(_check_printable)]
Number = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """A part of the record; unknown keys, of later versions, are kept."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)


class Git(Part):
    """The commit of the code, and whether tracked files differed from it."""

    commit: Printable
    dirty: bool = False


class Hardware(Part):
    """The machine."""

    machine: Printable | None = None
    system: Printable | None = None
    cpu: Printable | None = None
    cores: Number | None = None


class WandbRun(Part):
    """The run on Weights & Biases."""

    mode: str | None = None
    id: str | None = None
    project: str | None = None
    entity: str | None = None
    url: str | None = None
    arm: str | None = None  # its name in W&B's configuration
    sweep: str | None = None  # of the W&B server


class SearchTrial(Part):
    """The trial of a search: ``trial`` is its number in the study."""

    trial: int
    study: str
    startup_trials: Number


class RunRecord(Part):
    """The content of ``run.json``. Only ``status`` and ``config_hash`` exist in every version."""

    status: Status
    config_hash: Printable
    config_hash_version: int = 1
    name: Printable | None = None
    seed: Number | None = None
    command: str | None = None
    sweep: Printable | None = None
    arm: Printable | None = None  # of a job of a sweep: the label of its arm when it was stored
    started: Printable | None = None
    resumed: list[Printable] = []
    continued: list[dict[str, Any]] = []
    ended: Printable | None = None
    error: str | None = None
    git: Git | None = None
    versions: dict[str, Printable | None] = {}
    hardware: Hardware | None = None
    process: dict[str, Any] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    device: Printable | None = None
    backend: Printable | None = None
    data_digest: Printable | None = None
    preparation: ImageProperties | None = None
    init_from: dict[str, Any] | None = None
    search: SearchTrial | None = None
    wandb: WandbRun | None = None
    parameters: Number | None = None
    macs: Number | None = None
    seconds: dict[str, float] = {}
    peak_memory_bytes: Number | None = None
    peak_gpu_memory_bytes: Number | None = None
    final: Metrics | None = None
    best: dict[str, Any] | None = None

    def with_fields(self, **fields: Any) -> RunRecord:
        """A checked copy with other fields.

        Raises:
            ValidationError: a field has the wrong type.
        """
        return RunRecord.model_validate({**self.model_dump(exclude_unset=True), **fields})
