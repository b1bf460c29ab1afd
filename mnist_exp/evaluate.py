"""Evaluate a trained network: the run directory is all it takes.

    mnist-eval outputs/2026-11-21/lenet5-a1b2c3
    mnist-eval outputs/2026-11-21/lenet5-a1b2c3 data=fashion_mnist

With the run's own data the result equals what the run recorded, bit for bit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from mnist_exp.composition import CONF, resolve
from mnist_exp.config import authorize, check
from mnist_exp.explain import explain_composition
from mnist_exp.mistakes import ArgumentParser, UsageError, report
from mnist_exp.runs import Run, read_run, write_atomically


def main(arguments: Sequence[str] | None = None) -> None:
    """``mnist-eval``: exit status 2 for a user's mistake."""
    parser = ArgumentParser(
        prog="mnist-eval",
        example="mnist-eval DIR",
        description="Evaluate a trained network from its run directory alone.",
    )
    parser.add_argument("directory", metavar="DIR", help="run directory")
    parser.add_argument(
        "overrides", nargs="*", default=[], help="other data, as for mnist-train: data=mnist5k data.root=FOLDER"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--output", type=Path, help="folder for evaluation.json and worst_digits.png; default: the run directory"
    )
    options = parser.parse(arguments)
    # In any order: what changes the data cannot be the directory, unless there is one of that name.
    words = [options.directory, *options.overrides]
    named = [word for word in words if not _is_override(word)]
    if not named:
        parser.error("the following arguments are required: DIR")
    directory = Path(named[0])
    options.overrides = [word for word in words if word != named[0]]
    try:
        result = evaluate_run(directory, options.overrides, options.output or directory)
    except UsageError as error:
        report(error, "mnist-eval")
        sys.exit(2)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print_result(result)


def _is_override(word: str) -> bool:
    return word.lstrip("+~").startswith(("data=", "data.")) and not Path(word).is_dir()


def evaluate_run(path: Path, overrides: Sequence[str], output: Path) -> dict[str, Any]:
    """Test loss, accuracy, per-class accuracy and confusion matrix of the run in ``path``.

    Args:
        overrides: of the data; none means the run's own.
        output: folder for ``evaluation.json`` and ``worst_digits.png``.

    Raises:
        UsageError, RunDirectoryError: no trained run there, or data that cannot be.
    """
    run = read_run(path)
    tree = {**run.config, "data": data_section(run, overrides)}
    config = check(tree)

    import torch

    from mnist_exp import experiment
    from mnist_exp.pictures import worst_digits
    from mnist_exp.trained import trained_model
    from mnist_exp.training import evaluate, score

    authorize(tree)
    device = experiment.choose_device(config.trainer.device)
    experiment.prepare_torch(config, device, run.record.get("threads"))
    digits = experiment.build_digits(tree)
    test = digits.test.to(device)
    model, state = trained_model(run, config, device)
    bfloat16 = config.trainer.precision == "bfloat16"
    logits = evaluate(model, test.images, config.trainer.eval_batch_size, bfloat16=bfloat16)
    loss, accuracy = score(logits, test.labels, experiment.build_objective(config, model))
    classes = logits.shape[1]
    confusion = torch.bincount(test.labels * classes + logits.argmax(dim=1), minlength=classes**2)
    matrix = confusion.reshape(classes, classes)
    recorded = next((row for row in run.metrics if row["epoch"] == state["epoch"]), None) if not overrides else None
    result: dict[str, Any] = {
        "directory": str(path),
        "status": run.status,
        "epoch": state["epoch"] + (1 if state["step"] else 0),
        "images": len(test.labels),
        "test_loss": loss,
        "test_accuracy": accuracy,
        "per_class_accuracy": [int(row[label]) / max(int(row.sum()), 1) for label, row in enumerate(matrix)],
        "confusion": matrix.tolist(),
        "matches_record": None
        if recorded is None or state["step"]
        else (loss, accuracy) == (recorded["test_loss"], recorded["test_accuracy"]),
    }
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "evaluation.json", json.dumps(result, indent=2).encode() + b"\n")
    arrays = experiment.predictions(tree["data"], logits, test.labels, test.images)
    picture = worst_digits(arrays["logits"], arrays["labels"], arrays["worst"], arrays["worst_images"])
    picture.save(output / "worst_digits.png")
    return result


def data_section(run: Run, overrides: Sequence[str]) -> dict[str, Any]:
    """The run's data, or other data prepared as the run's: the size and the normalisation that the network knows.

    Raises:
        UsageError: an override that is not of the data, or that Hydra refuses.
    """
    if not overrides:
        return dict(run.config["data"])
    if foreign := [override for override in overrides if not override.lstrip("+~").startswith(("data=", "data."))]:
        raise UsageError(f"{foreign[0]}: an evaluation can change data only, such as data=mnist5k or data.root=FOLDER")
    from hydra import compose, initialize_config_dir

    kept = [f"data.{key}={run.config['data'][key]}" for key in ("image_size", "mean", "std")]
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            composed = compose("train", overrides=[*kept, "name=evaluation", *overrides])
            return dict(resolve(composed)["data"])
    except HydraException as error:
        raise UsageError(explain_composition(error)) from error


def print_result(result: dict[str, Any]) -> None:
    """Tables for people: the figures, then the confusion matrix with true classes as rows."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    matches = {None: "", True: ", as the run recorded it", False: ", which DIFFERS from what the run recorded"}
    console.print(
        f"{result['directory']}, epoch {result['epoch']}: test accuracy {result['test_accuracy']:.2%}, "
        f"test loss {result['test_loss']:.4f}, {result['images']:,} images{matches[result['matches_record']]}",
        markup=False,
    )
    table = Table(title="Confusion matrix: rows are labels, columns predictions")
    for heading in ("", *(str(label) for label in range(len(result["confusion"]))), "accuracy"):
        table.add_column(heading, justify="right")
    for label, counts in enumerate(result["confusion"]):
        shown = [f"[bold]{n}[/bold]" if n and column == label else str(n or "·") for column, n in enumerate(counts)]
        table.add_row(str(label), *shown, f"{result['per_class_accuracy'][label]:.2%}")
    console.print(table)


if __name__ == "__main__":
    main()
