"""The style of figures, and parts of Vega-Lite specifications that several figures share.

Colours are those of Okabe and Ito (2008), which people with colour blindness can distinguish; lines differ in their
dashes, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mnist_exp.reports.axes import Spec, whole_legend
from mnist_exp.reports.collect import Arm
from mnist_exp.reports.tables import Row, seeds

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F6A3B", "#888888")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
CURVES = 12  # arms in figures with a line for each; more could not be distinguished
DOTS = 40  # arms in figures with a row for each
WIDTH = 460
DOT = {"type": "point", "filled": True, "size": 60, "color": COLOURS[0]}


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: of its files, without suffix. title: above it. caption: explains its marks and intervals.
        section: of the page: curves, pairwise, costs, settings or errors.
        spec: Vega-Lite, without size and colours of text.
        switchable: whether the switches of the page show and hide its arms.
        single_runs: the curves of single runs, which the page shows when the reader picks a seed.
        height, width: in pixels; on the page the width is that of the container, but not less than ``width`` if that is
            above ``WIDTH``.
    """

    name: str
    title: str
    caption: str
    section: str
    spec: Spec
    switchable: bool = False
    single_runs: tuple[Spec, ...] = ()
    height: int = 280
    width: int = WIDTH


def style(index: int) -> tuple[str, list[int]]:
    """Colour and dashes of the arm at this position."""
    return COLOURS[index % len(COLOURS)], DASHES[(index + index // len(COLOURS)) % len(DASHES)]


def shown_arms(rows: Sequence[Row]) -> list[Arm]:
    """The arms of figures with a line for each, in natural order: the best ``CURVES``, with the baseline among them."""
    known = [row for row in rows if row.arm.curves()]
    baseline = [row for row in known[CURVES:] if row.is_baseline]
    chosen = [*known[: CURVES - len(baseline)], *baseline]
    return [row.arm for row in sorted(chosen, key=lambda row: row.place)]


def layer(mark: str | Spec, values: Sequence[Spec] | None = None, **encoding: Any) -> Spec:
    """A layer of a figure: a mark, its encoding, and its own data if ``values`` are given."""
    data = {} if values is None else {"data": {"values": list(values)}}
    return {**data, "mark": {"type": mark} if isinstance(mark, str) else mark, "encoding": encoding}


def tip(field: str, form: str | None = None, title: str | None = None, kind: str | None = None) -> Spec:
    """One line of a tooltip.

    Args:
        form: d3's format of a number. kind: Vega-Lite's type of the field, if it cannot be inferred.
    """
    given = {"field": field, "format": form, "title": title, "type": kind}
    return {key: value for key, value in given.items() if value is not None}


def by_arm(arms: Sequence[Arm]) -> Spec:
    """Encodings that give each arm its colour and dashes."""
    names = [arm.label for arm in arms]
    styles = [style(index) for index in range(len(arms))]
    legend = whole_legend(names, symbolType="stroke", symbolSize=500, symbolStrokeWidth=2, symbolOpacity=1)
    return {
        channel: {"field": "arm", "type": "nominal", "title": None, "legend": legend,
                  "scale": {"domain": names, "range": [pair[place] for pair in styles]}}
        for place, channel in enumerate(("color", "strokeDash"))
    }  # fmt: skip


def switch(arms: Sequence[Arm]) -> Spec:
    """The part of a specification with which the page shows and hides arms."""
    return {
        "params": [{"name": "shown", "value": [arm.label for arm in arms]}],
        "transform": [{"filter": "indexof(shown, datum.arm) >= 0"}],
    }


def seeds_of(arms: Iterable[Arm]) -> str:
    """The numbers of runs whose curves are drawn, as text."""
    return seeds(len(arm.curves()) for arm in arms)
