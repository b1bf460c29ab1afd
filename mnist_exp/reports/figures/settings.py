"""Accuracy against the settings that differ between arms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mnist_exp.reports.axes import PERCENT, Spec, accuracy_axis, in_lines, rounded, rows_of, swept, window
from mnist_exp.reports.collect import Arm, Comparison
from mnist_exp.reports.figures.parts import COLOURS, DOT, WIDTH, Figure, layer, seeds_of, tip
from mnist_exp.reports.statistics import importance, over_seeds
from mnist_exp.reports.tables import Measure
from mnist_exp.runs.settings import ABSENT, Varied, natural, shortened


def settings(comparison: Comparison, measure: Measure) -> Iterator[Figure]:
    """The figures about settings; none for fewer than three arms with a result."""
    arms = [(index, arm) for index, arm in enumerate(comparison.arms) if arm.final(measure.key)]
    if len(arms) < 3:
        return
    for column in comparison.varied:
        if column.is_numeric and len({column.values[index] for index, _ in arms} - {ABSENT}) >= 3:
            yield _against(column, arms, measure)
    columns = [column for column in comparison.varied if len({column.shown(index) for index, _ in arms}) > 1]
    if 2 <= len(columns) <= 12:
        yield _parallel(columns, arms, measure)
    importances = [(column, _weight(column, arms, measure)) for column in columns]
    if len(columns) >= 2 and any(weight is not None for _, weight in importances):
        yield _importance(importances, measure)


def _against(column: Varied, arms: Sequence[tuple[int, Arm]], measure: Measure) -> Figure:
    values = []
    for index, arm in arms:
        if column.values[index] != ABSENT:
            sample = over_seeds(list(arm.final(measure.key).values()))
            spread = sample.std or 0.0
            values.append(
                {"arm": arm.label, "x": column.values[index], "mean": sample.mean, "low": sample.mean - spread,
                 "high": sample.mean + spread, "seeds": sample.n}
            )  # fmt: skip
    ends = [value[end] for value in values for end in ("low", "high")]
    x = {"field": "x", "type": "quantitative", "title": column.key, **swept([value["x"] for value in values])}
    y = accuracy_axis(ends, measure.title)
    line = {"type": "line", "color": COLOURS[7], "opacity": 0.7}
    tooltip = [tip("arm"), tip("x", title=column.key), tip("mean", ".2%"), tip("seeds")]
    spec = {
        "data": {"values": values},
        "encoding": {"x": x},
        "layer": [
            layer(line, y={"field": "mean", "aggregate": "mean", **y}),
            layer({"type": "rule", "color": COLOURS[0]}, y={"field": "low", **y}, y2={"field": "high"}),
            layer(DOT, y={"field": "mean", **y}, tooltip=tooltip),
        ],
    }
    caption = (
        f"{measure.title.capitalize()} against {column.key}: a point for each arm, its line one standard deviation over seeds to either "
        f"side; the grey line is the mean of the arms with that value; {seeds_of(arm for _, arm in arms)}."
    )
    name = "setting_" + column.key.replace(".", "_")
    return Figure(name, f"Accuracy against {column.key}", caption, "settings", spec)


def _parallel(columns: Sequence[Varied], arms: Sequence[tuple[int, Arm]], measure: Measure) -> Figure:
    lines: list[Spec] = []
    marks: list[Spec] = []
    accuracy = {index: float(np.mean(list(arm.final(measure.key).values()))) for index, arm in arms}
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
        lines.append({"arm": arm.label, "axis": measure.title, "place": place, "accuracy": accuracy[index],
                      "value": f"{100 * accuracy[index]:.2f} %"})  # fmt: skip
    for place, level in enumerate(dict.fromkeys((low, high))):
        marks.append({"axis": measure.title, "place": place, "text": [f"{100 * level:.2f} %"]})
    titles = [*(column.title for column in columns), measure.title]
    x = {"field": "axis", "type": "nominal", "sort": titles, "title": None,
         "axis": {"labelAngle": -20, "grid": True, "labelLimit": 0}}  # fmt: skip
    colour = {"field": "accuracy", "type": "quantitative", "legend":
              {"format": PERCENT, "title": measure.title, "gradientLength": 300, "tickCount": 4, "labelOverlap": True},
              "scale": {"scheme": "viridis"} if high > low else {"scheme": "viridis", **window([low])}}  # fmt: skip
    spec = {
        "encoding": {"x": x, "y": {"field": "place", "type": "quantitative", "axis": None}},
        "layer": [
            layer({"type": "line", "opacity": 0.75, "strokeWidth": 1.5}, lines, detail={"field": "arm"}, color=colour,
                  tooltip=[tip("arm"), tip("axis"), tip("value"), tip("accuracy", ".2%")]),
            layer({"type": "text", "dx": 6, "align": "left", "fontSize": 10}, marks, text={"field": "text"}),
        ],
    }  # fmt: skip
    caption = (
        f"Each line is an arm, from its settings to its mean {measure.title}. The values of a setting are in natural order, "
        f"evenly spaced; {seeds_of(arm for _, arm in arms)}."
    )
    width = max(WIDTH, 100 * len(titles))
    return Figure(
        "parallel_coordinates", "Settings and accuracy together", caption, "settings", spec, height=320, width=width
    )


def _weight(column: Varied, arms: Sequence[tuple[int, Arm]], measure: Measure) -> float | None:
    groups: dict[str, list[float]] = {}
    numbers = [column.values[index] for index, _ in arms]
    binned = column.is_numeric and len(set(numbers)) > 5 and ABSENT not in numbers
    edges = np.quantile(np.array(numbers, dtype=float), [0.2, 0.4, 0.6, 0.8]) if binned else None
    for index, arm in arms:
        value = column.values[index]
        key = column.shown(index) if edges is None else str(np.searchsorted(edges, float(value)))
        groups.setdefault(key, []).extend(arm.final(measure.key).values())
    return importance(list(groups.values()))


def _importance(importances: Sequence[tuple[Varied, float | None]], measure: Measure) -> Figure:
    values = [{"setting": column.title, "share": weight} for column, weight in importances if weight is not None]
    values.sort(key=lambda value: -float(str(value["share"])))
    y, height = rows_of([str(value["setting"]) for value in values])
    x = {"field": "share", "type": "quantitative", "title": "share of variance", "scale": {"domain": [0, 1]},
         "axis": {"format": "%"}}  # fmt: skip
    tooltip = [tip("setting"), tip("share", ".1%")]
    spec = layer({"type": "bar", "color": COLOURS[0]}, values, y={"field": "setting", **y}, x=x, tooltip=tooltip)
    caption = (
        f"How much of the variance of {measure.title} between runs each setting explains by itself (epsilon squared; numbers "
        "with more than five values in fifths). Settings that change together share what they explain."
    )
    return Figure("importance", "Importance of the settings", caption, "settings", spec, height=height)
