"""Test accuracy of the arms, and its difference from that of the baseline."""

from __future__ import annotations

from collections.abc import Sequence

from mnist_exp.reports.axes import NUMBER, Spec, accuracy_axis, rows_of, window
from mnist_exp.reports.figures.parts import COLOURS, DOT, DOTS, Figure, layer, seeds_of, tip
from mnist_exp.reports.pairwise import Pairwise
from mnist_exp.reports.statistics import Sample
from mnist_exp.reports.tables import Measure, Row

DIAMOND = {"type": "point", "shape": "diamond", "filled": False, "size": 70, "color": COLOURS[2], "strokeWidth": 1.5}
INTERVAL = {"type": "rule", "strokeWidth": 2, "color": COLOURS[0], "clip": True}


def accuracies(rows: Sequence[Row], measure: Measure) -> Figure:
    """Test accuracy by arm, and validation accuracy where it is known; the latter alone without test figures."""
    shown = [row for row in rows if measure.of(row)][:DOTS]
    means = [_mean(row, sample) for row in shown if (sample := measure.of(row))]
    held_out = [_mean(row, row.validation) for row in shown if row.validation and row.accuracy]
    single = [
        {"arm": row.arm.label, "accuracy": value, "seed": seed}
        for row in shown
        for seed, value in row.arm.final(measure.key).items()
    ]
    y, height = rows_of([row.arm.label for row in shown])
    points = [value["accuracy"] for value in [*single, *held_out]]
    x = accuracy_axis([*points, *_ends(means, points)], "accuracy" if held_out else measure.title, margin=0.05)
    place, span = {"field": "accuracy", **x}, {"x": {"field": "low", **x}, "x2": {"field": "high"}}
    tick = {"type": "tick", "color": COLOURS[1], "thickness": 1.5, "size": 10}
    number, accuracy = tip("n", title="seeds"), tip("accuracy", ".2%")
    of_mean = [tip("arm"), number, accuracy, tip("low", ".2%"), tip("high", ".2%")]
    spec = {
        "encoding": {"y": {"field": "arm", **y}},
        "layer": [
            layer(DIAMOND, held_out, x=place, tooltip=[tip("arm"), number, tip("accuracy", ".2%", "validation")]),
            layer(tick, single, x=place, tooltip=[tip("arm"), tip("seed"), accuracy]),
            layer(INTERVAL, [mean for mean in means if mean["low"] is not None], **span),
            layer(DOT, means, x=place, tooltip=of_mean),
        ],
    }
    more = f" The best {DOTS} of {len(rows)} arms." if len(rows) > DOTS else ""
    ranking = (
        "Diamonds: mean validation accuracy, by which the arms are ranked; " if len(held_out) == len(shown) else ""
    )
    caption = (
        f"{measure.title.capitalize()} of the result: each seed (ticks), mean (point) and 95 % interval of the mean over seeds (line, cut "
        f"where it is very wide; none where there is one seed). {ranking}{seeds_of(row.arm for row in shown)}.{more}"
    )
    title = "Accuracy by arm" if held_out else f"{measure.title.capitalize()} by arm"
    return Figure("accuracy", title, caption, "answer", spec, height=height)


def _mean(row: Row, sample: Sample) -> Spec:
    known = sample.interval
    return {
        "arm": row.arm.label, "accuracy": sample.mean, "n": sample.n,
        "low": known.low if known else None, "high": known.high if known else None,
    }  # fmt: skip


def _ends(means: Sequence[Spec], points: Sequence[float]) -> list[float]:
    """The ends of the intervals, as far as they make the axis at most three times as wide as the points do."""
    low, high = min(points), max(points)
    ends = [mean[end] for mean in means for end in ("low", "high") if mean[end] is not None]
    return [min(max(end, 2 * low - high), 2 * high - low) for end in ends]


def differences(pairs: Sequence[Pairwise], baseline: str) -> Figure:
    """Difference from the baseline, whose label is ``baseline``, by arm."""
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
    band = {"type": "rule", "strokeWidth": 7, "opacity": 0.35, "color": COLOURS[4]}
    tooltip = [tip("arm"), tip("points", "+.2f"), tip("images", title="test images"), tip("verdict")]
    spec = {
        "layer": [
            layer({"type": "rule", "strokeDash": [4, 3]}, [{"zero": 0}], x={"field": "zero", **x}),
            layer(band, images, y=y, **span),
            layer(INTERVAL, over_runs, y=y, **span),
            layer(DOT, values, y=y, x={"field": "points", **x}, tooltip=tooltip),
        ],
    }
    caption = (
        f"Mean test accuracy minus that of {baseline}; further right is better. Thin line: 95 % over seeds, "
        "cut at the edge of the picture; broad band: 95 % over test images. Neither is corrected for the number of comparisons; the table's p-values are."
        + (f" The best {DOTS} of {len(known)} arms." if len(known) > DOTS else "")
    )
    return Figure("differences", f"Difference from {baseline}", caption, "pairwise", spec, height=height)
