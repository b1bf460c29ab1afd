"""The specification of a figure for the page (interactive) and for files, and its drawing as SVG and PNG."""

from __future__ import annotations

import copy
from typing import Any

from mnist_exp.reports.axes import Spec, in_lines
from mnist_exp.reports.figures.parts import Figure

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # the version of the language; nothing is downloaded

ENDS = ("domainMin", "domainMax")
TICKS_IN_BOX = "sequence(ceil(box_x[0]), floor(box_x[1]) + 1, max(1, ceil((box_x[1] - box_x[0]) / 10)))"


def for_page(figure: Figure) -> Spec:
    """The specification for the page, with the width of its container and the colour of the surrounding text."""
    spec = copy.deepcopy(figure.spec)
    ink = {"labelColor": "currentColor", "titleColor": "currentColor"}
    faint = {"domainColor": "currentColor", "tickColor": "currentColor", "gridColor": "currentColor"}
    config = _config() | {
        "axis": {**_config()["axis"], **ink, **faint, "gridOpacity": 0.15},
        "legend": {**_config()["legend"], **ink},
        "text": {"color": "currentColor"},
        "rule": {"color": "currentColor"},
    }
    _hide_legends(spec)
    if figure.single_runs:
        _add_box(spec)
    return {
        "$schema": SCHEMA, **spec, "width": "container", "height": figure.height,
        **({"usermeta": {"single_runs": figure.single_runs}} if figure.single_runs else {}),
        "autosize": {"type": "fit-x", "contains": "padding"}, "background": "transparent", "config": config,
    }  # fmt: skip


def for_file(figure: Figure) -> Spec:
    """The specification for files: fixed size, white background, title and legend."""
    title = {"text": in_lines(figure.title, 60), "anchor": "start", "fontSize": 14}
    return {
        "$schema": SCHEMA, **figure.spec, "title": title, "width": figure.width, "height": figure.height,
        "background": "white", "config": _config(),
    }  # fmt: skip


def draw(figure: Figure) -> str:
    """The figure as SVG."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(for_file(figure)))


def as_png(svg: str) -> bytes:
    """A drawn figure as PNG, two pixels a point; takes longer than to draw it."""
    import vl_convert

    return bytes(vl_convert.svg_to_png(svg, scale=2))


def _config() -> Spec:
    return {
        "font": "system-ui, sans-serif",
        "axis": {
            "labelFontSize": 11,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "labelLimit": 0,
            "labelSeparation": 6,
            "labelFlush": False,
        },
        "legend": {"labelFontSize": 11, "titleFontSize": 12, "orient": "bottom", "columns": 2, "labelLimit": 0},
        "view": {"stroke": None},
    }


def _add_box(spec: Spec) -> None:
    """Let the page show a part of a figure of curves: two epochs and two values, or all if they are null.

    Files do not need it, and drawing them takes twice as long with it.
    """
    spec["params"] = [*spec["params"], {"name": "box_x", "value": None}, {"name": "box_y", "value": None}]
    for encoding in (spec["encoding"], *(layer["encoding"] for layer in spec["layer"])):
        for axis in encoding.keys() & {"x", "y"}:
            ends = {end: {"expr": f"box_{axis} ? box_{axis}[{place}] : null"} for place, end in enumerate(ENDS)}
            encoding[axis]["scale"] |= ends
    axis = spec["encoding"]["x"]["axis"]
    axis["values"] = {"expr": f"box_x ? {TICKS_IN_BOX} : {axis['values']}"}
    for layer in spec["layer"]:
        layer["mark"]["clip"] = True


def _hide_legends(node: Any) -> None:
    """Remove the legends that the page does not need: it has switches for arms, and the caption lists the Pareto front."""
    if isinstance(node, dict):
        for channel in ("color", "strokeDash", "shape"):
            if isinstance(node.get(channel), dict) and node[channel].get("field") in {"arm", "front"}:
                node[channel]["legend"] = None
        for value in node.values():
            _hide_legends(value)
    elif isinstance(node, list):
        for value in node:
            _hide_legends(value)
