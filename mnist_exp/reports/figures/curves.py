"""Error and loss by epoch, for test, validation and training data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from mnist_exp.reports.axes import NUMBER, PERCENT, Spec, epoch_ticks, rounded
from mnist_exp.reports.collect import Arm
from mnist_exp.reports.figures.parts import Figure, by_arm, layer, seeds_of, switch, tip
from mnist_exp.runs import Run

SPLITS = {"test": "test", "validation": "val", "training": "train"}  # as shown, and in the records
STROKES = {"test": 2.5, "validation": 1.25, "training": 1.0}  # width in pixels
# On more than about two powers of ten only these have ticks; on less, so many that a part has some, too.
TICKS = {"expr": "log(domain('y')[1] / domain('y')[0]) > 5 ? 2 : 8"}
OPACITIES = {"test": 1.0, "validation": 0.9, "training": 0.55}
ENDS = ("mean", "low", "high")
SINGLE = 20  # runs of an arm whose curves the page has; more would make it large


def curves(arms: Sequence[Arm]) -> Iterator[Figure]:
    """A figure for error and one for loss, each with all splits that were recorded."""
    for metric in ("error", "loss"):
        values = [
            value
            for place, arm in enumerate(arms)
            for split in SPLITS
            for value in _by_epoch(arm, place, split, metric)
        ]
        if values:
            floor = _floor(values, arms)
            raised = _raise_zeros(values, floor)
            single = tuple(
                _single(run, arm, place, metric, floor)
                for place, arm in enumerate(arms)
                for run in [*arm.runs.values(), *arm.others][:SINGLE]
                if run.metrics
            )
            yield _curve(arms, metric, values, single, floor if raised else None)


def default_splits(arms: Sequence[Arm]) -> list[str]:
    """The splits that are drawn at first: all for one arm; fewer for several, because the lines would hide each other.

    A split that was evaluated after few epochs, or never, is left out.
    """
    rows = [row for arm in arms for run in arm.curves() for row in run.metrics]
    recorded = {split: sum(f"{name}_loss" in row for row in rows) for split, name in SPLITS.items()}
    often = [split for split, number in recorded.items() if number and 2 * number >= max(recorded.values())]
    return (
        often
        if len(arms) == 1
        else [split for split in often if split != "training"][: 2 if len(arms) <= 4 else 1] or often
    )


def recorded_splits(figure: Figure) -> list[str]:
    """The splits that a figure of curves has."""
    found = {value["split"] for value in figure.spec["data"]["values"]}
    return [split for split in SPLITS if split in found]


def _by_epoch(arm: Arm, place: int, split: str, metric: str) -> Iterator[Spec]:
    """Mean and range over the arm's runs after each epoch."""
    by_epoch: dict[int, list[float]] = {}
    for run in arm.curves():
        for epoch, value in zip(_epochs(run), _values(run, split, metric), strict=True):
            if value is not None:
                by_epoch.setdefault(epoch, []).append(value)
    for epoch, measured in sorted(by_epoch.items()):
        mean, low, high = (rounded(float(f(measured))) for f in (np.mean, min, max))
        yield {"arm": arm.label, "key": f"{split}{place}", "split": split, "epoch": epoch,
               "mean": mean, "low": low, "high": high, "runs": len(measured)}  # fmt: skip


def _epochs(run: Run) -> list[int]:
    return [int(row["epoch"]) for row in run.metrics]


def _values(run: Run, split: str, metric: str) -> list[float | None]:
    """Error or loss of a split after each epoch; None where it was not recorded, or is not finite."""
    key = f"{SPLITS[split]}_{'accuracy' if metric == 'error' else 'loss'}"
    found = (row.get(key) for row in run.metrics)
    known = (value if value is not None and math.isfinite(value) else None for value in found)
    return [value if value is None or metric == "loss" else 1 - value for value in known]


def _single(run: Run, arm: Arm, place: int, metric: str, floor: float) -> Spec:
    """The curves of one run, as lists."""
    splits = {
        split: [value if value is None else rounded(value) or floor for value in _values(run, split, metric)]
        for split in SPLITS
    }
    return {"arm": arm.label, "place": place, "seed": run.config.seed, "status": str(run.status), "epochs": _epochs(run),
            "splits": {split: values for split, values in splits.items() if any(value is not None for value in values)}}  # fmt: skip


