"""Accuracy against costs: parameters, multiply-accumulates, time, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mnist_exp.reports.axes import COUNT, NUMBER, Spec, accuracy_axis, log_ticks, whole_legend, window
from mnist_exp.reports.figures.parts import COLOURS, Figure, layer, seeds_of, tip
from mnist_exp.reports.statistics import pareto
from mnist_exp.reports.tables import Measure, Row


def costs(rows: Sequence[Row], measure: Measure) -> Iterator[Figure]:
    """A figure for each cost that differs between arms."""
    known = [row for row in rows if measure.of(row)]
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
            yield _cost(name, title, axis, measured, form, measure)


def _cost(
    name: str, title: str, axis: str, measured: Sequence[tuple[Row, float]], form: str, measure: Measure
) -> Figure:
    costs = [cost for _, cost in measured]
    accuracies = [sample.mean for row, _ in measured if (sample := measure.of(row))]
    front = {index: number for number, index in enumerate(pareto(costs, accuracies), start=1)}
    texts = {index: f"{number} {measured[index][0].arm.label}" for index, number in front.items()}
    beaten = "not on the front"
    at: dict[tuple[float, float], list[str]] = {}  # arms at the same point share a text
    for index, number in front.items():
        at.setdefault((costs[index], accuracies[index]), []).append(str(number))
    values = [
        {"arm": row.arm.label, "cost": cost, "accuracy": accuracies[index], "front": texts.get(index, beaten),
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
    looks: Spec = {
        channel: {**look, "scale": {"domain": keys, "range": range_}}
        for channel, range_ in (("color", colours), ("shape", shapes))
    }
    tooltip = [tip("arm"), tip("cost", NUMBER, axis), tip("accuracy", ".2%")]
    on_front: Spec = {"filter": f"datum.front != '{beaten}'"}
    spec = {
        "data": {"values": values},
        "encoding": {"x": x, "y": {"field": "accuracy", **accuracy_axis(accuracies, measure.title)}},
        "layer": [
            {"transform": [on_front], "mark": {"type": "line", "interpolate": "step-after", "color": COLOURS[0]}},
            layer({"type": "point", "size": 70, "filled": True, "opacity": 0.9}, **looks, tooltip=tooltip),
            layer({"type": "text", "dy": -10, "fontSize": 11}, text={"field": "text"}),
        ],
    }
    caption = (
        f"Mean {measure.title} against {axis}. The line is the Pareto front: the arms for which no other arm is as accurate at "
        f"a lower cost, or more accurate at the same cost: {'; '.join(texts.values())}. Triangles are the other arms; {seeds_of(row.arm for row, _ in measured)}."
    )
    return Figure(f"pareto_{name}", f"Accuracy against {title.lower()}", caption, "costs", spec)
