"""Figures as Vega-Lite specifications: one function for each, one module for each section of the page."""

from __future__ import annotations

from collections.abc import Sequence

from mnist_exp.reports.collect import Comparison
from mnist_exp.reports.figures.arms import accuracies, differences
from mnist_exp.reports.figures.costs import costs
from mnist_exp.reports.figures.curves import curves, default_splits, recorded_splits
from mnist_exp.reports.figures.drawing import as_png, draw, for_file, for_page
from mnist_exp.reports.figures.errors import errors
from mnist_exp.reports.figures.parts import CURVES, Figure, shown_arms, style
from mnist_exp.reports.figures.settings import settings
from mnist_exp.reports.pairwise import Pairwise
from mnist_exp.reports.tables import Row, measure_of

__all__ = [
    "CURVES",
    "Figure",
    "all_figures",
    "as_png",
    "default_splits",
    "draw",
    "for_file",
    "for_page",
    "recorded_splits",
    "shown_arms",
    "style",
]


def all_figures(comparison: Comparison, rows: Sequence[Row], pairs: Sequence[Pairwise]) -> list[Figure]:
    """All figures of a report, without those that would be empty."""
    shown = shown_arms(rows)
    figures: list[Figure] = []
    if any(arm.curves() for arm in shown):
        figures.extend(curves(shown))
    measure = measure_of(rows)
    if any((sample := measure.of(row)) and (len(rows) > 1 or sample.n > 1) for row in rows):
        figures.append(accuracies(rows, measure))
    if any(pair.seeds for pair in pairs):
        figures.append(differences(pairs, comparison.arms[comparison.baseline].label))
    figures.extend(costs(rows, measure))
    figures.extend(settings(comparison, measure))
    figures.extend(errors(comparison, rows, shown))
    return figures