def _curve(
    arms: Sequence[Arm], metric: str, values: list[Spec], single: tuple[Spec, ...], raised: float | None
) -> Figure:
    name = f"{metric} (nats)" if metric == "loss" else metric
    form = ".3~%" if metric == "error" else ".4f"
    epochs = [value["epoch"] for value in values]
    x = {"field": "epoch", "type": "quantitative", "title": "epoch", "scale": {"nice": False, "zero": False},
         "axis": {"values": epoch_ticks(epochs), "format": "d", "grid": False}}  # fmt: skip
    axis = {"format": PERCENT if metric == "error" else NUMBER, "labelOverlap": "greedy", "tickCount": TICKS}
    scale = {"type": "log", "nice": False, "padding": 8}
    y: Spec = {"type": "quantitative", "title": name, "scale": scale, "axis": axis}
    colour: Spec = by_arm(arms)
    per_line = Counter((value["arm"], value["split"]) for value in values)
    look: Spec = {
        channel: {"field": "split", "type": "ordinal", "legend": None,
                  "scale": {"domain": list(sizes), "range": list(sizes.values())}}
        for channel, sizes in (("strokeWidth", STROKES), ("strokeOpacity", OPACITIES))
    }  # fmt: skip
    first = default_splits(arms)
    band: Spec = {"y": {"field": "low", **y}, "y2": {"field": "high"}}
    line = {
        "type": "line",
        "point": {"size": 45, "opacity": int(min(per_line.values()) == 1)},
    }  # a line needs two points
    switched = switch(arms)
    spec = {
        "data": {"name": "curves", "values": values},
        "params": [
            *switched["params"],
            {"name": "splits", "value": first},
            {"name": "first", "value": min(epochs)},
        ],
        "transform": [*switched["transform"], {"filter": "indexof(splits, datum.split) >= 0 && datum.epoch >= first"}],
        "encoding": {"x": x},
        "layer": [
            {**layer({"type": "area", "opacity": 0.18}, **band, color=colour["color"]),
             "transform": [{"filter": f"datum.split == '{first[0]}'"}]},
            layer(line, y={"field": "mean", **y}, **colour, **look),
            _all_at_an_epoch(arms, values, form),
        ],
    }  # fmt: skip
    return Figure(f"curves_{metric}", f"{metric.capitalize()} by epoch", _caption(arms, values, metric, raised),
                  "curves", spec, switchable=True, single_runs=single, height=340)  # fmt: skip


def _floor(values: Sequence[Spec], arms: Sequence[Arm]) -> float:
    """What is drawn instead of zero, which a log axis has not: half an image of the test set."""
    smallest = min((value[end] for value in values for end in ENDS if value[end] > 0), default=1.0)
    images = max((arm.test_images or 0 for arm in arms), default=0)
    return rounded(0.5 / images if images else smallest / 2)


def _raise_zeros(values: Sequence[Spec], floor: float) -> bool:
    """Replace zeros by ``floor``; whether there was one."""
    zeros = [(value, end) for value in values for end in ENDS if value[end] <= 0]
    for value, end in zeros:
        value[end] = floor
    return bool(zeros)


def _all_at_an_epoch(arms: Sequence[Arm], values: Sequence[Spec], form: str) -> Spec:
    """A rule at the epoch nearest to the pointer, whose tooltip has the means of all curves there."""
    keys = dict.fromkeys((value["key"], value["arm"], value["split"]) for value in values)
    texts = [
        tip(key, form, split if len(arms) == 1 else arm if split == "test" else f"{arm} ({split})", "quantitative")
        for key, arm, split in keys
    ]
    near = {"type": "point", "fields": ["epoch"], "nearest": True, "on": "pointerover", "clear": "pointerout"}
    shade = {"condition": {"param": "near", "empty": False, "value": 0.5}, "value": 0}
    rule = layer("rule", opacity=shade, tooltip=[tip("epoch", kind="quantitative"), *texts])
    return {
        **rule,
        "params": [{"name": "near", "select": near}],
        "transform": [{"pivot": "key", "value": "mean", "groupby": ["epoch"]}],
    }


def _caption(arms: Sequence[Arm], values: Sequence[Spec], metric: str, raised: float | None) -> str:
    splits = {value["split"] for value in values}
    marks = {"test": "thick: test", "validation": "thin: validation", "training": "faint: training (in training mode)"}
    what = "Share of images that are wrong (100 % minus accuracy)" if metric == "error" else "Loss"
    fewer = any(len({len(run.metrics) for run in arm.curves()}) > 1 for arm in arms)
    later = (
        " Where the runs of an arm have different numbers of epochs, late points are means of fewer." if fewer else ""
    )
    zero = f" No error at all is drawn at {100 * raised:.3g} %." if raised and metric == "error" else ""
    return (
        f"{what}, on a log axis, so that late differences can be seen: mean over seeds, band from the lowest to the highest "
        f"seed of the {default_splits(arms)[0]} data. {'; '.join(marks[split] for split in SPLITS if split in splits).capitalize()}; "
        f"{seeds_of(arms)}.{zero}{later}"
    )
