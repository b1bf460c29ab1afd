"""Compute a report and write its files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from errno import EISDIR, ENOTDIR
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from mnist_exp.reports import html, markdown
from mnist_exp.reports.answer import Answer, answer
from mnist_exp.reports.collect import Comparison
from mnist_exp.reports.figures import Figure, all_figures, as_png, draw
from mnist_exp.reports.pairwise import Pairwise, against_baseline
from mnist_exp.reports.results import results_csv
from mnist_exp.reports.tables import Row, rows
from mnist_exp.runs import RunDirectoryError
from mnist_exp.runs.files import exists, open_file

DOCUMENTS = ("report.html", "report.md", "results.csv")
MANIFEST = "figures/.written.json"  # digests of the pictures by name, so that no other file is deleted


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        rows: of the table of arms, best first. pairs: each other arm against the baseline, in the same order.
        answer: the result in words.
    """

    comparison: Comparison
    rows: list[Row]
    pairs: list[Pairwise]
    figures: list[Figure]
    answer: Answer

    @property
    def headline(self) -> str:
        return self.answer.headline

    @property
    def parts(self) -> html.Parts:
        """The arguments of the functions that write it."""
        return self.comparison, self.rows, self.pairs, self.figures, self.answer


def build(comparison: Comparison) -> Report:
    """Compute the content of a report."""
    table = rows(comparison)
    place = {row.arm.label: index for index, row in enumerate(table)}
    pairs = sorted(against_baseline(comparison), key=lambda pair: place[pair.arm.label])
    return Report(comparison, table, pairs, all_figures(comparison, table, pairs), answer(comparison, table, pairs))


def write(report: Report, output: Path, others: Mapping[str, str] | None = None) -> list[Path]:
    """Write ``report.html``, ``report.md``, ``results.csv``, and ``figures/*.svg`` and ``*.png``.

    All files are written to a temporary folder first, so that a full disk leaves an earlier report unchanged.

    Args:
        output: the folder of the report.
        others: the content of more files, by name.

    Returns:
        the paths of the files that are not figures.

    Raises:
        OSError: ``output`` cannot be written.
        RunDirectoryError: a file in ``output`` is a link.
    """
    created = [folder for folder in [output, *output.parents] if not folder.exists()]  # innermost first
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(ENOTDIR, "it is a file, not a folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output, prefix=".writing-") as temporary:
            staged = Path(temporary)
            names = _write_into(staged, report, others or {}, output)
            _refuse_folders(output, names)
            figures = output / "figures"
            figures.mkdir(exist_ok=True)
            earlier = _written_earlier(figures)
            for name in names:
                os.replace(staged / name, output / name)
            for old in earlier - {output / name for name in names}:  # figures that this report does not have
                old.unlink()
    except OSError:
        for folder in created:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    return [output / name for name in names if "/" not in name]


def _write_into(folder: Path, report: Report, others: Mapping[str, str], output: Path) -> list[str]:
    """Write all files, and return their names below ``folder``; they will be moved to ``output``."""
    (folder / "figures").mkdir()

    def save(figure: Figure) -> list[str]:
        svg = draw(figure)
        (folder / "figures" / f"{figure.name}.svg").write_text(svg, encoding="utf-8")
        (folder / "figures" / f"{figure.name}.png").write_bytes(as_png(svg))
        return [f"figures/{figure.name}.svg", f"figures/{figure.name}.png"]

    parts = report.parts
    with ThreadPoolExecutor(max_workers=2) as pool:
        drawn = pool.map(save, report.figures)
        contents = {
            "report.html": html.page(*parts, folder=output),
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
    """The pictures in a folder that an earlier report wrote, and that have not changed since."""
    try:
        with open_file(figures.parent / MANIFEST, "r", below=figures.parent) as file:
            digests = json.load(file)
    except (OSError, ValueError):
        return set()
    found = set()
    for name, digest in digests.items() if isinstance(digests, dict) else ():
        with suppress(OSError, RunDirectoryError):  # it has been deleted, or is not a file
            if Path(name).name == name and _digest(figures / name) == digest:
                found.add(figures / name)
    return found


def _refuse_folders(output: Path, names: Iterable[str]) -> None:
    """Check that all files can be replaced, before one is.

    Raises:
        OSError: there is a folder with the name of a file, or a file with the name of a folder.
        RunDirectoryError: there is a link; another person may have put it there to have a file elsewhere overwritten.
    """
    if not (output / "figures").is_dir() or (output / "figures").is_symlink():
        exists(output / "figures", below=output)
    if (output / "figures").exists() and not (output / "figures").is_dir():
        raise NotADirectoryError(ENOTDIR, "figures is not a folder")
    for name in names:
        if (output / name).is_dir() and not (output / name).is_symlink():
            raise IsADirectoryError(EISDIR, f"{name} is a folder")
        exists(output / name, below=output)
