"""The statistics of a comparison.

A measured accuracy is uncertain for two reasons. *Training* with another seed gives another network: intervals over seeds
(Student's t) cover this. *Testing* on other images of the same kind gives another number of errors: Wilson's interval, and
McNemar's test for two networks, cover this. Neither kind covers the other reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy import special  # not scipy.stats, which takes a second to import

LEVEL = 0.95
Z = float(special.ndtri((1 + LEVEL) / 2))  # 1.96


@dataclass(frozen=True)
class Interval:
    """``low`` to ``high``, in the unit of the measured value."""

    low: float
    high: float


@dataclass(frozen=True)
class Sample:
    """Mean of ``n`` seeds; standard deviation (n - 1) and 95 % interval of the mean are None for one seed."""

    n: int
    mean: float
    std: float | None
    interval: Interval | None


def over_seeds(values: Sequence[float]) -> Sample:
    """Mean, standard deviation and Student's t interval of the mean. Covers the choice of seed, not of test images.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no values")
    n, mean = len(values), fmean(values)
    if n == 1:
        return Sample(n, mean, None, None)
    std = float(np.std(values, ddof=1))
    return Sample(n, mean, std, _t_interval(mean, std / math.sqrt(n), n - 1))


def wilson(correct: float, images: int) -> Interval:
    """Interval of a proportion (Wilson 1927; Agresti and Coull 1998). Covers the choice of test images, not of seed.

    Args:
        correct: images classified correctly; a mean over seeds may be fractional.
        images: of the test set.
    """
    p = correct / images
    centre = (p + Z * Z / (2 * images)) / (1 + Z * Z / images)
    half = Z / (1 + Z * Z / images) * math.sqrt(p * (1 - p) / images + Z * Z / (4 * images * images))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class Difference:
    """The difference of a metric between two arms, over seeds.

    Attributes:
        n: number of shared seeds (paired test), or None if fewer than two are shared (unpaired test).
        mean: of the differences.
        interval: 95 %, over seeds; None if the spread cannot be estimated.
        p: of Student's paired or Welch's unpaired t-test; None if the spread cannot be estimated.
        error: standard error of the mean; None if the spread cannot be estimated.
    """

    n: int | None
    mean: float
    interval: Interval | None
    p: float | None
    error: float | None = None


def seed_difference(arm: dict[int, float], baseline: dict[int, float]) -> Difference:
    """``arm`` minus ``baseline``, both by seed: Student's paired t-test if two seeds or more are shared, else Welch's.

    Runs with equal seeds see the images in the same order, so pairing removes the part of the spread that both arms share.
    If all differences are equal, the spread cannot be estimated, and there is no interval.
    """
    shared = sorted(arm.keys() & baseline.keys())
    if len(shared) >= 2:
        differences = np.array([arm[seed] - baseline[seed] for seed in shared])
        mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(len(shared))
        return _difference(len(shared), mean, error, len(shared) - 1)
    if len(shared) == 1 and (len(arm) == 1 or len(baseline) == 1):
        seed = shared[0]
        return Difference(1, arm[seed] - baseline[seed], None, None)
    first, second = np.array(list(arm.values())), np.array(list(baseline.values()))
    mean = float(first.mean() - second.mean())
    if len(first) < 2 or len(second) < 2:
        return Difference(None, mean, None, None)
    a, b = float(first.var(ddof=1)) / len(first), float(second.var(ddof=1)) / len(second)
    if a + b <= (1e-12) ** 2:
        return Difference(None, mean, None, None)
    degrees = (a + b) ** 2 / (a * a / (len(first) - 1) + b * b / (len(second) - 1))
    return _difference(None, mean, math.sqrt(a + b), degrees)


def _difference(n: int | None, mean: float, error: float, degrees: float) -> Difference:
    if error <= 1e-12:  # equal differences of accuracies differ only by rounding
        return Difference(n, mean, None, None)
    p = 2 * float(special.stdtr(degrees, -abs(mean) / error))
    return Difference(n, mean, _t_interval(mean, error, degrees), p, error)


