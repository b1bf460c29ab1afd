"""Figures as Vega-Lite specifications: one for the page (interactive) and for files (SVG and PNG).

Colours are those of Okabe and Ito (2008), told apart without colour vision; lines differ in their dashes, too.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnist_exp.reports.axes import (
    COUNT,
    NUMBER,
    PERCENT,
    Spec,
    accuracy_axis,
    epoch_ticks,
    in_lines,
    log_ticks,
    rounded,
    rows_of,
    swept,
    whole_legend,
    window,
)
from mnist_exp.reports.collect import Arm, Comparison
from mnist_exp.reports.pairwise import Pairwise
from mnist_exp.reports.settings import ABSENT, Varied, natural, shortened
from mnist_exp.reports.statistics import importance, over_seeds, pareto
from mnist_exp.reports.tables import Row, seeds

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F6A3B", "#888888")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
CURVES = 12  # arms in figures with a line for each; more cannot be told apart
DOTS = 40  # arms in figures with a row for each
WIDTH = 460
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # names the language's version; nothing is fetched


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
    figures.extend(_errors(comparison, rows, shown))
    return figures


def shown_arms(rows: Sequence[Row]) -> list[Arm]:
    """The arms that figures with a line for each show, in natural order: the best, and the baseline whatever its place."""
    known = [row for row in rows if row.arm.curves()]
    baseline = [row for row in known[CURVES:] if row.is_baseline]
    chosen = [*known[: CURVES - len(baseline)], *baseline]
    return [row.arm for row in sorted(chosen, key=lambda row: row.place)]


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
    _hide_legends(spec)
    return {
        "$schema": SCHEMA, **spec, "width": "container", "height": figure.height,
        "autosize": {"type": "fit-x", "contains": "padding"}, "background": "transparent", "config": config,
    }  # fmt: skip


def for_file(figure: Figure) -> Spec:
    """Fixed size on white, with its title and legend."""
    title = {"text": in_lines(figure.title, 60), "anchor": "start", "fontSize": 14}
    return {
        "$schema": SCHEMA, **figure.spec, "title": title, "width": figure.width, "height": figure.height,
        "background": "white", "config": _config(),
    }  # fmt: skip


def draw(figure: Figure) -> tuple[str, bytes]:
    """The figure as SVG text and as PNG bytes, two pixels a point."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(for_file(figure))
    return svg, vl_convert.svg_to_png(svg, scale=2)


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


def _hide_legends(node: Any) -> None:
    """The page has switches for arms, and the caption names the Pareto front."""
    if isinstance(node, dict):
        for channel in ("color", "strokeDash", "shape"):
            if isinstance(node.get(channel), dict) and node[channel].get("field") in {"arm", "front"}:
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
    legend = whole_legend(names, symbolType="stroke", symbolSize=500, symbolStrokeWidth=2, symbolOpacity=1)
    return {
        channel: {"field": "arm", "type": "nominal", "title": None, "legend": legend,
                  "scale": {"domain": names, "range": [pair[place] for pair in styles]}}
        for place, channel in enumerate(("color", "strokeDash"))
    }  # fmt: skip


def _seeds(arms: Iterable[Arm]) -> str:
    return seeds(len(arm.curves()) for arm in arms)


def _switch(arms: Sequence[Arm]) -> Spec:
    """The part of a specification by which the page switches arms on and off."""
    return {
        "params": [{"name": "shown", "value": [arm.label for arm in arms]}],
        "transform": [{"filter": "indexof(shown, datum.arm) >= 0"}],
    }


def _curves(arms: Sequence[Arm]) -> Iterator[Figure]:
    for split, metric in (("train", "loss"), ("test", "loss"), ("train", "accuracy"), ("test", "accuracy")):
        values = [value for arm in arms for value in _by_epoch(arm, f"{split}_{metric}")]
        if values:
            yield _curve(arms, split, metric, values)


