"""Media and files of a run for W&B, and the mark of uploaded files."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.loggers.wandb_private import server_refused_rows
from mnist_exp.runs.reading import read_predictions

if TYPE_CHECKING:
    import wandb


def errors_as_media(directory: Path) -> dict[str, Any]:
    """The confusion matrix and the worst test images as W&B images by name; empty without predictions."""
    import wandb

    from mnist_exp.pictures import confusion_matrix, worst_digits

    try:
        arrays = read_predictions(directory)
    except FileNotFoundError:
        return {}
    media = {"confusion_matrix": wandb.Image(confusion_matrix(arrays["logits"], arrays["labels"]))}
    if "worst" in arrays:
        media["worst_digits"] = wandb.Image(
            worst_digits(arrays["logits"], arrays["labels"], arrays["worst"], arrays["worst_images"])
        )
    return media


def files_as_artifact(directory: Path, run_id: str) -> wandb.Artifact:
    """The files of the run directory, without W&B's own."""
    import wandb

    artifact = wandb.Artifact(f"run-{run_id}", type="run")
    for file in sorted(directory.rglob("*")):
        relative = file.relative_to(directory)
        # No links, which could point to any file of the user, and no pipes.
        if stat.S_ISREG(file.lstat().st_mode) and relative.parts[0] not in {"wandb", ".wandb"}:
            artifact.add_file(str(file), name=relative.as_posix(), skip_cache=True)
    return artifact


def mark_uploaded(part: Path) -> None:
    """Mark the files of an online run as uploaded, so that they are not uploaded again.

    Args:
        part: W&B's folder of the run.

    Raises:
        ConnectionError: the server refused rows.
    """
    if server_refused_rows(part):
        raise ConnectionError("the server refused rows of this run")
    for file in part.glob("run-*.wandb"):
        file.with_suffix(".wandb.synced").touch()
