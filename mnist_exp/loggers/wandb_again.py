"""Log a run to Weights & Biases again, from its run directory.

If W&B's process dies in the middle of a run, as after a SIGTERM of Slurm to every process of a job, its file lacks rows; often it
has none. ``metrics.jsonl`` has every row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mnist_exp.loggers.wandb_file import records
from mnist_exp.runs.reading import read_metrics, read_overrides, read_record, read_run
from mnist_exp.runs.record import Status

SECONDS = 60.0  # the longest wait for the server


def is_incomplete(run: Path, files: Iterable[Path]) -> bool:
    """Whether W&B's files of a run lack an epoch, or the end of a completed run.

    Args:
        run: its directory.
        files: all of the run's, uploaded or not.

    Raises:
        RunDirectoryError: ``run.json`` or ``metrics.jsonl`` cannot be read.
        ValueError: one of ``files`` cannot.
    """
    found: set[Any] = set()
    kinds: set[str | None] = set()
    for file in files:
        for record in records(file.read_bytes()):
            kind = record.WhichOneof("record_type")
            kinds.add(kind)
            if kind == "history":
                found |= {item.value_json for item in record.history.item if "epoch" in (item.key, *item.nested_key)}
    return any(str(row["epoch"]) not in found for row in read_metrics(run)) or (
        read_record(run).status == Status.COMPLETED and "exit" not in kinds
    )


def log_again(path: Path, project: str, entity: str | None, *, files: bool) -> None:
    """Continue a run on W&B with what the server does not have of it.

    Args:
        path: of the run directory; nothing is written there.
        project, entity: where the run is to be sent; entity None is the account's default.
        files: with the files of the run, if its own settings ask for them; not with the code, which may have changed since.

    Raises:
        RunDirectoryError: the run directory cannot be read.
        ValueError: the server did not take everything.
    """
    from mnist_exp.config import Wandb
    from mnist_exp.loggers.wandb import WandbLogger
    from mnist_exp.runs.names import names_on_wandb
    from mnist_exp.training.events import TrainingEnded, TrainingStarted

    run = read_run(path)
    config, record, overrides = run.config, run.record, read_overrides(path)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", run_id := (record.wandb and record.wandb.id) or ""):
        raise ValueError(f"{path / 'run.json'}: {run_id!r} is no id of a W&B run")
    stored = config.logger if isinstance(config.logger, Wandb) else None
    label, arm = names_on_wandb(config, overrides, record)
    with TemporaryDirectory(prefix="sync-wandb-") as folder:
        logger = WandbLogger(
            directory=path,
            folder=Path(folder),
            label=label,
            arm=arm,
            config=config.plain(),
            parameters=record.parameters or 0,
            run_id=run_id,  # W&B leaves out rows that the server has
            sweep=record.sweep,
            project=project,
            entity=entity,
            mode="online",
            upload_files=files and stored is not None and stored.upload_files,
            timeout_seconds=SECONDS,
            **(stored.model_dump(include={"group", "job_type", "notes", "tags"}) if stored else {}),
        )
        logger.on_start(TrainingStarted(config.name, config.trainer.epochs, len(run.metrics) + 1, 0, 0))
        last = record.final or (run.metrics[-1] if run.metrics else {})
        logger.on_end(TrainingEnded(run.status.value, record.error, {"seconds": record.seconds.get("total"), **last}))
    if logger.problem:
        raise ValueError(logger.problem.partition("; ")[0])
