"""Reading finished, running and broken runs back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_exp.config import Config
from mnist_exp.runs.directory import explain_no_run, is_locked, read_config, read_metrics, read_record
from mnist_exp.runs.files import RunDirectoryError
from mnist_exp.runs.record import FIGURES, RunRecord, Status


@dataclass(frozen=True)
class Run:
    """What one run directory says.

    Attributes:
        status: waiting, running, completed, failed, diverged, interrupted, pruned; or killed, when the record says running
            and no process holds the directory.
    """

    path: Path
    status: Status
    record: RunRecord
    config: Config
    metrics: list[dict[str, Any]]

    @property
    def whole_config(self) -> Config:
        """The configuration with what the run found of its images, where it leaves that to the data."""
        return self.config.with_found(self.record.preparation)

    @property
    def extra(self) -> dict[str, float]:
        """What callbacks recorded at the end, by name: finite numbers only. Of a run that is not completed, how far it got."""
        last = self.record.final or (self.metrics[-1] if self.metrics else {})
        return {
            name: float(value)
            for name, value in last.items()
            if name not in FIGURES and isinstance(value, int | float) and math.isfinite(value)
        }


def read_run(path: str | Path) -> Run:
    """Read one run directory.

    Raises:
        RunDirectoryError: it is missing, damaged, or not one of ours.
    """
    path = Path(path)
    record = read_record(path)
    status = record.status
    if status == Status.RUNNING and not is_locked(path):
        status = Status.KILLED
    return Run(path, status, record, read_config(path), read_metrics(path))


def find_runs(path: str | Path) -> Iterator[Path]:
    """Run directories in ``path``: itself, or the folders below it at any depth.

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
