"""``results.csv`` of a report: a line for each run, counted or not."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from mnist_exp.reports.collect import Comparison
from mnist_exp.reports.tables import images_per_second_of
from mnist_exp.runs.settings import ABSENT


def results_csv(comparison: Comparison) -> str:
    """The content of ``results.csv``: for each run, counted or not, its recorded metrics and the settings that differ."""
    columns = comparison.varied
    extra = sorted({name for arm in comparison.arms for run in [*arm.runs.values(), *arm.others] for name in run.extra})
    metrics = ("test_accuracy", "test_loss", "train_accuracy", "train_loss", "val_accuracy", "val_loss")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")

    def write(cells: Iterable[object]) -> None:
        writer.writerow([_no_formula(cell) for cell in cells])

    write(
        ["directory", "arm", "status", "error", "seed", "epoch", *metrics, "parameters", "macs", "train_seconds"]
        + ["total_seconds", "images_per_second", "peak_memory_bytes", "config_hash", "git_commit", "torch", *extra]
        + [column.key for column in columns]
    )
    for index, arm in enumerate(comparison.arms):
        counted = list(arm.runs.values())
        for run in [*counted, *arm.others]:
            record, spent = run.record, run.record.seconds
            # Without a result, the last epoch.
            last = record.final or (run.metrics[-1] if run.metrics else {})
            write(
                [run.path, arm.label, run.status, record.error, run.config.seed, last.get("epoch")]
                + [last.get(name) for name in metrics]
                + [record.parameters, record.macs, spent.get("train"), spent.get("total")]
                + [images_per_second_of(run), record.peak_memory_bytes, record.config_hash]
                + [record.git.commit if record.git else None, record.versions.get("torch")]
                + [run.extra.get(name) for name in extra]
                + [None if column.values[index] == ABSENT else column.shown(index) for column in columns]
            )
    for problem in comparison.problems:
        if problem.arm is None:
            write([problem.path, None, problem.status, problem.reason])
    return stream.getvalue()


def _no_formula(cell: object) -> object:
    """Put an apostrophe before text that a spreadsheet would run as a formula."""
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
