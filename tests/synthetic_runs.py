"""Run directories like those of training, without the training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mnist_exp.config import check
from mnist_exp.hashing import HASH_VERSION, config_hash

GIT = {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False}
VERSIONS = {"python": "3.11.2", "mnist-exp": "0.1.0", "torch": "2.15.0", "wandb": None}
HARDWARE = {"machine": "x86_64", "system": "Linux", "cpu": "A processor", "cores": 2}


def write_run(
    path: Path,
    tree: Mapping[str, Any],
    *,
    seed: int = 0,
    accuracy: float = 0.9,
    epochs: int = 3,
    images: int = 1000,
    classes: int = 10,
    status: str = "completed",
    error: str | None = None,
    predictions: bool = True,
    val_accuracy: float | None = None,
    overrides: Sequence[str] = (),
    **record: Any,
) -> Path:
    """A run whose final test accuracy is ``accuracy``, exact to one image.

    The wrong images depend partly on the seed: the difficulty of image i comes from a fixed random permutation and is
    perturbed by the seed. Labels are i modulo ``classes``. ``val_accuracy``: of the result; None: no validation split.
    ``trainer.evaluate_test`` is respected.
    """
    path.mkdir(parents=True)
    tested = tree["trainer"].get("evaluate_test", "every")
    tree = {**tree, "seed": seed}
    random = np.random.default_rng([seed, 7])
    rows = [
        {
            "epoch": epoch, "images_seen": 4000 * epoch, "train_loss": 1 / epoch, "train_accuracy": 0.8,
            "test_loss": 0.5 + 0.5 / epoch, "test_accuracy": accuracy - 0.1 * (1 - epoch / epochs),
            "learning_rate": 0.01, "train_seconds": 2.0, "eval_seconds": 0.5, "images_per_second": 2000.0,
        }
        | ({} if val_accuracy is None else {"val_loss": 0.6, "val_accuracy": val_accuracy - 0.1 * (1 - epoch / epochs)})
        for epoch in range(1, epochs + 1)
    ]  # fmt: skip
    for row in rows:
        if tested == "never" or (tested == "last" and row["epoch"] < epochs):
            del row["test_loss"], row["test_accuracy"]
    content = {
        "status": status, "started": "2026-11-21T07:00:00+00:00", "name": tree["name"], "seed": seed,
        "config_hash": config_hash(check(tree)), "config_hash_version": HASH_VERSION, "command": f"mnist-train seed={seed}", "sweep": None, "git": GIT,
        "versions": VERSIONS, "hardware": HARDWARE, "parameters": 61_706, "macs": 416_520, "threads": 1,
        "device": "cpu", "error": error, "seconds": {"train": 2.0 * epochs, "eval": 0.5 * epochs, "total": 9.0},
        "peak_memory_bytes": 300 * 2**20, **record,
    }  # fmt: skip
    if status == "completed":
        content["final"] = rows[-1]
        if predictions and tested != "never":
            _write_predictions(path, random, accuracy, images, classes)
    (path / "run.json").write_text(json.dumps(content))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    (path / "overrides.yaml").write_text(yaml.safe_dump([*overrides, f"seed={seed}", f"name={tree['name']}"]))
    return path


def _write_predictions(path: Path, random: np.random.Generator, accuracy: float, images: int, classes: int) -> None:
    labels = np.arange(images) % classes
    difficulty = np.random.default_rng(1).permutation(images) + 0.1 * images * random.random(images)
    wrong = difficulty.argsort()[::-1][: images - round(accuracy * images)]
    logits = random.normal(0, 0.5, (images, classes)).astype(np.float32)
    logits[np.arange(images), labels] += 5
    logits[wrong, labels[wrong]] -= 8
    worst = wrong[:100]
    pixels = np.zeros((len(worst), 28, 28), dtype=np.uint8)
    pixels[:, 4:24, 12:16] = 255
    np.savez(path / "predictions.npz", logits=logits, labels=labels, worst=worst, worst_images=pixels)
