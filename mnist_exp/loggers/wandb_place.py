"""The project on Weights & Biases to which runs and reports are sent.

Only what the user types, configures or has in the environment decides it, never a run directory, which may be another person's.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from mnist_exp.config import Wandb
from mnist_exp.runs.reading import read_config, read_record

PROJECT: str = Wandb.model_fields["project"].default


def allowed_place(typed: str | None) -> tuple[str | None, str]:
    """The entity (None: the account's default) and the project to which runs and reports may be sent.

    Args:
        typed: PROJECT or ENTITY/PROJECT; None: WANDB_ENTITY and WANDB_PROJECT, else mnist-exp.
    """
    entity, _, project = (typed or os.environ.get("WANDB_PROJECT") or PROJECT).rpartition("/")
    return entity or os.environ.get("WANDB_ENTITY") or None, project


def sync_command(directory: Path, project: str, entity: str | None, *, files: bool = False) -> str:
    """The command that uploads what W&B does not have of the runs in ``directory``.

    Args:
        files: the runs have artifacts.
    """
    here = Path.cwd()
    shown = directory.relative_to(here) if directory != here and directory.is_relative_to(here) else directory
    place = f"{entity}/{project}" if entity else project
    words = ["mnist-report", str(shown), "--wandb-sync"]
    words += ["--wandb-project", place] if place != PROJECT else []
    words += ["--wandb-files"] if files else []
    return shlex.join(words)


def upload_hint(folder: Path, names: Iterable[str], shown: Path) -> str | None:
    """Where the runs of a sweep are on W&B, or how to upload those that are not; None if none was logged.

    Args:
        folder: of the sweep. names: of its run directories.
        shown: ``folder`` as the user types it.
    """
    address = None
    for name in names:
        files = list((folder / name).glob("wandb/*run-*/run-*.wandb"))
        if any(not file.with_suffix(".wandb.synced").exists() for file in files):
            logger = read_config(folder / name).logger
            if isinstance(logger, Wandb):
                has_files = logger.upload_files or logger.save_code
                return f"to upload: {sync_command(shown, logger.project, logger.entity, files=has_files)}"
        if files and address is None:
            recorded = read_record(folder / name).wandb
            address = recorded.url.rpartition("/runs/")[0] if recorded and recorded.url else None
    return address