def _by_epoch(arm: Arm, key: str) -> Iterator[Spec]:
    """Mean and range over the arm's runs after each epoch."""
    by_epoch: dict[int, list[float]] = {}
    for run in arm.curves():
        for row in run.metrics:
            if math.isfinite(row[key]):
                by_epoch.setdefault(int(row["epoch"]), []).append(float(row[key]))
    for epoch, measured in sorted(by_epoch.items()):
        mean, low, high = (rounded(float(f(measured))) for f in (np.mean, min, max))
        yield {"arm": arm.label, "epoch": epoch, "mean": mean, "low": low, "high": high, "runs": len(measured)}


def _curve(arms: Sequence[Arm], split: str, metric: str, values: Sequence[Spec]) -> Figure:
    name, form = f"{split} {metric}", ".2%" if metric == "accuracy" else ".4f"
    epochs = [value["epoch"] for value in values]
    x = {"field": "epoch", "type": "quantitative", "title": "epoch", "scale": {"nice": False},
         "axis": {"values": epoch_ticks(epochs), "format": "d", "grid": False}}  # fmt: skip
    ends = [value[end] for value in values for end in ("low", "high")]
    if metric == "accuracy":
        y = accuracy_axis(ends, name, margin=0.05)
    else:
        y = {"type": "quantitative", "title": f"{name} (nats)", "scale": window(ends, 0.05, low=0.0),
             "axis": {"format": NUMBER}}  # fmt: skip
    tooltip = [
        {"field": "arm", "type": "nominal"},
        {"field": "epoch", "type": "quantitative"},
        {"field": "mean", "type": "quantitative", "format": form},
        {"field": "low", "type": "quantitative", "format": form, "title": "lowest seed"},
        {"field": "high", "type": "quantitative", "format": form, "title": "highest seed"},
        {"field": "runs", "type": "quantitative"},
    ]
    colour = _by_arm(arms)
    alone = min(Counter(value["arm"] for value in values).values()) == 1  # one point makes no line
    spec = {
        "data": {"values": list(values)},
        **_switch(arms),
        "encoding": {"x": x},
        "layer": [
            {"mark": {"type": "area", "opacity": 0.18},
             "encoding": {"y": {"field": "low", **y}, "y2": {"field": "high"}, "color": colour["color"]}},
            {"mark": {"type": "line", "strokeWidth": 2, "point": {"size": 45, "opacity": int(alone)}},
             "encoding": {"y": {"field": "mean", **y}, **colour, "tooltip": tooltip}},
        ],
    }  # fmt: skip
    told = "seen while the epoch ran, in training mode" if split == "train" else "of the weights after the epoch"
    fewer = any(len({len(run.metrics) for run in arm.curves()}) > 1 for arm in arms)
    ended = (
        " Where the runs of an arm have different numbers of epochs, late points are means of fewer." if fewer else ""
    )
    caption = f"{name.capitalize()}, {told}: mean over seeds, band from the lowest to the highest seed; {_seeds(arms)}.{ended}"
    return Figure(f"curves_{split}_{metric}", name.capitalize(), caption, "curves", spec, switchable=True)


