"""Write an audit: one HTML file, Markdown with its figures, and the measured numbers."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from mnist_exp.reports.audit import words
from mnist_exp.reports.audit.claims import Report
from mnist_exp.reports.audit.figures import curves, overview
from mnist_exp.reports.audit.findings import Audited
from mnist_exp.reports.figures import Figure, draw
from mnist_exp.reports.html import ENVIRONMENT
from mnist_exp.reports.markdown import cell, table
from mnist_exp.runs import write_atomically


@dataclass(frozen=True)
class Audit:
    """All audited networks, in the order of the claims files.

    Attributes:
        options: of the command that repeats the audit with more seeds.
    """

    networks: Sequence[Audited]
    options: Sequence[str] = ()

    @cached_property
    def headline(self) -> str:
        return words.headline(self.networks)

    @cached_property
    def more_seeds(self) -> list[str]:
        """The commands that train as many seeds as would decide what cannot be told yet."""
        return words.more_seeds(self.networks, self.options)

    @property
    def problems(self) -> list[str]:
        """A sentence for each run that does not count."""
        return list(dict.fromkeys(problem for audited in self.networks for problem in audited.problems))

    @cached_property
    def overview(self) -> Figure | None:
        return overview(self.networks)

    @cached_property
    def curves(self) -> dict[str, list[Figure]]:
        """The figures of each network, by its label."""
        return {audited.label: list(curves(audited)) for audited in self.networks}

    @property
    def figures(self) -> list[Figure]:
        first = [self.overview] if self.overview else []
        return [*first, *(figure for figures in self.curves.values() for figure in figures)]

    def by_report(self) -> Iterator[tuple[Report, list[Audited]]]:
        """The networks of each claims file."""
        for _, group in groupby(self.networks, key=lambda audited: audited.report.name):
            found = list(group)
            yield found[0].report, found


def write(audit: Audit, folder: Path) -> list[Path]:
    """Write ``audit.html``, ``audit.md`` and ``figures/*.svg``; returns the paths of the documents.

    Raises:
        OSError: the folder cannot be written.
        RunDirectoryError: a file in it is a link.
    """
    pictures = {figure.name: draw(figure) for figure in audit.figures}
    write_pictures(pictures, folder / "figures")
    documents = {"audit.html": page(audit, pictures), "audit.md": markdown(audit)}
    for name, text in documents.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in documents]


def write_pictures(pictures: Mapping[str, str], folder: Path) -> None:
    """Write figures as ``NAME.svg``.

    Args:
        pictures: SVG by name.
    """
    for name, svg in pictures.items():
        file = folder / f"{name}.svg"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, svg.encode())


def page(audit: Audit, pictures: Mapping[str, str]) -> str:
    """The content of ``audit.html``.

    Args:
        pictures: SVG by the name of the figure. Each is embedded as an image of its own, because the ids in it repeat.
    """
    sources = {
        name: "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode() for name, svg in pictures.items()
    }
    values: dict[str, Any] = {"audit": audit, "words": words, "sources": sources, "title": "Audit"}
    return ENVIRONMENT.get_template("audit.html.j2").render(**values)


def markdown(audit: Audit, figures: str = "figures") -> str:
    """The content of ``audit.md``.

    Args:
        figures: folder of the figures, from the document.
    """
    parts = [f"# Audit: {cell(audit.headline)}"]
    parts += [_picture(audit.overview, figures), cell(audit.overview.caption)] if audit.overview else []
    parts += [_commands("More seeds would decide what cannot be told yet:", audit.more_seeds)]
    for report, networks in audit.by_report():
        parts += [f"## {cell(report.name)}", cell(report.claims.source), cell(report.claims.recipe)]
        rows = [
            [audited.name, *line.cells[:1], f"**{line.cells[1]}**" if line.sentence else line.cells[1], *line.cells[2:]]
            for audited in networks
            for line in words.lines(audited)
        ]
        parts.append(table(["network", *words.COLUMNS], rows))
        for audited in networks:
            parts += _network(audit, audited, figures)
    parts += ["## What the words mean", "\n".join(f"- **{title}**: {text}." for title, text in words.MEANING)]
    if audit.problems:
        parts += ["## Runs that do not count", "\n".join(f"- {cell(problem)}" for problem in audit.problems)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _network(audit: Audit, audited: Audited, figures: str) -> Iterator[str]:
    """The section of one network."""
    yield f"### {cell(audited.label)}"
    yield f"```text\n{words.command(audited)}\n```"
    yield f"Recipe as reported: {cell(audited.model.said)}" if audited.model.said else ""
    yield cell(audited.model.note)
    for line in words.lines(audited):
        if line.sentence:
            yield f"**{cell(line.claim.capitalize())}, {line.verdict}.** {cell(line.sentence)}"
    if audited.count.is_wrong:
        yield table(["layer", "parameters of", "parameters", "sum"], words.sum_of(audited))
    for figure in audit.curves[audited.label]:
        yield _picture(figure, figures)


def _picture(figure: Figure, folder: str) -> str:
    return f"![{cell(figure.title)}]({folder}/{figure.name}.svg)"


def _commands(text: str, commands: Sequence[str]) -> str:
    return "\n".join([text, "", "```text", *commands, "```"]) if commands else ""
