"""Compare runs: tables, statistics and figures in one HTML file, in Markdown and in CSV.

    mnist-report outputs/sweeps/mlp_width outputs/2026-11-21/lenet5-a1b2c3
    mnist-report 'outputs/**/lenet5-*' --baseline lenet5 --output comparison

Run directories are all it reads.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mnist_exp.errors import ArgumentParser, UsageError
from mnist_exp.errors import report as report_mistake
from mnist_exp.reports import wandb_report
from mnist_exp.reports.build import Report, build, write
from mnist_exp.reports.collect import compare, paths_of
from mnist_exp.runs import RunDirectoryError

ON_A_TERMINAL = ("arm", "n", "accuracy", "std", "parameters", "train s", "not completed")


def main(arguments: Sequence[str] | None = None) -> None:
    """``mnist-report``: exit status 2 where there is nothing to show."""
    parser = ArgumentParser(
        prog="mnist-report", example="mnist-report DIR", description="Compare runs from their directories."
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="run directories, folders of them, or patterns")
    parser.add_argument(
        "--baseline",
        metavar="ARM",
        help="compare the others with it: its label, its name or settings (lr=0.01,model=lenet5); "
        "default: the sweep's first job, without a sweep the arm nearest to the default settings",
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/report"), help="folder; default: outputs/report")
    parser.add_argument("--wandb", action="store_true", help="also build a report on Weights & Biases, beside the runs")
    parser.add_argument(
        "--wandb-project", metavar="[ENTITY/]PROJECT", help="where that may be saved; default: mnist-exp of the account"
    )
    parser.add_argument(
        "--wandb-dry-run", action="store_true", help="write what --wandb would send to wandb_report.json; no network"
    )
    options = parser.parse(arguments)
    try:
        report = build(compare(paths_of(options.directories), options.baseline))
        others = {}
        if options.wandb_dry_run:
            others["wandb_report.json"] = json.dumps(wandb_report.specification(report), indent=2) + "\n"
        try:
            files = write(report, options.output, others)
        except OSError as error:
            raise UsageError(f"--output {options.output} cannot be written: {error.strerror or error}") from error
        address = wandb_report.publish(report) if options.wandb and not options.wandb_dry_run else None
    except (UsageError, RunDirectoryError) as error:
        report_mistake(error, "mnist-report")
        sys.exit(2)
    try:
        print_summary(report, files)
        if address:
            print(f"W&B report: {address}", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails once more as it exits
        written = ", ".join(str(file) for file in files)
        report_mistake(
            UsageError(f"written: {written}; the summary cannot be printed: {error.strerror}"), "mnist-report"
        )
        sys.exit(2)


def print_summary(report: Report, files: Sequence[Path]) -> None:
    """The table of arms, what was left out, and where the rest is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mnist_exp.reports.markdown import chosen
    from mnist_exp.reports.tables import COLUMNS

    columns = [column for column in COLUMNS if column.title in ON_A_TERMINAL]
    table = Table(title="Test accuracy of the result, over seeds")
    for column in columns:
        words = column.title in {"arm", "not completed"}
        table.add_column(column.title, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for row in report.rows[:40]:
        table.add_row(*(escape(column.show(row)) for column in columns))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    if len(report.rows) > 1:
        console.print(f"{chosen(report.comparison)} Another one: --baseline ARM", markup=False)
    if len(report.rows) > 40:
        console.print(f"{len(report.rows) - 40} more arms are in the report")
    if report.comparison.problems:
        console.print(f"{len(report.comparison.problems)} of {report.comparison.found} runs are not counted:")
        for problem in report.comparison.problems[:10]:
            console.print(f"  {problem.path}: {problem.status}: {problem.reason}", markup=False)
    console.print(f"written: {', '.join(str(file) for file in files)}, {files[0].parent / 'figures'}", markup=False)


if __name__ == "__main__":
    main()