def _t_interval(mean: float, error: float, degrees: float) -> Interval:
    half = float(special.stdtrit(degrees, (1 + LEVEL) / 2)) * error
    return Interval(mean - half, mean + half)


POWER = 0.8  # of planned seeds: the usual one (Cohen 1988, section 2.4)
MOST_SEEDS = 30  # for a difference of about half its own spread over seeds; smaller ones are not worth the training


def power(n: int, effect: float, *, paired: bool = True, level: float = 1 - LEVEL) -> float:
    """The probability that ``n`` seeds of both arms show a difference with a two-sided t-test (Cohen 1988, section 2.5).

    If the true difference is d and normal over seeds, t has the noncentral t distribution: for pairs with n - 1 degrees of
    freedom and noncentrality effect * sqrt(n), for separate seeds with 2 n - 2 and effect * sqrt(n / 2).

    Args:
        n: seeds of each arm, at least 2.
        effect: d >= 0 divided by the standard deviation over seeds, of the differences (paired) or of one arm.
        level: of the test.
    """
    degrees, shift = (n - 1, effect * math.sqrt(n)) if paired else (2 * n - 2, effect * math.sqrt(n / 2))
    critical = float(special.stdtrit(degrees, 1 - level / 2))
    upper, lower = (float(special.nctdtr(degrees, shift, end)) for end in (critical, -critical))
    return 1 - upper + (lower if math.isfinite(lower) else 0.0)  # not a number where it is below 1e-10


def seeds_needed(effect: float, *, paired: bool = True, level: float = 1 - LEVEL) -> int | None:
    """The fewest seeds of each arm that show a difference with probability ``POWER``; None if more than ``MOST_SEEDS``.

    Args: see ``power``.
    """
    numbers = range(2, MOST_SEEDS + 1)
    return next((n for n in numbers if power(n, effect, paired=paired, level=level) >= POWER), None)


def detectable(n: int, *, paired: bool = True, level: float = 1 - LEVEL) -> float:
    """The smallest effect that ``n`` seeds show with probability ``POWER``, see ``power``."""
    low, high = 0.0, 1.0
    while power(n, high, paired=paired, level=level) < POWER:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power(n, middle, paired=paired, level=level) < POWER else (low, middle)
    return high


@dataclass(frozen=True)
class SeedPlan:
    """What more seeds would show.

    Attributes:
        needed: seeds of each arm that show a difference as large as the measured one with probability ``POWER``; None if
            more than ``MOST_SEEDS``.
        detectable: the smallest difference that the seeds of now show with this probability, in the unit of the difference.
    """

    needed: int | None
    detectable: float


def plan_seeds(difference: Difference, n: int, comparisons: int = 1) -> SeedPlan | None:
    """How many seeds a difference needs if the spread over seeds stays as measured; None if the spread is not known.

    Args:
        n: seeds of the arm with fewer seeds.
        comparisons: number of comparisons for which the p-value is corrected; the level is divided by it (Bonferroni).
    """
    if difference.error is None:
        return None
    level = (1 - LEVEL) / comparisons
    paired = difference.n is not None
    spread = difference.error * math.sqrt(n if paired else n / 2)
    needed = seeds_needed(abs(difference.mean) / spread, paired=paired, level=level)
    return SeedPlan(needed, detectable(n, paired=paired, level=level) * spread)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided mid-p value of McNemar's test on the images that exactly one of two networks classifies correctly.

    The p-value of the exact binomial test minus half the probability of the observed count, which keeps the level and has
    more power (Fagerland, Lydersen and Laake 2013). 1 if there is no such image.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    observed = math.comb(n, k) / (1 << n)
    if only_first == only_second:
        return 1 - observed / 2
    return 2 * float(special.bdtr(k, n, 0.5)) - observed


def merge_dependent(values: Sequence[float]) -> float:
    """Merge K p-values with any dependence into one: K / k times the k-th smallest (Rüger 1978).

    k is the middle, K // 2 + 1, so the result is at most twice the median (Vovk and Wang, Biometrika 2020).
    All seeds are tested on the same images, so their p-values are not independent.
    """
    middle = len(values) // 2
    return min(1.0, len(values) / (middle + 1) * sorted(values)[middle])


