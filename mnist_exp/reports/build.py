"""From run directories to the files of a report."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mnist_exp.reports import html, markdown
from mnist_exp.reports.collect import Comparison
from mnist_exp.reports.figures import Figure, all_figures, draw
from mnist_exp.reports.pairwise import Pairwise, against_baseline
from mnist_exp.reports.tables import Row, interval, percent, results_csv, rows
from mnist_exp.runs.files import exists, open_file

DOCUMENTS = ("report.html", "report.md", "results.csv")


@dataclass(frozen=True)
class Report:
    """Everything in a report but its files."""

    comparison: Comparison
    rows: list[Row]
    pairs: list[Pairwise]
    figures: list[Figure]
    headline: str


def build(comparison: Comparison) -> Report:
    """Do all the arithmetic, once."""
    table = rows(comparison)
    place = {row.arm.label: index for index, row in enumerate(table)}
    pairs = sorted(against_baseline(comparison), key=lambda pair: place[pair.arm.label])
    return Report(comparison, table, pairs, all_figures(comparison, table, pairs), _headline(table, pairs))


def write(report: Report, output: Path) -> list[Path]:
    """Write ``report.html``, ``report.md``, ``results.csv`` and ``figures/*.svg`` and ``*.png``; returns the former."""
    folder = output / "figures"
    for name in (*DOCUMENTS, "figures/*"):
        exists(output / name, below=output)  # refuses a link, before anything is deleted or written
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.svg"), *folder.glob("*.png")]:  # of an earlier report with other runs
        old.unlink()

    def save(figure: Figure) -> None:
        svg, png = draw(figure)
        with open_file(folder / f"{figure.name}.svg", "w", below=output) as file:
            file.write(svg)
        with open_file(folder / f"{figure.name}.png", "wb", below=output) as file:
            file.write(png)

    parts = (report.comparison, report.rows, report.pairs, report.figures, report.headline)
    with ThreadPoolExecutor(max_workers=2) as pool:
        drawn = pool.map(save, report.figures)
        texts = (html.page(*parts), markdown.document(*parts), results_csv(report.comparison))
        contents = dict(zip(DOCUMENTS, texts, strict=True))
        list(drawn)  # raises what went wrong
    for name, content in contents.items():
        with open_file(output / name, "w") as file:
            file.write(content)
    return [output / name for name in contents]


def _headline(table: Sequence[Row], pairs: Sequence[Pairwise]) -> str:
    """The result in words, with what it does and does not say."""
    best = table[0]
    if best.accuracy is None:
        return "No run has completed yet: there is no result, only how far the runs got."
    seeds = f"{best.accuracy.n} seeds" if best.accuracy.n > 1 else "one seed, which says nothing about another one"
    known = f", 95 % interval over seeds {interval(best.accuracy.interval)} %" if best.accuracy.interval else ""
    text = f"Highest mean test accuracy: {percent(best.accuracy.mean)} by {best.arm.label} ({seeds}{known})."
    if best.is_baseline or not pairs:
        return text
    pair = next(pair for pair in pairs if pair.arm is best.arm)
    effect = f" ({1e4 * pair.seeds.mean:+.0f} images of 10,000)" if pair.seeds else ""
    return f"{text} Against the baseline: {pair.verdict}{effect}."
