"""Scales, ticks and labels of figures: labels are not cut, and ticks do not repeat a number."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

Spec = dict[str, Any]

ROW = 36  # characters of a label in one line
# d3 formats. Without a precision d3 derives it from the distance of the ticks, and writes 98.2 % as "98%", 20 as "2e+1".
PERCENT, NUMBER, COUNT = ".4~%", ",.8~r", ".4~s"


def rounded(value: float) -> float:
    return float(f"{value:.6g}")


def in_lines(text: str, width: int) -> list[str]:
    """Text in lines of at most ``width`` characters, broken at spaces, else after commas and dots, else anywhere."""
    piece = re.compile(rf".{{1,{width}}}(?:(?<=[,.])|$)|.{{1,{width}}}")
    words = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return [line for word in words for line in piece.findall(word)]


def whole_labels(labels: Sequence[str], width: int = ROW) -> Spec:
    """Axis labels in as many lines as they need; if they were cut, different arms could have equal labels."""
    lines = {label: in_lines(label, width) for label in labels}
    return {"labelExpr": f"({json.dumps(lines)})[datum.label]"}


def rows_of(labels: Sequence[str]) -> tuple[Spec, int]:
    """An axis with a row for each label, and the height of the figure in pixels."""
    most = max(len(in_lines(label, ROW)) for label in labels)
    y = {"type": "nominal", "sort": list(labels), "title": None, "axis": whole_labels(labels)}
    between = 12 if len(labels) <= 12 else 5
    return y, 60 + (between + 12 * most) * len(labels)


def window(points: Sequence[float], margin: float = 0.15, low: float = -math.inf, high: float = math.inf) -> Spec:
    """A scale from the least to the largest point, with a margin on both sides, limited to ``low`` and ``high``.

    Args:
        points: one or more; they may be equal.
        margin: a fraction of the range of the points.
    """
    least, most = min(points), max(points)
    more = margin * (most - least) or 0.01 * abs(most) or 1.0
    return {"domain": [rounded(max(low, least - more)), rounded(min(high, most + more))], "nice": False}


def accuracy_axis(points: Sequence[float], title: str = "test accuracy", margin: float = 0.15) -> Spec:
    """The encoding of accuracies (fractions); the scale is within 0 and 100 %."""
    scale = window(points, margin, 0.0, 1.0)
    return {"type": "quantitative", "title": title, "scale": scale, "axis": {"format": PERCENT}}


def whole_legend(texts: Sequence[str], **more: Any) -> Spec:
    """A legend that does not cut the texts."""
    return {"columns": 2 if max(map(len, texts)) <= 34 else 1, **more}


def epoch_ticks(epochs: Sequence[int], most: int = 10) -> list[int]:
    """At most ``most`` epochs as ticks: every one, every second, every fifth, every tenth, ..."""
    first, last = min(epochs), max(epochs)
    steps = (factor * 10**power for power in range(10) for factor in (1, 2, 5))
    step = next(step for step in steps if last // step - (first - 1) // step <= most)
    return list(range(-(-first // step) * step, last + 1, step))


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 in each power of ten between ``low`` and ``high``; the powers alone if there are more than five."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 5 else (1,)
    ticks = (float(f"{factor}e{power}") for power in powers for factor in factors)
    return [tick for tick in ticks if low <= tick <= high]


def swept(numbers: Sequence[float]) -> Spec:
    """Scale and axis for the numbers of a sweep: ticks at the numbers; logarithmic if they differ by a factor of ten."""
    levels = sorted(set(numbers))
    positive = [level for level in levels if level > 0]
    scale: Spec = {"nice": False, "padding": 15}
    if levels[0] < 0 or positive[-1] / positive[0] < 10:
        scale["zero"] = False
    else:
        scale |= {"type": "log"} if levels[0] > 0 else {"type": "symlog", "constant": positive[0]}
    axis: Spec = {"format": NUMBER, "labelOverlap": "greedy", "grid": False}
    if len(levels) <= 15 or scale.get("type") == "log":
        axis["values"] = levels if len(levels) <= 15 else log_ticks(levels[0], levels[-1])
    return {"scale": scale, "axis": axis}
