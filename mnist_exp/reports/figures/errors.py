"""Confusion matrix, accuracy by class, and reliability diagram."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mnist_exp.reports.axes import Spec, accuracy_axis, rounded
from mnist_exp.reports.collect import Arm, Comparison
from mnist_exp.reports.figures.parts import COLOURS, Figure, by_arm, layer, seeds_of, switch, tip
from mnist_exp.reports.tables import Row


def errors(comparison: Comparison, rows: Sequence[Row], shown: Sequence[Arm]) -> Iterator[Figure]:
    """The figures about errors, of the arms that were tested on the baseline's test set."""
    test_set = comparison.arms[comparison.baseline].test_set
    arms = [arm for arm in shown if arm.confusion is not None and arm.test_set == test_set]
    if arms:
        first = next(row.arm.label for row in rows if any(row.arm is arm for arm in arms))
        yield _confusion(arms, first)
        yield _per_class(arms)
        yield _reliability(arms)


def _confusion(arms: Sequence[Arm], first: str) -> Figure:
    cells = [cell for arm in arms for cell in _cells(arm)]
    number = len(arms[0].confusion) if arms[0].confusion is not None else 0
    classes = {"domain": list(range(number))}
    shade = {"field": "errors", "type": "quantitative", "legend": None,
             "scale": {"type": "sqrt", "range": ["#E69F0022", "#D55E00cc"]}}  # fmt: skip
    tooltip = [
        tip("label"),
        tip("predicted"),
        tip("images", ".1f", "images a run"),
        tip("share", ".2%", "of this digit"),
    ]
    spec = {
        "data": {"values": cells},
        "params": [{"name": "arm", "value": first}],
        "transform": [{"filter": "datum.arm == arm"}],
        "encoding": {
            "x": {"field": "predicted", "type": "ordinal", "title": "predicted", "scale": classes,
                  "axis": {"labelAngle": 0, "orient": "top"}},
            "y": {"field": "label", "type": "ordinal", "title": "label", "scale": classes},
        },
        "layer": [
            layer("rect", color=shade, tooltip=tooltip),
            layer({"type": "text", "fontSize": max(5, min(11, 220 // number))}, text={"field": "text"}),
        ],
    }  # fmt: skip
    caption = (
        "Number of images by label (rows) and prediction (columns), mean over the arm's runs; errors are shaded. "
        f"{seeds_of(arms)}. In the files: {first}."
    )
    return Figure("confusion", "Confusion matrix", caption, "errors", spec, height=330)


def _cells(arm: Arm) -> Iterator[Spec]:
    """The cells of a confusion matrix that are not empty."""
    assert arm.confusion is not None
    runs = len(arm.correct)
    for label, counts in enumerate(arm.confusion.tolist()):
        total = max(sum(counts), 1)
        for column, count in enumerate(counts):
            if count:
                a_run = count / runs
                yield {
                    "arm": arm.label,
                    "label": label,
                    "predicted": column,
                    "share": rounded(count / total),
                    "errors": None if column == label else rounded(count / total),
                    "images": rounded(a_run),
                    "text": f"{a_run:.0f}" if a_run >= 9.5 or count % runs == 0 else f"{a_run:.1f}",
                }


def _per_class(arms: Sequence[Arm]) -> Figure:
    values: list[Spec] = [
        {"arm": arm.label, "digit": label, "accuracy": rounded(counts[label] / max(sum(counts), 1))}
        for arm in arms
        if arm.confusion is not None
        for label, counts in enumerate(arm.confusion.tolist())
    ]
    y = accuracy_axis([value["accuracy"] for value in values], "accuracy", margin=0.05)
    line = {"type": "line", "point": {"filled": True, "size": 45}, "strokeWidth": 1}
    x = {"field": "digit", "type": "ordinal", "axis": {"labelAngle": 0}}
    tooltip = [tip("arm"), tip("digit"), tip("accuracy", ".2%")]
    spec = {
        **switch(arms),
        **layer(line, values, x=x, y={"field": "accuracy", **y}, **by_arm(arms), tooltip=tooltip),
    }
    caption = f"Share of each digit's test images that is recognised, all runs of an arm together; {seeds_of(arms)}."
    return Figure("per_class", "Accuracy by digit", caption, "errors", spec, switchable=True)


def _reliability(arms: Sequence[Arm]) -> Figure:
    bins = [
        {"arm": arm.label, "confidence": rounded(confidence / images), "accuracy": rounded(correct / images), "images": int(images)}
        for arm in arms
        if (of := arm.calibration) is not None
        for images, confidence, correct in zip(of.counts, of.confidence, of.correct, strict=True)
        if images
    ]  # fmt: skip
    diagonal: list[Spec] = [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]
    axis = {"type": "quantitative", "scale": {"domain": [0, 1]}, "axis": {"format": "%", "tickCount": 5}}
    place = {"x": {"field": "confidence", **axis}, "y": {"field": "accuracy", **axis}}
    size = {"field": "images", "type": "quantitative", "legend": None, "scale": {"type": "log", "range": [15, 150]}}
    tooltip = [tip("arm"), tip("confidence", ".1%"), tip("accuracy", ".1%"), tip("images")]
    colour, switched = by_arm(arms), switch(arms)
    dots = layer({"type": "point", "filled": True}, bins, **place, color=colour["color"], size=size, tooltip=tooltip)
    spec = {
        "params": switched["params"],
        "layer": [
            layer({"type": "line", "strokeDash": [4, 3], "color": COLOURS[7]}, diagonal, **place),
            {
                **layer({"type": "line", "strokeWidth": 1.5}, bins, **place, **colour),
                "transform": switched["transform"],
            },
            {**dots, "transform": switched["transform"]},
        ],
    }
    caption = (
        "Accuracy against confidence in 15 bins, all runs of an arm together; on the dashed line "
        f"confidence equals accuracy, below it confidence is too high. Larger points are more images; {seeds_of(arms)}."
    )
    return Figure("reliability", "Reliability diagram", caption, "errors", spec, switchable=True)
