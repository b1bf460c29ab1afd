"""Evaluate the trained network of a run directory.

With the run's own data, on the same machine, loss and accuracy equal the recorded ones bit for bit.
"""

from __future__ import annotations

import io
import json
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException

from mnist_exp.compose import CONF, resolve
from mnist_exp.config import Config, Data, OwnData, check
from mnist_exp.errors import UsageError, as_typed
from mnist_exp.explain import explain_composition
from mnist_exp.runs import Run, read_run, write_atomically
from mnist_exp.runs.files import exists
from mnist_exp.stored import changed, describe_data, parse, with_existing_folder
from mnist_exp.torch_import import import_torch
from mnist_exp.trust import check_target_types

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table
    from torch import Tensor, nn

    from mnist_exp.data import Dataset

MOST_COLUMNS = 12  # with more classes a confusion matrix is too wide for a terminal
EVALUATION, PICTURE = "evaluation.json", "worst_digits.png"


def evaluate_run(
    path: str | Path, overrides: Sequence[str], trusted: Collection[str] = ()
) -> tuple[dict[str, Any], Image]:
    """Evaluate the network of the run in ``path`` on test images. Writes nothing.

    Args:
        overrides: of ``data``; none: the run's own data.
        trusted: packages whose code may run besides ours.

    Returns:
        the content of ``evaluation.json``: loss in nats, accuracy as a fraction, accuracy of each class, confusion matrix
        (rows are labels); and a picture of the images whose label got the least probability.

    Raises:
        UsageError, RunDirectoryError: there is no trained run, or the data are not possible.
    """
    run = read_run(path)
    config = data_to_evaluate(run, overrides)  # before torch is imported, because a mistake is likely here

    import_torch()
    from mnist_exp.components import build_objective
    from mnist_exp.device import choose_device, prepare_torch
    from mnist_exp.experiment import predictions
    from mnist_exp.pictures import worst_digits
    from mnist_exp.reader import trained_model
    from mnist_exp.training import evaluate, score

    check_target_types(config.model_copy(update={"callbacks": {}}), trusted)  # callbacks are not built here
    device = choose_device(config.trainer.device)
    prepare_torch(config.trainer, device, run.record.threads)
    dataset = _load_data(run, config, overrides)
    model, state = trained_model(run, device, trusted)
    bfloat16 = config.trainer.precision == "bfloat16"
    images = dataset.test.images.to(device)
    logits = evaluate(model, images, config.trainer.eval_batch_size, bfloat16=bfloat16)
    loss, accuracy = score(logits, dataset.test.labels, build_objective(config, model))
    digest = run.record.data_digest
    same_data = None if digest is None else digest == dataset.digest
    matrix = _confusion_matrix(logits, dataset.test.labels)
    result = {
        "directory": str(path),
        "status": run.status,
        "epoch": state["epoch"] + (1 if state["step"] else 0),
        "data": f"{'training' if config.data.swap_splits else 'test'} digits of {describe_data(config.data)}",
        "data_digest": dataset.digest,
        "same_data": same_data,
        "images": len(logits),
        "test_loss": loss,
        "test_accuracy": accuracy,
        "per_class_accuracy": [row[label] / max(sum(row), 1) for label, row in enumerate(matrix)],
        "confusion": matrix,
        "matches_record": None,
    }
    if _prepared_alike(run, config) and (same_data or (same_data is None and not overrides)):
        result["matches_record"] = _matches_record(run, model, state, loss, accuracy)
    arrays = predictions(logits, dataset)
    return result, worst_digits(arrays["logits"], arrays["labels"], arrays["worst"], arrays["worst_images"])


def _load_data(run: Run, config: Config, overrides: Sequence[str]) -> Dataset:
    from mnist_exp.components import build_data

    # Files may be downloaded only into a folder that the user typed, not into one that the run directory names.
    may_download = any(word.lstrip("+").startswith(("data=", "data.root=")) for word in overrides)
    try:
        return build_data(config.data, may_download=may_download)
    except UsageError as error:
        if overrides or not run.config.data.folder:
            raise
        command = shlex.join(["mnist-eval", str(run.path), "data.root=FOLDER"])
        raise UsageError(f"{error}; if the data are elsewhere: {command}") from error


