"""Reading finished, running and broken runs back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_exp.runs.directory import explain_no_run, is_locked, read_config, read_metrics, read_record
from mnist_exp.runs.files import RunDirectoryError


@dataclass(frozen=True)
class Run:
    """What one run directory says.

    Attributes:
        status: waiting, running, completed, failed, diverged, interrupted, pruned; or killed, when the record says running
            and no process holds the directory.
    """

    path: Path
    status: str
    record: dict[str, Any]
    config: dict[str, Any]
    metrics: list[dict[str, float | int]]


def read_run(path: str | Path) -> Run:
    """Read one run directory.

    Raises:
        RunDirectoryError: it is missing, damaged, or not one of ours.
    """
    path = Path(path)
    record = read_record(path)
    status = record["status"]
    if status == "running" and not is_locked(path):
        status = "killed"
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
