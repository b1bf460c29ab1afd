"""Figures as Vega-Lite specifications: one for the page (interactive) and for files (SVG and PNG).

Colours are those of Okabe and Ito (2008), told apart without colour vision; lines differ in their dashes, too.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnist_exp.reports.collect import ABSENT, Arm, Comparison, Varied
from mnist_exp.reports.pairwise import Pairwise
from mnist_exp.reports.statistics import importance, over_seeds, pareto
from mnist_exp.reports.tables import Row

Spec = dict[str, Any]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F6A3B", "#888888")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
CURVES = 12  # arms in figures with a line for each; more cannot be told apart
DOTS = 40  # arms in figures with a row for each
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # names the language's version; nothing is fetched


@dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
        name: of its files. title: above it. caption: what it shows and what its marks and intervals mean.
        section: of the page: curves, pairwise, costs, settings or errors.
        spec: Vega-Lite without size and colours of text.
        switchable: whether its arms follow the page's switches.
    """

    name: str
    title: str
    caption: str
    section: str
    spec: Spec
    switchable: bool = False
    height: int = 280


def style(index: int) -> tuple[str, list[int]]:
    """Colour and dashes of the arm at this position."""
    return COLOURS[index % len(COLOURS)], DASHES[(index + index // len(COLOURS)) % len(DASHES)]


def all_figures(comparison: Comparison, rows: Sequence[Row], pairs: Sequence[Pairwise]) -> list[Figure]:
    """What the runs have to show; figures that would be empty are left out."""
    shown = shown_arms(rows)
    figures: list[Figure] = []
    if any(arm.curves() for arm in shown):
        figures.extend(_curves(shown))
    if any(row.accuracy for row in rows):
        figures.append(_accuracies(rows))
    if any(pair.seeds for pair in pairs):
        figures.append(_differences(pairs, comparison.arms[comparison.baseline].label))
    figures.extend(_costs(rows))
    figures.extend(_settings(comparison))
    figures.extend(_errors(comparison, shown))
    return figures


def shown_arms(rows: Sequence[Row]) -> list[Arm]:
    """The arms that figures with a line for each show: the best with an epoch, and the baseline whatever its place."""
    arms = [row.arm for row in rows if row.arm.curves()]
    baseline = [row.arm for row in rows if row.is_baseline and row.arm not in arms[:CURVES] and row.arm in arms]
    return [*arms[: CURVES - len(baseline)], *baseline]


def for_page(figure: Figure) -> Spec:
    """Takes the width of its place and the colour of the text around it."""
    spec = copy.deepcopy(figure.spec)
    ink = {"labelColor": "currentColor", "titleColor": "currentColor"}
    faint = {"domainColor": "currentColor", "tickColor": "currentColor", "gridColor": "currentColor"}
    config = _config() | {
        "axis": {**_config()["axis"], **ink, **faint, "gridOpacity": 0.15},
        "legend": {**_config()["legend"], **ink},
        "text": {"color": "currentColor"},
        "rule": {"color": "currentColor"},
    }
    if figure.switchable:
        _hide_legends(spec)
    return {
        "$schema": SCHEMA, **spec, "width": "container", "height": figure.height,
        "autosize": {"type": "fit-x", "contains": "padding"}, "background": "transparent", "config": config,
    }  # fmt: skip


def for_file(figure: Figure) -> Spec:
    """Fixed size on white, with its title and legend."""
    title = {"text": figure.title, "anchor": "start", "fontSize": 14}
    return {
        "$schema": SCHEMA, **figure.spec, "title": title, "width": 460, "height": figure.height,
        "background": "white", "config": _config(),
    }  # fmt: skip


def draw(figure: Figure) -> tuple[str, bytes]:
    """The figure as SVG text and as PNG bytes, two pixels a point."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(for_file(figure))
    return svg, vl_convert.svg_to_png(svg, scale=2)


def png_of(pixels: Any) -> bytes:
    """A digit (S, S), uint8, ink bright, as PNG bytes, dark on white."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(255 - pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _config() -> Spec:
    return {
        "font": "system-ui, sans-serif",
        "axis": {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 170},
        "legend": {"labelFontSize": 11, "titleFontSize": 12, "orient": "bottom", "columns": 2, "labelLimit": 220},
        "view": {"stroke": None},
    }


def _hide_legends(node: Any) -> None:
    if isinstance(node, dict):
        for channel in ("color", "strokeDash", "shape"):
            if isinstance(node.get(channel), dict) and node[channel].get("field") == "arm":
                node[channel]["legend"] = None
        for value in node.values():
            _hide_legends(value)
    elif isinstance(node, list):
        for value in node:
            _hide_legends(value)


def _by_arm(arms: Sequence[Arm]) -> Spec:
    """Encodings that give each arm its colour and dashes."""
    names = [arm.label for arm in arms]
    styles = [style(index) for index in range(len(arms))]
    return {
        "color": {"field": "arm", "type": "nominal", "title": None,
                  "scale": {"domain": names, "range": [colour for colour, _ in styles]}},
        "strokeDash": {"field": "arm", "type": "nominal", "title": None,
                       "scale": {"domain": names, "range": [dash for _, dash in styles]}},
    }  # fmt: skip


def _switch(arms: Sequence[Arm]) -> Spec:
    """The part of a specification by which the page switches arms on and off."""
    return {
        "params": [{"name": "shown", "value": [arm.label for arm in arms]}],
        "transform": [{"filter": "indexof(shown, datum.arm) >= 0"}],
    }


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def _curves(arms: Sequence[Arm]) -> Iterator[Figure]:
    for split, metric in (("train", "loss"), ("test", "loss"), ("train", "accuracy"), ("test", "accuracy")):
        key, percent = f"{split}_{metric}", metric == "accuracy"
        values = []
        for arm in arms:
            by_epoch: dict[int, list[float]] = {}
            for run in arm.curves():
                for row in run.metrics:
                    if math.isfinite(row[key]):
                        by_epoch.setdefault(int(row["epoch"]), []).append(float(row[key]))
            for epoch, measured in sorted(by_epoch.items()):
                mean, low, high = (_round(float(f(measured))) for f in (np.mean, min, max))
                values.append(
                    {"arm": arm.label, "epoch": epoch, "mean": mean, "low": low, "high": high, "runs": len(measured)}
                )
        form = ".2%" if percent else ".4f"
        x = {"field": "epoch", "type": "quantitative", "title": "epoch",
             "axis": {"tickMinStep": 1, "format": "d", "grid": False}, "scale": {"nice": False}}  # fmt: skip
        y = {"type": "quantitative", "title": f"{split} {metric}{'' if percent else ' (nats)'}",
             "scale": {"zero": False}, "axis": {"format": ".0%" if percent and _wide(values) else
                                                ".1%" if percent else "~g"}}  # fmt: skip
        tooltip = [
            {"field": "arm", "type": "nominal"},
            {"field": "epoch", "type": "quantitative"},
            {"field": "mean", "type": "quantitative", "format": form},
            {"field": "low", "type": "quantitative", "format": form, "title": "lowest seed"},
            {"field": "high", "type": "quantitative", "format": form, "title": "highest seed"},
            {"field": "runs", "type": "quantitative"},
        ]
        colour = _by_arm(arms)
        spec = {
            "data": {"values": values},
            **_switch(arms),
            "encoding": {"x": x},
            "layer": [
                {
                    "mark": {"type": "area", "opacity": 0.18},
                    "encoding": {
                        "y": {"field": "low", **y},
                        "y2": {"field": "high"},
                        "color": colour["color"],
                    },
                },
                {
                    "mark": {"type": "line", "strokeWidth": 2, "point": {"size": 45, "opacity": 0}},
                    "encoding": {"y": {"field": "mean", **y}, **colour, "tooltip": tooltip},
                },
            ],
        }
        name = f"{split} {metric}"
        told = "seen while the epoch ran, in training mode" if split == "train" else "of the weights after the epoch"
        caption = f"{name.capitalize()}, {told}: mean over seeds, band from the lowest to the highest seed."
        yield Figure(f"curves_{key}", name.capitalize(), caption, "curves", spec, switchable=True)


def _wide(values: Sequence[Spec]) -> bool:
    """Whether an axis needs no digit after the point."""
    return bool(values) and max(v["high"] for v in values) - min(v["low"] for v in values) > 0.05


def _accuracies(rows: Sequence[Row]) -> Figure:
    shown = [row for row in rows if row.accuracy][:DOTS]
    means: list[Spec] = []
    seeds: list[Spec] = []
    for row in shown:
        assert row.accuracy is not None
        known = row.accuracy.interval
        means.append(
            {"arm": row.arm.label, "accuracy": row.accuracy.mean, "n": row.accuracy.n,
             "low": known.low if known else None, "high": known.high if known else None}
        )  # fmt: skip
        seeds += [
            {"arm": row.arm.label, "accuracy": value, "seed": seed}
            for seed, value in row.arm.final("test_accuracy").items()
        ]
    y = {"field": "arm", "type": "nominal", "sort": [row.arm.label for row in shown], "title": None}
    scale = _window([seed["accuracy"] for seed in seeds])
    x = {"type": "quantitative", "title": "test accuracy", "scale": scale, "axis": {"format": "~%"}}
    spec = {
        "encoding": {"y": y},
        "layer": [
            {"data": {"values": seeds}, "mark": {"type": "tick", "color": COLOURS[1], "thickness": 1.5, "size": 10},
             "encoding": {"x": {"field": "accuracy", **x},
                          "tooltip": [{"field": "arm"}, {"field": "seed"}, {"field": "accuracy", "format": ".2%"}]}},
            {"data": {"values": [mean for mean in means if mean["low"] is not None]},
             "mark": {"type": "rule", "strokeWidth": 2, "color": COLOURS[0], "clip": True},
             "encoding": {"x": {"field": "low", **x}, "x2": {"field": "high"}}},
            {"data": {"values": means}, "mark": {"type": "point", "filled": True, "size": 60, "color": COLOURS[0]},
             "encoding": {"x": {"field": "accuracy", **x},
                          "tooltip": [{"field": "arm"}, {"field": "n", "title": "seeds"},
                                      {"field": "accuracy", "format": ".2%"}, {"field": "low", "format": ".2%"},
                                      {"field": "high", "format": ".2%"}]}},
        ],
    }  # fmt: skip
    more = f" The best {DOTS} of {len(rows)} arms." if len(rows) > DOTS else ""
    caption = (
        "Test accuracy of the result: each seed (ticks), mean (point) and 95 % interval of the mean over seeds "
        f"(line, cut at the edge of the picture; none where there is one seed).{more}"
    )
    return Figure("accuracy", "Test accuracy by arm", caption, "pairwise", spec, height=60 + 24 * len(shown))


def _window(points: Sequence[float]) -> Spec:
    """A scale around what was measured: with two seeds an interval can be a hundred times as wide."""
    low, high = min(points), max(points)
    margin = 0.15 * (high - low) or 0.01 * abs(high) or 1.0
    return {"domain": [_round(low - margin), _round(high + margin)], "nice": False}


def _differences(pairs: Sequence[Pairwise], baseline: str) -> Figure:
    known = sorted((pair for pair in pairs if pair.seeds), key=lambda pair: -(pair.seeds.mean if pair.seeds else 0))
    values: list[Spec] = []
    seeds: list[Spec] = []
    images: list[Spec] = []
    for pair in known[:DOTS]:
        assert pair.seeds is not None
        name = pair.arm.label
        values.append({"arm": name, "images": 1e4 * pair.seeds.mean, "verdict": pair.verdict})
        if pair.seeds.interval:
            seeds.append({"arm": name, "low": 1e4 * pair.seeds.interval.low, "high": 1e4 * pair.seeds.interval.high})
        if pair.images:
            images.append({"arm": name, "low": 1e4 * pair.images.interval.low, "high": 1e4 * pair.images.interval.high})
    ends = [end for image in images for end in (image["low"], image["high"])]
    scale = _window([0.0, *(value["images"] for value in values), *ends])
    x = {"type": "quantitative", "title": "more images right, of 10,000", "scale": scale}
    y = {"field": "arm", "type": "nominal", "sort": [value["arm"] for value in values], "title": None}
    spans = {"x": {"field": "low", **x}, "x2": {"field": "high"}}
    spec = {
        "layer": [
            {"data": {"values": [{"zero": 0}]}, "mark": {"type": "rule", "strokeDash": [4, 3]},
             "encoding": {"x": {"field": "zero", **x}}},
            {"data": {"values": images}, "mark": {"type": "rule", "strokeWidth": 7, "opacity": 0.35,
             "color": COLOURS[4]}, "encoding": {"y": y, **spans}},
            {"data": {"values": seeds}, "mark": {"type": "rule", "strokeWidth": 2, "color": COLOURS[0],
             "clip": True}, "encoding": {"y": y, **spans}},
            {"data": {"values": values}, "mark": {"type": "point", "filled": True, "size": 60, "color": COLOURS[0]},
             "encoding": {"y": y, "x": {"field": "images", **x},
                          "tooltip": [{"field": "arm"}, {"field": "images", "format": "+.1f"}, {"field": "verdict"}]}},
        ],
    }  # fmt: skip
    caption = (
        f"Difference from {baseline}, to the right is better. Thin line: 95 % over seeds, cut at the edge of the picture; broad band: "
        "95 % over test images. Neither is corrected for the number of comparisons; the table's p-values are."
    )
    height = 60 + 24 * len(values)
    return Figure("differences", f"Difference from {baseline}", caption, "pairwise", spec, height=height)


COSTS: tuple[tuple[str, str, str, Callable[[Row], float | None], str], ...] = (
    ("parameters", "Trainable parameters", "trainable parameters", lambda row: row.parameters, "~s"),
    ("macs", "Multiply-accumulates", "multiply-accumulates for one image", lambda row: row.macs, "~s"),
    ("seconds", "Training time", "seconds of training", lambda row: row.train_seconds, "~g"),
    ("memory", "Peak memory", "peak memory (MiB)", lambda row: row.memory and row.memory / 2**20, "~g"),
)


def _costs(rows: Sequence[Row]) -> Iterator[Figure]:
    for name, title, axis, get, form in COSTS:
        known = [(row, float(cost)) for row in rows if row.accuracy and (cost := get(row)) is not None]
        if len({cost for _, cost in known}) < 2:
            continue
        front = set(pareto([cost for _, cost in known], [row.accuracy.mean if row.accuracy else 0 for row, _ in known]))
        values = [
            {"arm": row.arm.label, "cost": _round(cost), "accuracy": row.accuracy.mean if row.accuracy else None,
             "front": "nothing is cheaper and better" if index in front else "beaten"}
            for index, (row, cost) in enumerate(known)
        ]  # fmt: skip
        costs = [cost for _, cost in known]
        scale = {"type": "log", "nice": False} if min(costs) > 0 and max(costs) / min(costs) > 8 else {"zero": False}
        x = {"field": "cost", "type": "quantitative", "title": axis,
             "scale": {**scale, "padding": 15}, "axis": {"format": form, "labelOverlap": True}}  # fmt: skip
        y = {"field": "accuracy", "type": "quantitative", "title": "test accuracy",
             "scale": {"zero": False, "padding": 15}, "axis": {"format": "~%"}}  # fmt: skip
        on_front: Spec = {"filter": "datum.front != 'beaten'"}
        tooltip = [{"field": "arm"}, {"field": "cost", "title": axis, "format": ",.4~g"},
                   {"field": "accuracy", "format": ".2%"}]  # fmt: skip
        spec = {
            "data": {"values": values},
            "encoding": {"x": x, "y": y},
            "layer": [
                {"transform": [on_front], "mark": {"type": "line", "interpolate": "step-after", "color": COLOURS[0]}},
                {"mark": {"type": "point", "size": 70, "filled": True, "opacity": 0.9},
                 "encoding": {
                     "color": {"field": "front", "type": "nominal", "title": None,
                               "scale": {"domain": ["nothing is cheaper and better", "beaten"],
                                         "range": [COLOURS[0], COLOURS[7]]}},
                     "shape": {"field": "front", "type": "nominal", "title": None,
                               "scale": {"domain": ["nothing is cheaper and better", "beaten"],
                                         "range": ["circle", "triangle-down"]}},
                     "tooltip": tooltip}},
                {"transform": [on_front], "mark": {"type": "text", "dy": -10, "fontSize": 10, "limit": 150},
                 "encoding": {"text": {"field": "arm"}}},
            ],
        }  # fmt: skip
        caption = f"Mean test accuracy against {axis}; the line joins the Pareto front, arms that no other arm beats."
        yield Figure(f"pareto_{name}", f"Accuracy against {title.lower()}", caption, "costs", spec)


def _settings(comparison: Comparison) -> Iterator[Figure]:
    arms = [(index, arm) for index, arm in enumerate(comparison.arms) if arm.runs]
    if len(arms) < 3:
        return
    for column in comparison.varied:
        if column.is_numeric and len({column.values[index] for index, _ in arms} - {ABSENT}) >= 3:
            yield _against(column, arms)
    columns = [column for column in comparison.varied if len({column.shown(index) for index, _ in arms}) > 1]
    if 2 <= len(columns) <= 12:
        yield _parallel(columns, arms)
    weighed = [(column, _weight(column, arms)) for column in columns]
    if len(columns) >= 2 and any(weight is not None for _, weight in weighed):
        yield _importance(weighed)


def _against(column: Varied, arms: Sequence[tuple[int, Arm]]) -> Figure:
    values = []
    for index, arm in arms:
        if column.values[index] != ABSENT:
            sample = over_seeds(list(arm.final("test_accuracy").values()))
            spread = sample.std or 0.0
            values.append(
                {"arm": arm.label, "x": column.values[index], "mean": sample.mean, "low": sample.mean - spread,
                 "high": sample.mean + spread, "seeds": sample.n}
            )  # fmt: skip
    numbers = [value["x"] for value in values]
    log = bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) >= 10
    x = {"field": "x", "type": "quantitative", "title": column.key,
         "scale": {"type": "log", "nice": False, "padding": 15} if log else {"zero": False, "padding": 15},
         "axis": {"format": "~g", "labelOverlap": True, "grid": False}}  # fmt: skip
    y = {"type": "quantitative", "title": "test accuracy", "scale": {"zero": False}, "axis": {"format": "~%"}}
    tooltip = [
        {"field": "arm"},
        {"field": "x", "title": column.key},
        {"field": "mean", "format": ".2%"},
        {"field": "seeds"},
    ]
    spec = {
        "data": {"values": values},
        "encoding": {"x": x},
        "layer": [
            {"mark": {"type": "line", "color": COLOURS[7], "opacity": 0.7},
             "encoding": {"y": {"field": "mean", "aggregate": "mean", **y}}},
            {"mark": {"type": "rule", "color": COLOURS[0]},
             "encoding": {"y": {"field": "low", **y}, "y2": {"field": "high"}}},
            {"mark": {"type": "point", "filled": True, "size": 60, "color": COLOURS[0]},
             "encoding": {"y": {"field": "mean", **y}, "tooltip": tooltip}},
        ],
    }  # fmt: skip
    caption = (
        f"Test accuracy against {column.key}: a point for each arm, its line one standard deviation over seeds to either "
        "side; the grey line is the mean of the arms with that value."
    )
    name = "setting_" + column.key.replace(".", "_")
    return Figure(name, f"Accuracy against {column.key}", caption, "settings", spec)


def _parallel(columns: Sequence[Varied], arms: Sequence[tuple[int, Arm]]) -> Figure:
    lines: list[Spec] = []
    marks: list[Spec] = []
    accuracy = {index: float(np.mean(list(arm.final("test_accuracy").values()))) for index, arm in arms}
    axes: list[tuple[str, dict[int, Any], bool]] = [
        (column.title, {index: column.values[index] if column.is_numeric else column.shown(index) for index, _ in arms},
         column.is_numeric)
        for column in columns
    ]  # fmt: skip
    axes.append(("test accuracy", dict(accuracy), True))
    for title, found, numeric in axes:
        present = {index: value for index, value in found.items() if not (numeric and value == ABSENT)}
        levels = (
            sorted(set(present.values()), key=str) if not numeric else [min(present.values()), max(present.values())]
        )
        log = numeric and levels[0] > 0 and levels[1] / levels[0] >= 10

        def place(value: Any, levels: list[Any] = levels, numeric: bool = numeric, log: bool = log) -> float:
            if not numeric:
                return levels.index(value) / max(len(levels) - 1, 1)
            low, high, value = (np.log10(levels[0]), np.log10(levels[1]), np.log10(value)) if log else (*levels, value)
            return float((value - low) / ((high - low) or 1))

        lines += [
            {"arm": arm.label, "axis": title, "place": _round(place(present[index])), "accuracy": accuracy[index],
             "value": f"{100 * present[index]:.2f} %" if title == "test accuracy" else str(present[index])}
            for index, arm in arms if index in present
        ]  # fmt: skip
        for level in levels if len(levels) <= 6 else [levels[0], levels[-1]]:
            text = f"{100 * level:.2f} %" if title == "test accuracy" else f"{level:g}" if numeric else str(level)
            marks.append({"axis": title, "place": place(level), "text": text})
    x = {"field": "axis", "type": "nominal", "sort": [title for title, _, _ in axes], "title": None,
         "axis": {"labelAngle": -20, "grid": True}}  # fmt: skip
    y = {"field": "place", "type": "quantitative", "axis": None}
    spec = {
        "encoding": {"x": x, "y": y},
        "layer": [
            {"data": {"values": lines}, "mark": {"type": "line", "opacity": 0.75, "strokeWidth": 1.5},
             "encoding": {"detail": {"field": "arm"},
                          "color": {"field": "accuracy", "type": "quantitative", "scale": {"scheme": "viridis"},
                                    "legend": {"format": ".1%", "title": "test accuracy", "gradientLength": 200}},
                          "tooltip": [{"field": "arm"}, {"field": "axis"}, {"field": "value"},
                                      {"field": "accuracy", "format": ".2%"}]}},
            {"data": {"values": marks}, "mark": {"type": "text", "dx": 6, "align": "left", "fontSize": 10, "limit": 90},
             "encoding": {"text": {"field": "text"}}},
        ],
    }  # fmt: skip
    caption = "Each line is an arm, from its settings to its mean test accuracy; wide ranges are logarithmic."
    return Figure("parallel_coordinates", "Settings and accuracy together", caption, "settings", spec, height=320)


def _weight(column: Varied, arms: Sequence[tuple[int, Arm]]) -> float | None:
    groups: dict[str, list[float]] = {}
    numbers = [column.values[index] for index, _ in arms]
    binned = column.is_numeric and len(set(numbers)) > 5 and ABSENT not in numbers
    edges = np.quantile(np.array(numbers, dtype=float), [0.2, 0.4, 0.6, 0.8]) if binned else None
    for index, arm in arms:
        value = column.values[index]
        key = column.shown(index) if edges is None else str(np.searchsorted(edges, float(value)))
        groups.setdefault(key, []).extend(arm.final("test_accuracy").values())
    return importance(list(groups.values()))


def _importance(weighed: Sequence[tuple[Varied, float | None]]) -> Figure:
    values = [{"setting": column.title, "share": weight} for column, weight in weighed if weight is not None]
    values.sort(key=lambda value: -float(str(value["share"])))
    spec = {
        "data": {"values": values},
        "mark": {"type": "bar", "color": COLOURS[0]},
        "encoding": {
            "y": {"field": "setting", "type": "nominal", "sort": None, "title": None},
            "x": {"field": "share", "type": "quantitative", "title": "share of variance", "scale": {"domain": [0, 1]},
                  "axis": {"format": "%"}},
            "tooltip": [{"field": "setting"}, {"field": "share", "format": ".1%"}],
        },
    }  # fmt: skip
    caption = (
        "How much of the variance of test accuracy between runs each setting explains by itself (epsilon squared; numbers "
        "with more than five values in fifths). Settings that change together share what they explain."
    )
    height = 60 + 24 * len(values)
    return Figure("importance", "Importance of the settings", caption, "settings", spec, height=height)


def _errors(comparison: Comparison, shown: Sequence[Arm]) -> Iterator[Figure]:
    test_set = comparison.arms[comparison.baseline].test_set
    arms = [arm for arm in shown if arm.confusion is not None and arm.test_set == test_set]
    if not arms:
        return
    cells, classes = [], []
    for arm in arms:
        assert arm.confusion is not None
        for label, counts in enumerate(arm.confusion.tolist()):
            total, n = sum(counts), len(arm.correct)
            classes.append({"arm": arm.label, "digit": str(label), "accuracy": _round(counts[label] / max(total, 1))})
            cells += [
                {"arm": arm.label, "label": str(label), "predicted": str(column), "share": _round(c / max(total, 1)),
                 "errors": None if column == label else _round(c / max(total, 1)), "images": _round(c / n),
                 "text": f"{c / n:.0f}" if c / n >= 9.5 or c % n == 0 else f"{c / n:.1f}"}
                for column, c in enumerate(counts) if c
            ]  # fmt: skip
    first = arms[0].label
    yield Figure(
        "confusion",
        "Confusion matrix",
        "Images of each digit (rows) by what they were taken for (columns), mean over the arm's runs; errors are shaded. "
        f"In the files: {first}.",
        "errors",
        {
            "data": {"values": cells},
            "params": [{"name": "arm", "value": first}],
            "transform": [{"filter": "datum.arm == arm"}],
            "encoding": {
                "x": {"field": "predicted", "type": "ordinal", "title": "predicted",
                      "axis": {"labelAngle": 0, "orient": "top"}},
                "y": {"field": "label", "type": "ordinal", "title": "label"},
            },
            "layer": [
                {"mark": {"type": "rect"},
                 "encoding": {"color": {"field": "errors", "type": "quantitative", "legend": None,
                                        "scale": {"type": "sqrt", "range": ["#E69F0022", "#D55E00cc"]}},
                              "tooltip": [{"field": "label"}, {"field": "predicted"},
                                          {"field": "images", "title": "images a run", "format": ".1f"},
                                          {"field": "share", "format": ".2%", "title": "of this digit"}]}},
                {"mark": {"type": "text", "fontSize": 11}, "encoding": {"text": {"field": "text"}}},
            ],
        },
        height=330,
    )  # fmt: skip
    colour = _by_arm(arms)
    yield Figure(
        "per_class",
        "Accuracy by digit",
        "Share of each digit's test images that is recognised, all runs of an arm together.",
        "errors",
        {
            "data": {"values": classes},
            **_switch(arms),
            "mark": {"type": "line", "point": {"filled": True, "size": 45}, "strokeWidth": 1},
            "encoding": {
                "x": {"field": "digit", "type": "ordinal", "axis": {"labelAngle": 0}},
                "y": {"field": "accuracy", "type": "quantitative", "scale": {"zero": False}, "axis": {"format": "~%"}},
                **colour,
                "tooltip": [{"field": "arm"}, {"field": "digit"}, {"field": "accuracy", "format": ".2%"}],
            },
        },
        switchable=True,
    )  # fmt: skip
    bins = []
    for arm in arms:
        assert arm.calibration is not None
        for images, confidence, correct in zip(
            arm.calibration.counts, arm.calibration.confidence, arm.calibration.correct, strict=True
        ):
            if images:
                bins.append(
                    {"arm": arm.label, "confidence": _round(confidence / images), "accuracy": _round(correct / images),
                     "images": int(images)}
                )  # fmt: skip
    diagonal = [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]
    axis = {"type": "quantitative", "scale": {"domain": [0, 1]}, "axis": {"format": "%"}}
    yield Figure(
        "reliability",
        "Reliability diagram",
        "Accuracy against confidence in 15 bins, all runs of an arm together; on the dashed line a network is as often right "
        "as it says, below it is too sure. Larger points are more images.",
        "errors",
        {
            "params": _switch(arms)["params"],
            "layer": [
                {"data": {"values": diagonal}, "mark": {"type": "line", "strokeDash": [4, 3], "color": COLOURS[7]},
                 "encoding": {"x": {"field": "confidence", **axis}, "y": {"field": "accuracy", **axis}}},
                {"data": {"values": bins}, "transform": _switch(arms)["transform"],
                 "mark": {"type": "line", "strokeWidth": 1.5},
                 "encoding": {"x": {"field": "confidence", **axis}, "y": {"field": "accuracy", **axis}, **colour}},
                {"data": {"values": bins}, "transform": _switch(arms)["transform"],
                 "mark": {"type": "point", "filled": True},
                 "encoding": {"x": {"field": "confidence", **axis}, "y": {"field": "accuracy", **axis},
                              "color": colour["color"],
                              "size": {"field": "images", "type": "quantitative", "legend": None,
                                       "scale": {"type": "log", "range": [15, 150]}},
                              "tooltip": [{"field": "arm"}, {"field": "confidence", "format": ".1%"},
                                          {"field": "accuracy", "format": ".1%"}, {"field": "images"}]}},
            ],
        },
        switchable=True,
    )  # fmt: skip