def _confusion_matrix(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """Counts (C, C) of labels (rows) by predictions (columns), for logits (N, C) and labels (N,)."""
    import torch

    classes = logits.shape[1]
    counts = torch.bincount(labels * classes + logits.argmax(dim=1), minlength=classes**2)
    matrix: list[list[int]] = counts.reshape(classes, classes).tolist()
    return matrix


def _prepared_alike(run: Run, config: Config) -> bool:
    own = run.whole_config.data
    return all(getattr(config.data, key) == getattr(own, key) for key in ("image_size", "mean", "std", "swap_splits"))


def _matches_record(run: Run, model: nn.Module, state: Mapping[str, Any], loss: float, accuracy: float) -> bool | None:
    """Whether loss and accuracy equal those that the run recorded after this epoch; None if they cannot be compared.

    Args:
        state: the checkpoint. In the middle of an epoch nothing was recorded.
    """
    from mnist_exp import native

    rows = [*run.metrics, *([run.record.final] if run.record.final else [])]
    recorded = next((row for row in rows if row["epoch"] == state["epoch"] and "test_loss" in row), None)
    same_backend = native.attached(model) == (run.record.backend == "native")
    if recorded is None or state["step"] or not same_backend:
        return None
    # The loss is rounded differently on another device or with another number of threads.
    return bool(accuracy == recorded["test_accuracy"] and math.isclose(loss, recorded["test_loss"], rel_tol=1e-6))


def write_result(result: Mapping[str, Any], picture: Image, output: Path) -> list[Path]:
    """Write ``evaluation.json`` and ``worst_digits.png``, and return their paths.

    Raises:
        OSError: they cannot be written.
        RunDirectoryError: one of them is a link.
    """
    output.mkdir(parents=True, exist_ok=True)
    files = [output / EVALUATION, output / PICTURE]
    for file in files:
        exists(file)  # raises if it is a link, before anything is written
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_atomically(files[0], json.dumps(result, indent=2).encode() + b"\n")
    write_atomically(files[1], buffer.getvalue())
    return files


def data_to_evaluate(run: Run, overrides: Sequence[str]) -> Config:
    """The configuration of the run with the data to evaluate.

    Without ``data=NAME`` these are the stored data with the overrides applied. With it they are the chosen data, with the
    image size and the normalisation of the run.

    Raises:
        UsageError: an override is not of the data, has no effect here, or is refused by Hydra.
    """
    own = run.whole_config.data
    try:
        parsed = parse(overrides)
        if foreign := [override for override in parsed if override.key_or_group.partition(".")[0] != "data"]:
            raise UsageError(
                f"{foreign[0].input_line}: an evaluation can change data only, such as data=mnist5k or data.root=FOLDER"
            )
        keys = {override.key_or_group.partition(".")[2]: override.input_line for override in parsed}
        if idle := [line for key, line in keys.items() if key in {"val_size", "split_seed", "limit"}]:
            raise UsageError(f"{idle[0]}: it selects training digits; an evaluation uses all test digits")
        tree = run.whole_config.plain()
        data = _composed(own, overrides) if "" in keys else changed({"data": tree["data"]}, parsed)["data"]
    except HydraException as error:
        raise UsageError(explain_composition(error)) from error
    if (size := data["image_size"]) != own.image_size:
        raise UsageError(f"data.image_size={size}: the network takes images of {own.image_size} pixels; leave it out")
    for key in ("channels", "num_classes"):
        if data[key] != getattr(own, key):
            raise UsageError(f"data.{key}={data[key]}: the network was trained with {getattr(own, key)}; leave it out")
    config = check({**tree, "data": data})
    used = config.data
    if {"", "root"}.isdisjoint(keys):
        used = with_existing_folder(used)
    elif used.folder:
        used = used.in_folder(str(Path(used.folder).expanduser().absolute()))
    # Training images are not used.
    return config.with_data(used.model_copy(update={"val_size": 0, "limit": None}))


def _composed(own: Data | OwnData, overrides: Sequence[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir

    # Only numbers and lists of numbers, because the run directory may be a stranger's, and Hydra interprets text.
    kept = [
        f"data.{key}={as_typed(getattr(own, key))}" for key in ("image_size", "mean", "std", "channels", "num_classes")
    ]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return dict(resolve(compose("train", overrides=[*kept, "name=evaluation", *overrides]))["data"])


def print_result(result: dict[str, Any]) -> None:
    """Print loss and accuracy, then the confusion matrix, or a row for each class if there are many."""
    from rich.table import Table

    from mnist_exp.terminal import Terminal

    console = Terminal()
    matches = {None: "", True: ", as the run recorded it", False: ", which DIFFERS from what the run recorded"}
    console.print(
        f"{result['directory']}, epoch {result['epoch']}: test accuracy {result['test_accuracy']:.2%}, "
        f"test loss {result['test_loss']:.4f}, {result['images']:,} images{matches[result['matches_record']]}",
        markup=False,
    )
    console.print(f"data: {result['data']}, digest {result['data_digest']}", markup=False)
    if result["same_data"] is False:
        console.print("These are not the digits that the run was trained and tested on.")
    if len(result["confusion"]) > MOST_COLUMNS:
        console.print(_table_by_class(result))
        return
    table = Table(title="Confusion matrix: rows are labels, columns predictions")
    for heading in ("", *(str(label) for label in range(len(result["confusion"]))), "accuracy"):
        table.add_column(heading, justify="right")
    for label, counts in enumerate(result["confusion"]):
        shown = [f"[bold]{n}[/bold]" if n and column == label else str(n or "·") for column, n in enumerate(counts)]
        table.add_row(str(label), *shown, f"{result['per_class_accuracy'][label]:.2%}")
    console.print(table)


def _table_by_class(result: Mapping[str, Any]) -> Table:
    """A row for each class."""
    from rich.table import Table

    table = Table(title="Classes; the confusion matrix is in evaluation.json")
    for heading in ("label", "images", "accuracy"):
        table.add_column(heading, justify="right")
    table.add_column("most often taken for (images)")
    for label, counts in enumerate(result["confusion"]):
        wrong = sorted(
            ((n, column) for column, n in enumerate(counts) if n and column != label), key=lambda c: (-c[0], c[1])
        )
        taken_for = ", ".join(f"{column} ({n})" for n, column in wrong[:3])
        table.add_row(str(label), f"{sum(counts):,}", f"{result['per_class_accuracy'][label]:.2%}", taken_for)
    return table