@dataclass(frozen=True)
class ImageDifference:
    """Two arms on the same test images.

    Attributes:
        pairs: pairs of networks with the same seed (or the first of each arm, where they share none).
        only_arm, only_baseline: number of images that only this one classifies correctly, mean over pairs.
        mean: difference of accuracy, a fraction.
        interval: 95 %, over test images, for these networks.
        p: McNemar mid-p, merged over pairs.
    """

    pairs: int
    only_arm: float
    only_baseline: float
    mean: float
    interval: Interval
    p: float


def image_difference(pairs: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> ImageDifference:
    """Compare networks image by image.

    Args:
        pairs: for each pair of networks, whether the arm's and the baseline's classify each image (N,) correctly.

    The interval is mean +- z s / sqrt(N) of the differences by image, each the mean over pairs; for one pair it is the
    usual interval of a difference of paired proportions (Agresti, Categorical Data Analysis, section 11.1).
    """
    gains = [int((first & ~second).sum()) for first, second in pairs]
    losses = [int((second & ~first).sum()) for first, second in pairs]
    own = np.mean([first.astype(np.float64) - second for first, second in pairs], axis=0)
    mean, half = float(own.mean()), Z * float(own.std()) / math.sqrt(len(own))
    merged = merge_dependent([mcnemar(gain, loss) for gain, loss in zip(gains, losses, strict=True)])
    interval = Interval(mean - half, mean + half)
    return ImageDifference(len(pairs), float(np.mean(gains)), float(np.mean(losses)), mean, interval, merged)


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, so that the chance of one false positive or more is below the level (Holm 1979)."""
    corrected = [0.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = largest
    return corrected


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in bins of equal width (Guo, Pleiss, Sun and Weinberger 2017).

    Attributes:
        counts: images in each bin (B,), summed over runs.
        confidence: sum of the probabilities of their predicted classes (B,).
        correct: number of them that are classified correctly (B,).
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    correct: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of confidence and accuracy, weighted by images. A fraction."""
        return float(np.abs(self.confidence - self.correct).sum() / max(int(self.counts.sum()), 1))

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(self.counts + other.counts, self.confidence + other.confidence, self.correct + other.correct)


def calibration(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = 15) -> Calibration:
    """Sort images into ``bins`` by their confidence (N,), a probability; 15 as in the paper."""
    # Bins are (low, high], so that 1.0 is in the last one; 0 is put into the first.
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return Calibration(
        np.bincount(index, minlength=bins),
        np.bincount(index, weights=confidence, minlength=bins).astype(np.float64),
        np.bincount(index[correct], minlength=bins),
    )


def importance(groups: Sequence[Sequence[float]]) -> float | None:
    """The share of the variance of a result that one setting explains: epsilon squared (Kelley 1935).

    Unlike eta squared it is corrected for the share that groups of random values would explain.

    Args:
        groups: results, one group for each value of the setting.

    Returns:
        a fraction, at least 0; None for one group, without repetitions, or without variance.
    """
    groups = [group for group in groups if len(group)]
    values = np.concatenate([np.asarray(group, dtype=float) for group in groups]) if groups else np.zeros(0)
    n, k = len(values), len(groups)
    total = float(((values - values.mean()) ** 2).sum()) if n else 0.0
    if k < 2 or n <= k or total <= 0:
        return None
    within = sum(float(((np.asarray(group) - np.mean(group)) ** 2).sum()) for group in groups)
    return max(0.0, 1 - (within / (n - k)) / (total / (n - 1)))


def pareto(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Indices of the Pareto front, by cost: no other point has equal or lower cost and equal or higher gain, one strictly."""
    front: list[int] = []
    best = -math.inf
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i])):
        if gains[index] > best or (front and (costs[index], gains[index]) == (costs[front[-1]], gains[front[-1]])):
            front.append(index)
            best = max(best, gains[index])
    return front
