"""Read run directories, whatever the status of the run."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from mnist_exp.config import Config, check
from mnist_exp.errors import UsageError, explain_validation
from mnist_exp.plain import load_yaml
from mnist_exp.runs.files import LARGEST, LARGEST_TEXT, RunDirectoryError, open_file, read_file
from mnist_exp.runs.locking import is_locked
from mnist_exp.runs.record import FIGURES, Metrics, RunRecord, Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Targets of earlier versions, and their names now.
RENAMED = {"mnist_exp.training.step": "mnist_exp.training.step_decay"}

METRICS: TypeAdapter[dict[str, Any]] = TypeAdapter(Metrics)


@dataclass(frozen=True)
class Run:
    """The content of one run directory.

    Attributes:
        status: as recorded, but killed if the record has running and no process holds the lock.
        metrics: the lines of ``metrics.jsonl``.
    """

    path: Path
    status: Status
    record: RunRecord
    config: Config
    metrics: list[dict[str, Any]]

    @property
    def whole_config(self) -> Config:
        """The configuration with size and normalisation of the images, where it leaves them to the data."""
        return self.config.with_image_properties(self.record.preparation)

    @property
    def extra(self) -> dict[str, float]:
        """The finite metrics that callbacks recorded for the last epoch, by name."""
        last = self.record.final or (self.metrics[-1] if self.metrics else {})
        return {
            name: float(value)
            for name, value in last.items()
            if name not in FIGURES and isinstance(value, int | float) and math.isfinite(value)
        }


def read_run(path: str | Path) -> Run:
    """Read one run directory.

    Raises:
        RunDirectoryError: it is missing, damaged, or not a run directory of this project.
    """
    path = Path(path)
    record = read_record(path)
    status = record.status
    if status == Status.RUNNING and not is_locked(path):
        status = Status.KILLED
    return Run(path, status, record, read_config(path), read_metrics(path))


def find_runs(path: str | Path) -> Iterator[Path]:
    """Yield ``path`` if it is a run directory, else the run directories in it at any depth.

    Raises:
        RunDirectoryError: ``path`` is no directory.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunDirectoryError(explain_no_run(path))
    if (path / "run.json").is_file():
        yield path
        return
    yield from sorted(file.parent for file in path.rglob("run.json"))


def explain_no_run(path: Path) -> str:
    """Why a path without ``run.json`` is no run directory, and which one was probably meant."""
    if inside := next((parent for parent in path.absolute().parents if (parent / "run.json").is_file()), None):
        shown = inside if path.is_absolute() else os.path.relpath(inside)
        return f"{path} is inside a run directory; type that one instead: {shown}"
    if not path.is_dir():
        return f"{path} is not a directory"
    if (path / "sweep.json").is_file():
        first = next((file.parent for file in sorted(path.glob("*/run.json"))), path / "NAME")
        return f"{path} is the directory of a sweep; type one of its runs, such as {first}"
    return f"{path} is not a run directory: it has no run.json"


def read_record(path: Path) -> RunRecord:
    """``run.json`` of a run directory.

    Raises:
        RunDirectoryError: it is missing, not a record of this project, or a value has the wrong type.
    """
    try:
        content = read_file(path / "run.json", LARGEST_TEXT)
        record = from_json(content)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunDirectoryError(explain_no_run(path)) from error
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path / 'run.json'} cannot be read: {error}") from error
    if not isinstance(record, dict) or "status" not in record or "config_hash" not in record:
        raise RunDirectoryError(f"{path} holds a run of another project: run.json has no status and config_hash")
    try:
        return RunRecord.model_validate_json(content)
    except ValidationError as error:
        mistakes = explain_validation(error, record, typed_by_user=False)
        lines = (f"{path / 'run.json'}: {line}" for line in mistakes)
        raise RunDirectoryError("\n".join(lines)) from error


def read_config(path: Path) -> Config:
    """``config.yaml`` of a run directory.

    Raises:
        RunDirectoryError: it is missing or damaged, no configuration of this project, or not plain data.
    """
    file = path / "config.yaml"
    try:
        tree = load_yaml(read_file(file, LARGEST_TEXT))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{file} cannot be read: {error}") from error
    if not isinstance(tree, dict) or not {"data", "model", "trainer"} <= tree.keys():
        raise RunDirectoryError(f"{file} is not the configuration of a run of this project")
    for section in tree.values():
        if isinstance(section, dict) and isinstance(target := section.get("_target_"), str):
            section["_target_"] = RENAMED.get(target, target)
    try:
        return check(tree)
    except UsageError as error:
        raise RunDirectoryError("\n".join(f"{file}: {line}" for line in str(error).splitlines())) from error


def read_overrides(path: Path) -> list[str]:
    """``overrides.yaml`` of a run directory: the overrides as typed; none if the file is missing.

    Raises:
        RunDirectoryError: it is damaged, or no list of texts.
    """
    file = path / "overrides.yaml"
    try:
        content = load_yaml(read_file(file, LARGEST_TEXT))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, list) or not all(isinstance(word, str) for word in content):
        raise RunDirectoryError(f"{file} should be a list of overrides")
    return content


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, without a last line that is incomplete.

    Raises:
        RunDirectoryError: a complete line is no line of metrics.
    """
    file = path / "metrics.jsonl"
    try:
        lines = read_file(file, LARGEST_TEXT).splitlines()
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise RunDirectoryError(f"{file} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = METRICS.validate_python(from_json(line))  # unlike json, one string for each name in all files
        except ValueError as error:  # pydantic's ValidationError is one
            if number == len(lines) and not line.endswith(b"}"):
                break
            raise RunDirectoryError(f"{file}, line {number}: not a metrics line") from error
        rows.append(row)
    return rows


def read_predictions(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays in ``predictions.npz`` of a run directory.

    Raises:
        FileNotFoundError: there is none.
        RunDirectoryError: it is damaged, or holds objects, or more than ``LARGEST`` bytes.
    """
    import numpy as np

    file = path / "predictions.npz"
    try:
        # Opened here, because numpy does not close a file that it cannot read.
        with open_file(file) as stream:
            with zipfile.ZipFile(stream) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                    raise ValueError(f"more than {LARGEST} bytes, decompressed")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    except (FileNotFoundError, RunDirectoryError):
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many types for a damaged archive
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunDirectoryError(f"{file} cannot be read: {reason}") from error