def _accuracies(rows: Sequence[Row]) -> Figure:
    shown = [row for row in rows if row.accuracy][:DOTS]
    means: list[Spec] = []
    single: list[Spec] = []
    for row in shown:
        assert row.accuracy is not None
        known = row.accuracy.interval
        means.append(
            {"arm": row.arm.label, "accuracy": row.accuracy.mean, "n": row.accuracy.n,
             "low": known.low if known else None, "high": known.high if known else None}
        )  # fmt: skip
        single += [
            {"arm": row.arm.label, "accuracy": value, "seed": seed}
            for seed, value in row.arm.final("test_accuracy").items()
        ]
    y, height = rows_of([row.arm.label for row in shown])
    x = accuracy_axis([seed["accuracy"] for seed in single])
    spec = {
        "encoding": {"y": {"field": "arm", **y}},
        "layer": [
            {"data": {"values": single}, "mark": {"type": "tick", "color": COLOURS[1], "thickness": 1.5, "size": 10},
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
        f"(line, cut at the edge of the picture; none where there is one seed); {_seeds(row.arm for row in shown)}.{more}"
    )
    return Figure("accuracy", "Test accuracy by arm", caption, "pairwise", spec, height=height)


def _differences(pairs: Sequence[Pairwise], baseline: str) -> Figure:
    known = sorted((pair for pair in pairs if pair.seeds), key=lambda pair: -(pair.seeds.mean if pair.seeds else 0))
    values: list[Spec] = []
    over_runs: list[Spec] = []
    images: list[Spec] = []
    for pair in known[:DOTS]:
        assert pair.seeds is not None
        name = pair.arm.label
        values.append({"arm": name, "points": 100 * pair.seeds.mean, "verdict": pair.verdict, "images": pair.in_images})
        for found, spans in ((pair.seeds.interval, over_runs), (pair.images and pair.images.interval, images)):
            if found:
                spans.append({"arm": name, "low": 100 * found.low, "high": 100 * found.high})
    ends = [end for image in images for end in (image["low"], image["high"])]
    x = {"type": "quantitative", "title": "difference, percentage points", "axis": {"format": NUMBER},
         "scale": window([0.0, *(value["points"] for value in values), *ends])}  # fmt: skip
    rows, height = rows_of([value["arm"] for value in values])
    y = {"field": "arm", **rows}
    span = {"x": {"field": "low", **x}, "x2": {"field": "high"}}
    spec = {
        "layer": [
            {"data": {"values": [{"zero": 0}]}, "mark": {"type": "rule", "strokeDash": [4, 3]},
             "encoding": {"x": {"field": "zero", **x}}},
            {"data": {"values": images}, "mark": {"type": "rule", "strokeWidth": 7, "opacity": 0.35,
             "color": COLOURS[4]}, "encoding": {"y": y, **span}},
            {"data": {"values": over_runs}, "mark": {"type": "rule", "strokeWidth": 2, "color": COLOURS[0],
             "clip": True}, "encoding": {"y": y, **span}},
            {"data": {"values": values}, "mark": {"type": "point", "filled": True, "size": 60, "color": COLOURS[0]},
             "encoding": {"y": y, "x": {"field": "points", **x},
                          "tooltip": [{"field": "arm"}, {"field": "points", "format": "+.2f"},
                                      {"field": "images", "title": "test images"}, {"field": "verdict"}]}},
        ],
    }  # fmt: skip
    caption = (
        f"Difference of the mean test accuracy from that of {baseline}, to the right is better. Thin line: 95 % over seeds, cut at the edge of the picture; broad band: "
        "95 % over test images. Neither is corrected for the number of comparisons; the table's p-values are."
        + (f" The best {DOTS} of {len(known)} arms." if len(known) > DOTS else "")
    )
    return Figure("differences", f"Difference from {baseline}", caption, "pairwise", spec, height=height)


def _costs(rows: Sequence[Row]) -> Iterator[Figure]:
    known = [row for row in rows if row.accuracy]
    longest = max((row.train_seconds or 0.0 for row in known), default=0.0)
    unit, length = ("hours", 3600) if longest >= 7200 else ("minutes", 60) if longest >= 120 else ("seconds", 1)
    costs: tuple[tuple[str, str, str, Callable[[Row], float | None], str], ...] = (
        ("parameters", "Trainable parameters", "trainable parameters", lambda row: row.parameters, COUNT),
        ("macs", "Multiply-accumulates", "multiply-accumulates for one image", lambda row: row.macs, COUNT),
        ("seconds", "Training time", f"{unit} of training",
         lambda row: None if row.train_seconds is None else row.train_seconds / length, NUMBER),
        ("memory", "Peak memory", "peak memory (MiB)", lambda row: row.memory and row.memory / 2**20, NUMBER),
    )  # fmt: skip
    for name, title, axis, get, form in costs:
        measured = [(row, float(cost)) for row in known if (cost := get(row)) is not None]
        if len({cost for _, cost in measured}) >= 2:
            yield _cost(name, title, axis, measured, form)


def _cost(name: str, title: str, axis: str, measured: Sequence[tuple[Row, float]], form: str) -> Figure:
    costs = [cost for _, cost in measured]
    accuracies = [row.mean or 0.0 for row, _ in measured]
    front = {index: number for number, index in enumerate(pareto(costs, accuracies), start=1)}
    texts = {index: f"{number} {measured[index][0].arm.label}" for index, number in front.items()}
    beaten = "beaten by one of these"
    at: dict[tuple[float, float], list[str]] = {}  # arms in one place share a text
    for index, number in front.items():
        at.setdefault((costs[index], accuracies[index]), []).append(str(number))
    values = [
        {"arm": row.arm.label, "cost": cost, "accuracy": row.mean, "front": texts.get(index, beaten),
         "text": ", ".join(at.pop((cost, accuracies[index]), [])) if index in front else ""}
        for index, (row, cost) in enumerate(measured)
    ]  # fmt: skip
    log = min(costs) > 0 and max(costs) / min(costs) > 8
    x = {"field": "cost", "type": "quantitative", "title": axis,
         "scale": {"type": "log", "nice": False, "padding": 20} if log else window(costs, low=0.0),
         "axis": {"format": form, "labelOverlap": "greedy"} | ({"values": log_ticks(min(costs), max(costs))} if log else {})}  # fmt: skip
    keys = [*texts.values(), beaten]
    colours = [COLOURS[0]] * len(texts) + [COLOURS[7]]
    shapes = ["circle"] * len(texts) + ["triangle-down"]
    look = {"field": "front", "type": "nominal", "title": None, "legend": whole_legend(keys)}
    tooltip = [{"field": "arm"}, {"field": "cost", "title": axis, "format": NUMBER},
               {"field": "accuracy", "format": ".2%"}]  # fmt: skip
    on_front: Spec = {"filter": f"datum.front != '{beaten}'"}
    spec = {
        "data": {"values": values},
        "encoding": {"x": x, "y": {"field": "accuracy", **accuracy_axis(accuracies)}},
        "layer": [
            {"transform": [on_front], "mark": {"type": "line", "interpolate": "step-after", "color": COLOURS[0]}},
            {"mark": {"type": "point", "size": 70, "filled": True, "opacity": 0.9},
             "encoding": {"color": {**look, "scale": {"domain": keys, "range": colours}},
                          "shape": {**look, "scale": {"domain": keys, "range": shapes}}, "tooltip": tooltip}},
            {"mark": {"type": "text", "dy": -10, "fontSize": 11}, "encoding": {"text": {"field": "text"}}},
        ],
    }  # fmt: skip
    caption = (
        f"Mean test accuracy against {axis}. The line joins the Pareto front, the arms that no other arm beats: "
        f"{'; '.join(texts.values())}. Triangles are beaten by one of these; {_seeds(row.arm for row, _ in measured)}."
    )
    return Figure(f"pareto_{name}", f"Accuracy against {title.lower()}", caption, "costs", spec)


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
    ends = [value[end] for value in values for end in ("low", "high")]
    x = {"field": "x", "type": "quantitative", "title": column.key, **swept([value["x"] for value in values])}
    y = accuracy_axis(ends)
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
        f"side; the grey line is the mean of the arms with that value; {_seeds(arm for _, arm in arms)}."
    )
    name = "setting_" + column.key.replace(".", "_")
    return Figure(name, f"Accuracy against {column.key}", caption, "settings", spec)


def _parallel(columns: Sequence[Varied], arms: Sequence[tuple[int, Arm]]) -> Figure:
    lines: list[Spec] = []
    marks: list[Spec] = []
    accuracy = {index: float(np.mean(list(arm.final("test_accuracy").values()))) for index, arm in arms}
    for column in columns:
        texts = shortened(column)
        shown = {index: texts[index] for index, _ in arms}
        levels = list(dict.fromkeys(shown[i] for i in sorted(shown, key=lambda i: natural(column.values[i]))))
        lines += [
            {"arm": arm.label, "axis": column.title, "place": rounded(levels.index(shown[index]) / max(len(levels) - 1, 1)),
             "accuracy": accuracy[index], "value": shown[index]}
            for index, arm in arms
        ]  # fmt: skip
        for position in range(0, len(levels), -(-len(levels) // 12)):
            place = rounded(position / max(len(levels) - 1, 1))
            marks.append({"axis": column.title, "place": place, "text": in_lines(levels[position], 14)})
    low, high = min(accuracy.values()), max(accuracy.values())
    for index, arm in arms:
        place = rounded((accuracy[index] - low) / ((high - low) or 1))
        lines.append({"arm": arm.label, "axis": "test accuracy", "place": place, "accuracy": accuracy[index],
                      "value": f"{100 * accuracy[index]:.2f} %"})  # fmt: skip
    for place, level in enumerate(dict.fromkeys((low, high))):
        marks.append({"axis": "test accuracy", "place": place, "text": [f"{100 * level:.2f} %"]})
    titles = [*(column.title for column in columns), "test accuracy"]
    x = {"field": "axis", "type": "nominal", "sort": titles, "title": None,
         "axis": {"labelAngle": -20, "grid": True, "labelLimit": 0}}  # fmt: skip
    colour = {"field": "accuracy", "type": "quantitative", "legend":
              {"format": PERCENT, "title": "test accuracy", "gradientLength": 300, "tickCount": 4, "labelOverlap": True},
              "scale": {"scheme": "viridis"} if high > low else {"scheme": "viridis", **window([low])}}  # fmt: skip
    spec = {
        "encoding": {"x": x, "y": {"field": "place", "type": "quantitative", "axis": None}},
        "layer": [
            {"data": {"values": lines}, "mark": {"type": "line", "opacity": 0.75, "strokeWidth": 1.5},
             "encoding": {"detail": {"field": "arm"}, "color": colour,
                          "tooltip": [{"field": "arm"}, {"field": "axis"}, {"field": "value"},
                                      {"field": "accuracy", "format": ".2%"}]}},
            {"data": {"values": marks}, "mark": {"type": "text", "dx": 6, "align": "left", "fontSize": 10},
             "encoding": {"text": {"field": "text"}}},
        ],
    }  # fmt: skip
    caption = (
        "Each line is an arm, from its settings to its mean test accuracy. The values of a setting stand in their order, "
        f"evenly spaced; {_seeds(arm for _, arm in arms)}."
    )
    width = max(WIDTH, 100 * len(titles))
    return Figure(
        "parallel_coordinates", "Settings and accuracy together", caption, "settings", spec, height=320, width=width
    )


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
    y, height = rows_of([str(value["setting"]) for value in values])
    spec = {
        "data": {"values": values},
        "mark": {"type": "bar", "color": COLOURS[0]},
        "encoding": {
            "y": {"field": "setting", **y},
            "x": {"field": "share", "type": "quantitative", "title": "share of variance", "scale": {"domain": [0, 1]},
                  "axis": {"format": "%"}},
            "tooltip": [{"field": "setting"}, {"field": "share", "format": ".1%"}],
        },
    }  # fmt: skip
    caption = (
        "How much of the variance of test accuracy between runs each setting explains by itself (epsilon squared; numbers "
        "with more than five values in fifths). Settings that change together share what they explain."
    )
    return Figure("importance", "Importance of the settings", caption, "settings", spec, height=height)


def _errors(comparison: Comparison, rows: Sequence[Row], shown: Sequence[Arm]) -> Iterator[Figure]:
    test_set = comparison.arms[comparison.baseline].test_set
    arms = [arm for arm in shown if arm.confusion is not None and arm.test_set == test_set]
    if not arms:
        return
    cells: list[Spec] = []
    classes: list[Spec] = []
    for arm in arms:
        assert arm.confusion is not None
        for label, counts in enumerate(arm.confusion.tolist()):
            total, n = sum(counts), len(arm.correct)
            classes.append({"arm": arm.label, "digit": label, "accuracy": rounded(counts[label] / max(total, 1))})
            cells += [
                {"arm": arm.label, "label": label, "predicted": column, "share": rounded(c / max(total, 1)),
                 "errors": None if column == label else rounded(c / max(total, 1)), "images": rounded(c / n),
                 "text": f"{c / n:.0f}" if c / n >= 9.5 or c % n == 0 else f"{c / n:.1f}"}
                for column, c in enumerate(counts) if c
            ]  # fmt: skip
    first = next(row.arm.label for row in rows if any(row.arm is arm for arm in arms))
    number = len(arms[0].confusion) if arms[0].confusion is not None else 0
    all_classes = {"domain": list(range(number))}
    font = max(5, min(11, 220 // number))
    yield Figure(
        "confusion",
        "Confusion matrix",
        "Images of each digit (rows) by what they were taken for (columns), mean over the arm's runs; errors are shaded. "
        f"{_seeds(arms)}. In the files: {first}.",
        "errors",
        {
            "data": {"values": cells},
            "params": [{"name": "arm", "value": first}],
            "transform": [{"filter": "datum.arm == arm"}],
            "encoding": {
                "x": {"field": "predicted", "type": "ordinal", "title": "predicted", "scale": all_classes,
                      "axis": {"labelAngle": 0, "orient": "top"}},
                "y": {"field": "label", "type": "ordinal", "title": "label", "scale": all_classes},
            },
            "layer": [
                {"mark": {"type": "rect"},
                 "encoding": {"color": {"field": "errors", "type": "quantitative", "legend": None,
                                        "scale": {"type": "sqrt", "range": ["#E69F0022", "#D55E00cc"]}},
                              "tooltip": [{"field": "label"}, {"field": "predicted"},
                                          {"field": "images", "title": "images a run", "format": ".1f"},
                                          {"field": "share", "format": ".2%", "title": "of this digit"}]}},
                {"mark": {"type": "text", "fontSize": font}, "encoding": {"text": {"field": "text"}}},
            ],
        },
        height=330,
    )  # fmt: skip
    colour = _by_arm(arms)
    yield Figure(
        "per_class",
        "Accuracy by digit",
        f"Share of each digit's test images that is recognised, all runs of an arm together; {_seeds(arms)}.",
        "errors",
        {
            "data": {"values": classes},
            **_switch(arms),
            "mark": {"type": "line", "point": {"filled": True, "size": 45}, "strokeWidth": 1},
            "encoding": {
                "x": {"field": "digit", "type": "ordinal", "axis": {"labelAngle": 0}},
                "y": {"field": "accuracy", **accuracy_axis([value["accuracy"] for value in classes], "accuracy", margin=0.05)},
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
                    {"arm": arm.label, "confidence": rounded(confidence / images), "accuracy": rounded(correct / images),
                     "images": int(images)}
                )  # fmt: skip
    diagonal = [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]
    axis = {"type": "quantitative", "scale": {"domain": [0, 1]}, "axis": {"format": "%", "tickCount": 5}}
    yield Figure(
        "reliability",
        "Reliability diagram",
        "Accuracy against confidence in 15 bins, all runs of an arm together; on the dashed line a network is as often right "
        f"as it says, below it is too sure. Larger points are more images; {_seeds(arms)}.",
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
