"""From run directories to the files of a report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from errno import EISDIR, ENOTDIR
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from mnist_exp.reports import html, markdown
from mnist_exp.reports.collect import Comparison
from mnist_exp.reports.figures import Figure, all_figures, draw
from mnist_exp.reports.pairwise import Pairwise, against_baseline
from mnist_exp.reports.tables import Row, interval, percent, results_csv, rows
from mnist_exp.runs import RunDirectoryError
from mnist_exp.runs.files import exists, open_file

DOCUMENTS = ("report.html", "report.md", "results.csv")
MANIFEST = "figures/.written.json"  # digests of the pictures, by name: so that nothing else is ever deleted


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
    return Report(comparison, table, pairs, all_figures(comparison, table, pairs), _headline(comparison, table, pairs))


def write(report: Report, output: Path, others: Mapping[str, str] | None = None) -> list[Path]:
    """Write ``report.html``, ``report.md``, ``results.csv`` and ``figures/*.svg`` and ``*.png``; returns the former.

    Everything is written beside its place first, so that a disk that is full leaves an earlier report as it was.

    Args:
        others: more files by name, with their contents.

    Raises:
        OSError: ``output`` cannot be written.
    """
    made = [folder for folder in [output, *output.parents] if not folder.exists()]  # innermost first
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(ENOTDIR, "it is a file, not a folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output, prefix=".writing-") as temporary:
            staged = Path(temporary)
            names = _write_into(staged, report, others or {})
            _refuse_folders(output, names)
            figures = output / "figures"
            figures.mkdir(exist_ok=True)
            earlier = _written_earlier(figures)
            for name in names:
                os.replace(staged / name, output / name)
            for old in earlier - {output / name for name in names}:  # of a report with other runs
                old.unlink()
    except OSError:
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    return [output / name for name in names if "/" not in name]


def _write_into(folder: Path, report: Report, others: Mapping[str, str]) -> list[str]:
    """Write all files, and return their names below ``folder``."""
    (folder / "figures").mkdir()

    def save(figure: Figure) -> list[str]:
        svg, png = draw(figure)
        (folder / "figures" / f"{figure.name}.svg").write_text(svg, encoding="utf-8")
        (folder / "figures" / f"{figure.name}.png").write_bytes(png)
        return [f"figures/{figure.name}.svg", f"figures/{figure.name}.png"]

    parts = (report.comparison, report.rows, report.pairs, report.figures, report.headline)
    with ThreadPoolExecutor(max_workers=2) as pool:
        drawn = pool.map(save, report.figures)
        contents = {
            "report.html": html.page(*parts),
            "report.md": markdown.document(*parts),
            "results.csv": results_csv(report.comparison),
            **others,
        }
        pictures = [name for names in drawn for name in names]
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    digests = {Path(name).name: _digest(folder / name) for name in pictures}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=0), encoding="utf-8")
    return [*contents, *pictures, MANIFEST]


def _digest(file: Path) -> str:
    with open_file(file) as stream:
        return sha256(stream.read()).hexdigest()


def _written_earlier(figures: Path) -> set[Path]:
    """The pictures in a folder that an earlier report wrote there, and that nobody has changed since."""
    try:
        with open_file(figures.parent / MANIFEST, "r", below=figures.parent) as file:
            digests = json.load(file)
    except (OSError, ValueError):
        return set()
    found = set()
    for name, digest in digests.items() if isinstance(digests, dict) else ():
        with suppress(OSError, RunDirectoryError):  # it is gone, or something else
            if Path(name).name == name and _digest(figures / name) == digest:
                found.add(figures / name)
    return found


def _refuse_folders(output: Path, names: Iterable[str]) -> None:
    """Find out what cannot be replaced before anything is.

    Raises:
        OSError: a folder lies where a file belongs, or the other way round.
        RunDirectoryError: a link does, which would lead elsewhere; the report may lie in a stranger's directory.
    """
    if not (output / "figures").is_dir() or (output / "figures").is_symlink():
        exists(output / "figures", below=output)
    if (output / "figures").exists() and not (output / "figures").is_dir():
        raise NotADirectoryError(ENOTDIR, "figures is not a folder")
    for name in names:
        if (output / name).is_dir() and not (output / name).is_symlink():
            raise IsADirectoryError(EISDIR, f"{name} is a folder")
        exists(output / name, below=output)


def _headline(comparison: Comparison, table: Sequence[Row], pairs: Sequence[Pairwise]) -> str:
    """The result in words, with what it does and does not say."""
    best = table[0]
    if best.accuracy is None:
        return "No run has completed yet: there is no result, only how far the runs got."
    seeds = f"{best.accuracy.n} seeds" if best.accuracy.n > 1 else "one seed, which says nothing about another one"
    known = f", 95 % interval over seeds {interval(best.accuracy.interval)} %" if best.accuracy.interval else ""
    text = f"Highest mean test accuracy: {percent(best.accuracy.mean)} by {best.arm.label} ({seeds}{known})."
    if not pairs:
        return text
    if best.is_baseline:
        return f"{text} This is the baseline ({comparison.reason})."
    pair = next(pair for pair in pairs if pair.arm is best.arm)
    counted = f", {pair.in_images} test images" if pair.test_images else ""
    effect = f" ({pair.effect} points{counted})" if pair.seeds else ""
    baseline = comparison.arms[comparison.baseline].label
    return f"{text} Against the baseline {baseline} ({comparison.reason}): {pair.verdict}{effect}."
