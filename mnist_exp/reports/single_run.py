"""Whether one more run, such as a report describes, is an ordinary run of a recipe that was trained with n seeds.

A report is one run. If it is a run of the same recipe, and results are normal over seeds, its result lies within

    mean +- t(n - 1, 1 - alpha / 2) * std * sqrt(1 + 1 / n)

with probability 1 - alpha: the prediction interval for one future observation (Hahn and Meeker, Statistical Intervals, 1991,
section 4.7). With infinitely many seeds it would be mean +- z * std. So there are three verdicts:

- outside the interval of n seeds: *not reproduced*; a run of the same recipe is called so with probability alpha at most;
- within z standard deviations, where also infinitely many seeds of this mean and spread would leave it: *reproduced*;
- in between, where the verdict depends on the number of seeds alone: *cannot be told with n seeds*.

A report rounds. Its claim stands for all values that it would round to the same digits, and the nearest of them is judged, so
rounding never makes a right claim wrong. Several values that are one claim, such as those of a curve, are each judged at
alpha divided by their number (Bonferroni), so that the whole curve is called not reproduced with probability alpha at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from mnist_exp.reports.statistics import LEVEL, Interval, over_seeds

MOST_RUNS = 100  # seeds of one recipe; a claim that needs more lies at the edge of what the recipe gives


class Verdict(StrEnum):
    """What n runs say about a claimed result."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    CANNOT_BE_TOLD = "cannot be told"


def limit(n: int, values: int = 1) -> float:
    """Half the width of the prediction interval of n seeds, in their standard deviations; infinite for one seed.

    Args:
        values: number of values that are judged together.
    """
    if n < 2:
        return math.inf
    return float(special.stdtrit(n - 1, 1 - (1 - LEVEL) / (2 * values))) * math.sqrt(1 + 1 / n)


def last_limit(values: int = 1) -> float:
    """``limit`` of infinitely many seeds."""
    return float(special.ndtri(1 - (1 - LEVEL) / (2 * values)))


def distances(low: ArrayLike, high: ArrayLike, mean: ArrayLike, std: ArrayLike) -> NDArray[np.float64]:
    """How far claims are from the mean, in standard deviations: negative below, 0 if the mean rounds to the claim.

    Args:
        low, high: the values that a report rounds to its digits. Any shapes that broadcast.
        std: over seeds; where it is 0, the distance is 0 or infinite.
    """
    low, high, mean, std = (np.asarray(array, np.float64) for array in (low, high, mean, std))
    apart = np.minimum(high - mean, 0) + np.maximum(low - mean, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(apart == 0, 0.0, apart / std)


def is_outside(distance: ArrayLike, n: int, values: int = 1) -> NDArray[np.bool_]:
    """Whether a claim is not reproduced."""
    outside: NDArray[np.bool_] = np.abs(np.asarray(distance)) > limit(n, values)
    return outside


def is_inside(distance: ArrayLike, n: int, values: int = 1) -> NDArray[np.bool_]:
    """Whether a claim is reproduced; one seed reproduces nothing."""
    inside: NDArray[np.bool_] = np.abs(np.asarray(distance)) <= (last_limit(values) if n > 1 else -1.0)
    return inside


@dataclass(frozen=True)
class Judgement:
    """What n runs say about one claimed value.

    Attributes:
        n, mean, std: of the runs; the standard deviation is None for one run.
        interval: in which one more run is expected; None for one run.
        difference: from the mean to the nearest value that rounds to the claim, in the unit of the value.
        distance: the same in standard deviations; None if these are not known, infinite if all runs are equal.
        needed: seeds that would decide; None if the verdict is clear, or if more than ``MOST_RUNS`` are needed.
    """

    verdict: Verdict
    n: int
    mean: float
    std: float | None
    interval: Interval | None
    difference: float
    distance: float | None
    needed: int | None = None


def judge(claimed: Interval, measured: Sequence[float], values: int = 1) -> Judgement:
    """Judge one claimed value.

    Args:
        claimed: the values that the report rounds to its digits.
        measured: of one or more runs.
        values: number of values that are judged together.
    """
    sample = over_seeds(measured)
    apart = float(distances(claimed.low, claimed.high, sample.mean, 1.0))
    if sample.std is None:
        return Judgement(Verdict.CANNOT_BE_TOLD, 1, sample.mean, None, None, apart, None, needed=3)
    std = sample.std if sample.std > 1e-12 else 0.0  # equal accuracies differ only by rounding
    half = limit(sample.n, values) * std
    interval = Interval(sample.mean - half, sample.mean + half)
    distance = float(distances(claimed.low, claimed.high, sample.mean, std))
    needed = None
    if is_inside(distance, sample.n, values):
        verdict = Verdict.REPRODUCED
    elif std > 0 and is_outside(distance, sample.n, values):
        verdict = Verdict.NOT_REPRODUCED
    else:
        verdict, needed = Verdict.CANNOT_BE_TOLD, seeds_to_decide(distance, sample.n, values)
    return Judgement(verdict, sample.n, sample.mean, std, interval, apart, distance, needed)


def seeds_to_decide(distance: float, n: int, values: int = 1) -> int | None:
    """The fewest seeds, more than n, that would call a claim at this distance not reproduced; None if above ``MOST_RUNS``.

    It assumes that mean and standard deviation stay as measured. If they change, the claim may be reproduced instead.
    """
    if not math.isfinite(distance):
        return n + 1  # all runs are equal, so nothing is known about the spread
    numbers = range(n + 1, MOST_RUNS + 1)
    return next((number for number in numbers if is_outside(distance, number, values)), None)
