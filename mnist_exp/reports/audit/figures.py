"""Pictures of an audit: claimed curves over the band of measured ones, and all claims on one scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from mnist_exp.reports.audit.claims import Claimed
from mnist_exp.reports.audit.findings import SPLITS, Audited, Finding
from mnist_exp.reports.audit.results import Row, values_at
from mnist_exp.reports.axes import NUMBER, PERCENT, Spec, epoch_ticks, rounded, rows_of
from mnist_exp.reports.figures.parts import COLOURS, Figure, layer, tip
from mnist_exp.reports.single_run import Verdict, last_limit, limit
from mnist_exp.reports.statistics import over_seeds

FARTHEST = 8.0  # standard deviations; claims that are farther are drawn here, as triangles
OF_VERDICT = {Verdict.REPRODUCED: COLOURS[2], Verdict.CANNOT_BE_TOLD: COLOURS[4], Verdict.NOT_REPRODUCED: COLOURS[1]}
OF_SPLIT = {"test": COLOURS[0], "training": COLOURS[4]}


def name_of(audited: Audited, kind: str) -> str:
    """The name of a figure: a folder for each report."""
    return f"{audited.report.name}/{audited.name}_{kind}"


def curves(audited: Audited) -> Iterator[Figure]:
    """A figure for claimed error rates and accuracies, and one for claimed losses; none without runs."""
    for kind in ("error", "loss"):
        findings = [finding for finding in audited.findings if finding.is_fraction == (kind == "error")]
        if findings and audited.runs:
            yield _curve(audited, kind, findings)


def _curve(audited: Audited, kind: str, findings: Sequence[Finding]) -> Figure:
    splits = list(dict.fromkeys(finding.quantity.partition("_")[0] for finding in findings))
    measured = [value for split in splits for value in _measured(audited.runs, f"{split}_{kind}")]
    lines = [value for split in splits for value in _lines(audited.runs, f"{split}_{kind}")]
    claimed = [value for finding in findings for value in _claimed(finding, audited.config.trainer.epochs)]
    floor = 0.5 * min((value["mean"] for value in (*measured, *claimed) if value["mean"] > 0), default=1e-6)
    for value in (*measured, *lines, *claimed):
        for end in ("low", "mean", "high"):
            if end in value:
                value[end] = rounded(max(value[end], floor))  # a log axis has no zero
    shown = [SPLITS[split] for split in splits]
    colour = {"field": "split", "type": "nominal", "title": None, "legend": {"columns": 2},
              "scale": {"domain": shown, "range": [OF_SPLIT[split] for split in shown]}}  # fmt: skip
    epochs = [value["epoch"] for value in (*measured, *claimed)]
    x = {"field": "epoch", "type": "quantitative", "title": "epoch", "scale": {"nice": False, "zero": False, "padding": 10},
         "axis": {"values": epoch_ticks(epochs), "format": "d", "grid": False}}  # fmt: skip
    y: Spec = {"type": "quantitative", "title": "error" if kind == "error" else "loss, nats",
               "scale": {"type": "log", "nice": False, "padding": 8},
               "axis": {"format": PERCENT if kind == "error" else NUMBER, "labelOverlap": "greedy", "tickCount": 8}}  # fmt: skip
    ends = {"y": {"field": "low", **y}, "y2": {"field": "high"}, "color": colour}
    dot = {"type": "point", "filled": True, "size": 45, "stroke": "white", "strokeWidth": 0.7, "opacity": 1}
    tooltip = [tip("epoch"), tip("text", title="claimed"), tip("split")]
    layers = []
    if any("low" in value for value in measured):
        layers.append(layer({"type": "area", "opacity": 0.2}, measured, **ends))
    spec: Spec = {
        "encoding": {"x": x},
        "layer": [
            *layers,
            layer({"type": "line", "strokeWidth": 0.8, "opacity": 0.5, "point": {"size": 6}}, lines,
                  y={"field": "mean", **y}, color=colour, detail={"field": "run"}),
            layer({"type": "rule", "strokeWidth": 2.5}, claimed, **ends),
            layer(dot, claimed, y={"field": "mean", **y}, color=colour, tooltip=tooltip),
        ],
    }  # fmt: skip
    n = len(audited.runs)
    caption = f"{n} run{'' if n == 1 else 's'} of the recipe, and the claims"
    title = f"{audited.label}: {kind} by epoch"
    return Figure(name_of(audited, kind), title, caption, "curves", spec)


def _measured(runs: Sequence[dict[int, Row]], quantity: str) -> Iterator[Spec]:
    """Mean and prediction interval by epoch; the interval only of two runs or more."""
    for epoch in sorted({epoch for run in runs for epoch in run}):
        if not (values := values_at(runs, quantity, epoch)):
            continue
        sample = over_seeds(values)
        value: Spec = {"split": SPLITS[quantity.partition("_")[0]], "epoch": epoch, "mean": sample.mean}
        if sample.std is not None:
            half = limit(sample.n) * sample.std
            value |= {"low": sample.mean - half, "high": sample.mean + half}
        yield value


def _lines(runs: Sequence[dict[int, Row]], quantity: str) -> Iterator[Spec]:
    split = SPLITS[quantity.partition("_")[0]]
    for number, run in enumerate(runs):
        for epoch in sorted(run):
            for value in values_at([run], quantity, epoch):
                yield {"split": split, "run": f"{split}{number}", "epoch": epoch, "mean": value}


def _claimed(finding: Finding, last: int) -> Iterator[Spec]:
    """The claimed numbers; accuracies as error rates. Half-open claims end at the number."""
    for point in finding.points:
        low, high = _ends(point.claimed)
        if finding.quantity.endswith("_accuracy"):
            low, high = 1 - high, 1 - low
        yield {"split": SPLITS[finding.quantity.partition("_")[0]], "epoch": point.epoch or last, "text": point.claimed.text,
               "low": low, "high": high, "mean": (low + high) / 2}  # fmt: skip


def _ends(claimed: Claimed) -> tuple[float, float]:
    low, high = claimed.interval.low, claimed.interval.high
    return (low if math.isfinite(low) else high), (high if math.isfinite(high) else low)


def overview(networks: Sequence[Audited]) -> Figure | None:
    """Every claim about a result, in standard deviations from the mean of the runs; None if nothing is measured."""
    values = [value for audited in networks for finding in audited.findings if (value := _position(audited, finding))]
    if not values:
        return None
    labels = [value["claim"] for value in values]
    y, height = rows_of(labels)
    x: Spec = {"type": "quantitative", "title": "standard deviations from the mean of the runs",
               "scale": {"domain": [-FARTHEST, FARTHEST], "nice": False}}  # fmt: skip
    row = {"field": "claim", **y}
    colour = {"field": "verdict", "type": "nominal", "title": None, "legend": {"columns": 3},
              "scale": {"domain": [str(verdict) for verdict in OF_VERDICT], "range": list(OF_VERDICT.values())}}  # fmt: skip
    shape = {"field": "beyond", "type": "nominal", "legend": None,
             "scale": {"domain": ["", "left", "right"], "range": ["circle", "triangle-left", "triangle-right"]}}  # fmt: skip
    tooltip = [tip("claim"), tip("text", title="claimed"), tip("distance", ".2f"), tip("verdict")]
    spec = {
        "padding": {"left": 40, "right": 10, "top": 5, "bottom": 5},  # a browser's font may be wider than the measured one
        "data": {"values": values},
        "encoding": {"y": row},
        "layer": [
            layer({"type": "rule", "strokeWidth": 9, "color": COLOURS[7], "opacity": 0.25},
                  x={"field": "low", **x}, x2={"field": "high"}),
            layer({"type": "rule", "strokeWidth": 9, "color": COLOURS[7], "opacity": 0.35},
                  x={"field": "inner_low", **x}, x2={"field": "inner_high"}),
            layer({"type": "point", "filled": True, "size": 90, "opacity": 1}, x={"field": "shown", **x}, color=colour,
                  shape=shape, tooltip=tooltip),
        ],
    }  # fmt: skip
    caption = (
        "Each dot is a claim, or the farthest number of a claimed curve, at the nearest value that rounds to it. Within the dark bar "
        "it is reproduced, outside both bars it is not; in the light bar the number of seeds is too small to tell. A triangle is "
        f"farther than {FARTHEST:.0f} standard deviations."
    )
    return Figure("overview", "All claims about results", caption, "answer", spec, height=height)


def _position(audited: Audited, finding: Finding) -> Spec | None:
    point = finding.worst
    if point is None or point.judgement is None or point.judgement.distance is None:
        return None
    distance, n, together = point.judgement.distance, point.judgement.n, len(finding.points)
    outer, inner = min(limit(n, together), FARTHEST), last_limit(together)
    return {
        "claim": f"{audited.label}: {finding.title}", "text": point.claimed.text, "verdict": str(finding.verdict),
        "distance": rounded(max(-1e6, min(1e6, distance))), "shown": rounded(max(-FARTHEST, min(FARTHEST, distance))),
        "beyond": "" if abs(distance) <= FARTHEST else "left" if distance < 0 else "right",
        "low": rounded(-outer), "high": rounded(outer), "inner_low": rounded(-inner), "inner_high": rounded(inner),
    }  # fmt: skip
