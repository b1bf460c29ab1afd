"""The project on Weights & Biases to which runs and reports are sent.

Only what the user types, configures or has in the environment decides it, never a run directory, which may be another person's.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

PROJECT = "mnist-exp"  # as in conf/logger/wandb.yaml


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
