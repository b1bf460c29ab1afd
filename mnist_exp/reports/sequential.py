"""Statistics of a sweep that adds seeds until its question is settled (``sweep.until``): they allow for several looks.

Two arms are compared again after each round of seeds, by group-sequential t-tests. A spending function (Lan and DeMets,
"Discrete sequential boundaries for clinical trials", Biometrika 70, 1983) says how much of the 5 % may be spent up to each
look. The levels of the looks follow by numerical integration for normal differences (Armitage, McPherson and Rowe 1969),
and each level is used for a t-test (Jennison and Turnbull, Group Sequential Methods, 2000, sections 3.8 and 19.3). The interval is
the repeated confidence interval of Jennison and Turnbull (JRSS B 51, 1989): with probability 95 % the intervals of all looks
contain the difference, so that a sweep may stop for any reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from mnist_exp.reports.statistics import LEVEL, Difference, Interval, seed_difference
from mnist_exp.runs.sweep import Until

# Seeds at which a sweep looks: each about one and a half times the one before.
GRID = (3, 5, 8, 12, 20, 30, 45, 70, 100, 150, 200, 300, 450, 700, 1000)
# Shares of the level that are spent up to the planned number of seeds, and ever, so that ``sweep.max_seeds`` may be raised
# later. The rest is for the looks with few seeds: t-tests at the levels of normal ones spend up to an eighth more than
# planned (scripts/sequential.py).
AT_PLANNED, EVER = 0.80, 0.88
POINTS = 301  # of the integration
# Levels for which p-values are computed; between them they are interpolated.
LEVELS = np.sort([*np.geomspace(1e-6, 1.0, 40), 1 - LEVEL])


def looks(until: Until, n: int) -> tuple[int, ...]:
    """The numbers of seeds at which the sweep looks, up to ``n``; ``n`` is one of them, whether it was planned or not."""
    planned = sorted({until.first, until.planned, n, *GRID})
    return tuple(number for number in planned if until.first <= number <= n) or (n,)


def next_look(until: Until, n: int) -> int:
    """The next number of seeds after ``n``, at most ``until.max_seeds``."""
    later = (number for number in sorted({until.first, until.planned, *GRID}) if number > max(n, until.first - 1))
    return min(next(later, until.max_seeds), until.max_seeds)


def spent(n: int, planned: int) -> float:
    """The share of the level that is spent up to ``n`` seeds: in proportion to ``n`` up to the planned number."""
    return AT_PLANNED * n / planned if n <= planned else EVER - (EVER - AT_PLANNED) * planned / n


@lru_cache(maxsize=64)
def nominal_levels(at: tuple[int, ...], planned: int) -> NDArray[np.float64]:
    """The level of the two-sided test at each look, (len(LEVELS), len(at)), for each of ``LEVELS`` in all.

    The sum of n standard normal differences is followed from look to look inside the bounds; its density is integrated
    with Simpson's rule.

    Args:
        at: numbers of seeds at the looks.
        planned: see ``spent``.
    """
    shares = np.diff([0.0, *(spent(n, planned) for n in at)])
    weights = np.ones(POINTS)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    found = []
    sums = np.zeros((len(LEVELS), 1))
    mass = np.ones((len(LEVELS), 1))  # of the density, times the weight of its point
    before = 0
    for n, share in zip(at, shares, strict=True):
        step = math.sqrt(n - before)
        z = _bound(sums, mass, step, n, LEVELS * share)
        found.append(2 * special.ndtr(-z))
        inside = np.linspace(-1, 1, POINTS) * (z * math.sqrt(n))[:, None]
        density = np.exp(-(((inside[:, :, None] - sums[:, None, :]) / step) ** 2) / 2) @ mass[:, :, None]
        width = (inside[:, 1] - inside[:, 0])[:, None]
        sums, mass = inside, density[:, :, 0] / (math.sqrt(2 * math.pi) * step) * weights * width / 3
        before = n
    return np.array(found).T


def _bound(
    sums: NDArray[np.float64], mass: NDArray[np.float64], step: float, n: int, target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The z beyond which the next look ends with the probabilities ``target`` (L,), by bisection.

    Args:
        sums: points (L, P). mass: of the density at them.
        step: standard deviation of what is added to the sums before the look, which has ``n`` seeds.
    """
    low, high = np.zeros(len(target)), np.full(len(target), 10.0)
    for _ in range(50):
        middle = (low + high) / 2
        bound = (middle * math.sqrt(n))[:, None]
        beyond = mass * (special.ndtr((-bound - sums) / step) + special.ndtr((sums - bound) / step))
        too_many = beyond.sum(axis=1) > target
        low, high = np.where(too_many, middle, low), np.where(too_many, high, middle)
    return high


def sequential_difference(arm: dict[int, float], baseline: dict[int, float], until: Until) -> Difference:
    """As ``seed_difference``, of a sweep that added seeds: interval and p-value allow for its looks.

    The p-value is the lowest level at which one of the looks so far would have shown the difference. It is valid whenever
    the sweep stops, so it can be corrected for the number of comparisons by Holm's method. It is 1e-6 if it is lower.
    """
    shared = sorted(arm.keys() & baseline.keys())
    plain = seed_difference(arm, baseline)
    n = len(shared)
    if n < 2 or plain.error is None:
        return plain
    at = looks(until, n)
    levels = nominal_levels(at, until.planned)
    differences = np.array([arm[seed] - baseline[seed] for seed in shared])
    p = min(_smallest_level(differences[:number], levels[:, place]) for place, number in enumerate(at))
    own = float(levels[int(np.searchsorted(LEVELS, 1 - LEVEL)), -1])
    half = float(special.stdtrit(n - 1, 1 - own / 2)) * plain.error
    return Difference(n, plain.mean, Interval(plain.mean - half, plain.mean + half), p, plain.error)


def _smallest_level(differences: NDArray[np.float64], levels: NDArray[np.float64]) -> float:
    """The smallest of ``LEVELS``, interpolated, at which a look shows a difference; ``levels`` are those of its t-test."""
    n = len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-12:  # its spread is not known
        return 1.0
    p = max(2 * float(special.stdtr(n - 1, -abs(float(differences.mean())) / error)), 1e-300)
    if p > levels[-1]:
        return 1.0
    return float(np.exp(np.interp(math.log(p), np.log(levels), np.log(LEVELS))))


def is_settled(difference: Difference | None, p: float | None, until: Until) -> bool:
    """Whether a comparison needs no more seeds: it is shown, known as exactly as asked, or not possible.

    Args:
        p: corrected for the number of comparisons.
    """
    if difference is None:
        return True
    return (p is not None and p < 1 - LEVEL) or is_narrow(difference, until)


def is_narrow(difference: Difference, until: Until) -> bool:
    """Whether the interval is at most as wide as asked: the mean plus or minus ``until.points``."""
    known = difference.interval
    return known is not None and known.high - known.low <= 2 * until.points / 100


def looks_in_words(until: Until, counts: Sequence[int]) -> str:
    """The planned looks and those that were made, for a report.

    Args:
        counts: numbers of seeds of the comparisons.
    """
    planned = ", ".join(map(str, looks(until, max(until.planned, until.max_seeds))))
    made = looks(until, max([until.first, *counts]))
    return f"Planned looks: at {planned} seeds; made: {len(made)}, up to {made[-1]} seeds"
