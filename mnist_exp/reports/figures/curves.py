"""Loss and accuracy by epoch, for training and test data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from mnist_exp.reports.axes import NUMBER, Spec, accuracy_axis, epoch_ticks, rounded, window
from mnist_exp.reports.collect import Arm
from mnist_exp.reports.figures.parts import Figure, by_arm, layer, seeds_of, switch, tip


def curves(arms: Sequence[Arm]) -> Iterator[Figure]:
    """A figure for each split and metric that was recorded."""
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
    number: Spec = {"kind": "quantitative"}
    tooltip = [
        tip("arm", kind="nominal"),
        tip("epoch", **number),
        tip("mean", form, **number),
        tip("low", form, "lowest seed", **number),
        tip("high", form, "highest seed", **number),
        tip("runs", **number),
    ]
    colour: Spec = by_arm(arms)
    has_single = min(Counter(value["arm"] for value in values).values()) == 1  # a line needs two points
    band: Spec = {"y": {"field": "low", **y}, "y2": {"field": "high"}}
    line = {"type": "line", "strokeWidth": 2, "point": {"size": 45, "opacity": int(has_single)}}
    spec = {
        "data": {"values": list(values)},
        **switch(arms),
        "encoding": {"x": x},
        "layer": [
            layer({"type": "area", "opacity": 0.18}, **band, color=colour["color"]),
            layer(line, y={"field": "mean", **y}, **colour, tooltip=tooltip),
        ],
    }
    when = "measured during the epoch, in training mode" if split == "train" else "of the weights after the epoch"
    fewer = any(len({len(run.metrics) for run in arm.curves()}) > 1 for arm in arms)
    ended = (
        " Where the runs of an arm have different numbers of epochs, late points are means of fewer." if fewer else ""
    )
    caption = f"{name.capitalize()}, {when}: mean over seeds, band from the lowest to the highest seed; {seeds_of(arms)}.{ended}"
    return Figure(f"curves_{split}_{metric}", name.capitalize(), caption, "curves", spec, switchable=True)
