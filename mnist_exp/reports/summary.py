"""A summary of a report in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from mnist_exp.errors import printable
from mnist_exp.reports.build import Report
from mnist_exp.reports.markdown import baseline_sentence
from mnist_exp.reports.tables import Column, with_spread
from mnist_exp.reports.tables import columns as table_columns
from mnist_exp.terminal import Terminal

ON_A_TERMINAL = ("arm", "n", "validation", "train s", "not completed")  # so many fit 80 characters
TEST = Column("test", "", lambda row: row.mean, lambda row: with_spread(row.accuracy))


def print_summary(report: Report, files: Sequence[Path]) -> None:
    """Print the answer, the table of arms, the runs that are not counted, and the paths of the files."""
    console = Terminal()
    found = report.answer
    lines = [" ".join(filter(None, (f"{found.title}.", found.facts)))]
    for contrast in found.contrasts:
        lines += [contrast.sentence, *(f"  {command}" for command in contrast.commands)]
    lines += [f"More seeds: {command}" for command in found.more_seeds]
    for line in lines:
        console.print(printable(line), markup=False)
    columns = [column for column in table_columns(report.rows) if column.title in ON_A_TERMINAL]
    if any(row.accuracy for row in report.rows) or not any(row.has_result for row in report.rows):
        columns.insert(len(columns) - 1 - (columns[-1].title == "not completed"), TEST)
    table = Table(title="Accuracy of the result: mean ± standard deviation over n seeds")
    for column in columns:
        words = column.title in {"arm", "not completed"}
        table.add_column(column.title, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for row in report.rows[:40]:
        table.add_row(*(escape(printable(column.show(row))) for column in columns))
    console.print(table)
    if len(report.rows) > 1:
        console.print(f"{printable(baseline_sentence(report.comparison))} Another one: --baseline ARM", markup=False)
    if len(report.rows) > 40:
        console.print(f"{len(report.rows) - 40} more arms are in the report")
    if report.comparison.problems:
        console.print(f"{len(report.comparison.problems)} of {report.comparison.found} runs are not counted:")
        for problem in report.comparison.problems[:10]:
            line = f"{problem.path}: {problem.status}: {' '.join(problem.reason.split())}"
            console.print(f"  {printable(line)}", markup=False)
    console.print(f"written: {', '.join(str(file) for file in files)}, {files[0].parent / 'figures'}", markup=False)
