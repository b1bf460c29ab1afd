"""What figures share: their looks, and the pieces of a Vega-Lite specification that many have.

Colours are those of Okabe and Ito (2008), told apart without colour vision; lines differ in their dashes, too.
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
CURVES = 12  # arms in figures with a line for each; more cannot be told apart
DOTS = 40  # arms in figures with a row for each
WIDTH = 460
DOT = {"type": "point", "filled": True, "size": 60, "color": COLOURS[0]}


@dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
        name: of its files. title: above it. caption: what it shows and what its marks and intervals mean.
        section: of the page: curves, pairwise, costs, settings or errors.
        spec: Vega-Lite without size and colours of text.
        switchable: whether its arms follow the page's switches.
        width: in files; on the page it is as wide as its place, or scrolls where it needs more than other figures.
    """

    name: str
    title: str
    caption: str
    section: str
    spec: Spec
    switchable: bool = False
    height: int = 280
    width: int = WIDTH


def style(index: int) -> tuple[str, list[int]]:
    """Colour and dashes of the arm at this position."""
    return COLOURS[index % len(COLOURS)], DASHES[(index + index // len(COLOURS)) % len(DASHES)]


def shown_arms(rows: Sequence[Row]) -> list[Arm]:
    """The arms that figures with a line for each show, in natural order: the best, and the baseline whatever its place."""
    known = [row for row in rows if row.arm.curves()]
    baseline = [row for row in known[CURVES:] if row.is_baseline]
    chosen = [*known[: CURVES - len(baseline)], *baseline]
    return [row.arm for row in sorted(chosen, key=lambda row: row.place)]


def layer(mark: str | Spec, values: Sequence[Spec] | None = None, **encoding: Any) -> Spec:
    """One layer of a figure: a mark and what it encodes, of data of its own where ``values`` are given."""
    data = {} if values is None else {"data": {"values": list(values)}}
    return {**data, "mark": {"type": mark} if isinstance(mark, str) else mark, "encoding": encoding}


def tip(field: str, form: str | None = None, title: str | None = None, kind: str | None = None) -> Spec:
    """One line of what is shown under the pointer.

    Args:
        form: of numbers, in d3's notation. kind: of the field, where Vega-Lite cannot tell.
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
    """The part of a specification by which the page switches arms on and off."""
    return {
        "params": [{"name": "shown", "value": [arm.label for arm in arms]}],
        "transform": [{"filter": "indexof(shown, datum.arm) >= 0"}],
    }


def seeds_of(arms: Iterable[Arm]) -> str:
    return seeds(len(arm.curves()) for arm in arms)
