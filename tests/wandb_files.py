"""Reads the file that a W&B run writes to disk."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb

from mnist_exp.loggers.wandb_file import records


@dataclass
class RunFile:
    """The contents of one file."""

    id: str = ""
    project: str = ""
    name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    x_axes: dict[str, str] = field(default_factory=dict)  # the metric against which a metric is drawn
    artifact_files: list[str] = field(default_factory=list)
    exit_code: int | None = None


def read_run(directory: Path) -> RunFile:
    """The one W&B file below a run directory. Ends this process's W&B session, which writes in the background."""
    wandb.teardown()
    (path,) = directory.glob("wandb/*run-*/run-*.wandb")
    return read_file(path)


def read_file(path: Path) -> RunFile:
    """Read a complete file, or the complete records of a truncated one."""
    run = RunFile()
    for record in records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.project = record.run.run_id, record.run.project
            run.name, run.group = record.run.display_name, record.run.run_group
            run.tags = list(record.run.tags)
            run.config.update({item.key: json.loads(item.value_json) for item in record.run.config.update})
        elif kind == "history":
            run.history.append(_values(record.history.item))
        elif kind == "summary":
            run.summary.update(_values(record.summary.update))
        elif kind == "metric":
            run.x_axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            run.artifact_files = [entry.path for entry in record.artifact.manifest.contents]
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    run.config.pop("_wandb", None)
    return run


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
