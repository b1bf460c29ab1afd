"""Evaluate a trained network: the run directory is all it takes.

With the run's own data the result equals what the run recorded, bit for bit on the same machine.
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
from mnist_exp.stored import changed, describe_data, found_again, parse
from mnist_exp.trust import check_target_types

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table

MOST_COLUMNS = 12  # classes of a confusion matrix in a terminal
EVALUATION, PICTURE = "evaluation.json", "worst_digits.png"


def _names_folder(overrides: Sequence[str]) -> bool:
    """Whether the command itself says where the data lie, so that absent ones may be fetched there."""
    return any(word.lstrip("+").startswith(("data=", "data.root=")) for word in overrides)


def evaluate_run(
    path: str | Path, overrides: Sequence[str], trusted: Collection[str] = ()
) -> tuple[dict[str, Any], Image]:
    """Test loss, accuracy, per-class accuracy and confusion matrix of the run in ``path``, and its worst digits.

    Writes nothing.

    Args:
        overrides: of the data; none means the run's own.
        trusted: packages whose code may run besides ours.

    Raises:
        UsageError, RunDirectoryError: no trained run there, or data that cannot be.
    """
    run = read_run(path)
    config = data_to_evaluate(run, overrides)
    data, own = config.data, run.whole_config.data

    import torch

    from mnist_exp import experiment, native
    from mnist_exp.components import build_data, build_objective
    from mnist_exp.device import choose_device, prepare_torch
    from mnist_exp.pictures import worst_digits
    from mnist_exp.reader import trained_model
    from mnist_exp.training import evaluate, score

    check_target_types(config.model_copy(update={"callbacks": {}}), trusted)  # which are not made here
    device = choose_device(config.trainer.device)
    prepare_torch(config.trainer, device, run.record.threads)
    try:
        dataset = build_data(data, may_download=_names_folder(overrides))
    except UsageError as error:
        hint = (
            ""
            if overrides or not own.folder
            else f"; where they lie now: {shlex.join(['mnist-eval', str(path), 'data.root=FOLDER'])}"
        )
        raise UsageError(f"{error}{hint}") from error
    images, labels = dataset.test.images.to(device), dataset.test.labels
    model, state = trained_model(run, device, trusted)
    bfloat16 = config.trainer.precision == "bfloat16"
    logits = evaluate(model, images, config.trainer.eval_batch_size, bfloat16=bfloat16)
    loss, accuracy = score(logits, labels, build_objective(config, model))
    classes = logits.shape[1]
    confusion = torch.bincount(labels * classes + logits.argmax(dim=1), minlength=classes**2)
    matrix = confusion.reshape(classes, classes)
    digest = run.record.data_digest
    same_data = None if digest is None else digest == dataset.digest
    prepared_alike = all(
        getattr(data, key) == getattr(own, key) for key in ("image_size", "mean", "std", "swap_splits")
    )
    comparable = prepared_alike and (same_data or (same_data is None and not overrides))
    recorded = next((row for row in run.metrics if row["epoch"] == state["epoch"]), None) if comparable else None
    result: dict[str, Any] = {
        "directory": str(path),
        "status": run.status,
        "epoch": state["epoch"] + (1 if state["step"] else 0),
        "data": f"{'training' if data.swap_splits else 'test'} digits of {describe_data(data)}",
        "data_digest": dataset.digest,
        "same_data": same_data,
        "images": len(labels),
        "test_loss": loss,
        "test_accuracy": accuracy,
        "per_class_accuracy": [int(row[label]) / max(int(row.sum()), 1) for label, row in enumerate(matrix)],
        "confusion": matrix.tolist(),
        "matches_record": None
        if recorded is None or state["step"] or native.attached(model) != (run.record.backend == "native")
        # Another device or number of threads rounds differently.
        else accuracy == recorded["test_accuracy"] and math.isclose(loss, recorded["test_loss"], rel_tol=1e-6),
    }
    arrays = experiment.predictions(logits, dataset)
    return result, worst_digits(arrays["logits"], arrays["labels"], arrays["worst"], arrays["worst_images"])


def write_result(result: Mapping[str, Any], picture: Image, output: Path) -> list[Path]:
    """Write ``evaluation.json`` and ``worst_digits.png``, and return their paths.

    Raises:
        OSError: they cannot be written.
        RunDirectoryError: one of them is a link.
    """
    output.mkdir(parents=True, exist_ok=True)
    files = [output / EVALUATION, output / PICTURE]
    for file in files:
        exists(file)  # refuses a link before anything is written
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_atomically(files[0], json.dumps(result, indent=2).encode() + b"\n")
    write_atomically(files[1], buffer.getvalue())
    return files


def data_to_evaluate(run: Run, overrides: Sequence[str]) -> Config:
    """The configuration of the run with the data to evaluate.

    Without a choice (``data=NAME``) they are those of the section that the run stored, with the overrides on top. Data that are
    chosen are prepared as the run's: the size and the normalisation that the network knows.

    Raises:
        UsageError: an override that is not of the data, that changes nothing here, or that Hydra refuses.
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
            raise UsageError(f"{idle[0]}: it selects training digits; an evaluation takes all test digits")
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
        used = found_again(used)
    elif used.folder:
        used = used.in_folder(str(Path(used.folder).expanduser().absolute()))
    # Training digits are not looked at.
    return config.with_data(used.model_copy(update={"val_size": 0, "limit": None}))


def _composed(own: Data | OwnData, overrides: Sequence[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir

    # Numbers and lists of them, as the check of the stored configuration saw to: nothing else of it reaches Hydra's command line.
    kept = [
        f"data.{key}={as_typed(getattr(own, key))}" for key in ("image_size", "mean", "std", "channels", "num_classes")
    ]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return dict(resolve(compose("train", overrides=[*kept, "name=evaluation", *overrides]))["data"])


def print_result(result: dict[str, Any]) -> None:
    """Tables for people: the figures, then the confusion matrix with true classes as rows, or a row for each class."""
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
    """A row for each class, where there are too many for a matrix that can be read."""
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
