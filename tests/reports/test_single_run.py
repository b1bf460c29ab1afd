"""Verdicts about one run: their error rates on simulated audits, and the cases that no simulation reaches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reproduce
from lazily import Lazily

from mnist_exp.reports.single_run import (
    MOST_RUNS,
    Verdict,
    distances,
    is_inside,
    is_outside,
    judge,
    last_limit,
    limit,
    seeds_to_decide,
)
from mnist_exp.reports.statistics import Interval

REPRODUCED, NOT_REPRODUCED, CANNOT_BE_TOLD = Verdict

stats = Lazily("scipy.stats")


def exactly(value: float) -> Interval:
    return Interval(value, value)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_right_claims_are_called_not_reproduced_in_five_of_a_hundred_cases(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "DRAWS", 20_000)
    noise = 4 * math.sqrt(0.05 * 0.95 / 20_000)
    assert reproduce.simulated(n)[NOT_REPRODUCED] == pytest.approx(0.05, abs=noise)
    assert 0.02 < reproduce.simulated(n, rounding=0.5)[NOT_REPRODUCED] < 0.05 + noise
    assert 0.02 < reproduce.simulated(n, values=9)[NOT_REPRODUCED] < 0.05 + noise
    assert sum(reproduce.simulated(n).values()) == pytest.approx(1)


def test_more_seeds_tell_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "DRAWS", 5_000)
    few, many = reproduce.simulated(3, distance=4), reproduce.simulated(30, distance=4)
    assert few[REPRODUCED] < 0.05
    assert few[CANNOT_BE_TOLD] > 0.4
    assert many[NOT_REPRODUCED] > 0.97
    assert many[CANNOT_BE_TOLD] < 0.03


def test_limits_are_quantiles() -> None:
    assert limit(10) == pytest.approx(stats.t.ppf(0.975, 9) * math.sqrt(1.1))
    assert limit(10, 9) == pytest.approx(stats.t.ppf(1 - 0.05 / 18, 9) * math.sqrt(1.1))
    assert limit(1) == math.inf
    assert last_limit() == pytest.approx(1.959964)
    assert limit(10_000_000, 5) == pytest.approx(last_limit(5), rel=1e-5)


def test_verdicts_by_distance() -> None:
    runs = [0.98, 0.99, 1.0]  # 0.99 ± 0.01
    assert limit(3) == pytest.approx(4.968, abs=1e-3)
    for apart, verdict in [
        (0, REPRODUCED),
        (1.9, REPRODUCED),
        (2, CANNOT_BE_TOLD),
        (4.9, CANNOT_BE_TOLD),
        (5, NOT_REPRODUCED),
    ]:
        for sign in (-1, 1):
            judged = judge(exactly(0.99 + sign * apart * 0.01), runs)
            assert judged.verdict == verdict, apart
            assert judged.distance == pytest.approx(sign * apart)
            assert judged.difference == pytest.approx(sign * apart * 0.01)
    assert judged.interval is not None
    assert judged.interval.low == pytest.approx(0.99 - 0.04968, abs=1e-5)


def test_rounding_and_claims_with_one_end() -> None:
    runs = [0.9700, 0.9710, 0.9720]
    assert judge(Interval(0.965, 0.975), runs).distance == 0
    assert judge(Interval(0.975, 0.985), runs).distance == pytest.approx(4)
    assert judge(Interval(0.90, math.inf), runs).verdict == REPRODUCED
    assert judge(Interval(0.98, math.inf), runs).verdict == NOT_REPRODUCED
    assert judge(Interval(-math.inf, 0.95), runs).verdict == NOT_REPRODUCED


def test_how_many_seeds_would_decide() -> None:
    assert seeds_to_decide(3.0, 3) == next(n for n in range(3, 99) if limit(n) < 3)
    assert seeds_to_decide(-3.0, 3) == seeds_to_decide(3.0, 3)
    assert seeds_to_decide(1.97, 3) is None, f"more than {MOST_RUNS}"
    assert judge(exactly(1.0), [0.0, 0.2, 0.4]).needed == seeds_to_decide(4, 3) == 4


def test_runs_that_show_no_spread() -> None:
    one = judge(exactly(0.5), [0.5])
    assert (one.verdict, one.std, one.interval, one.needed) == (CANNOT_BE_TOLD, None, None, 3)
    assert judge(exactly(0.5), [0.5, 0.5]).verdict == REPRODUCED
    equal = judge(exactly(0.6), [0.5, 0.5])
    assert (equal.verdict, equal.distance, equal.needed) == (CANNOT_BE_TOLD, math.inf, 3)


def test_arrays_are_judged_as_single_values() -> None:
    random = np.random.default_rng(0)
    measured, claims = random.normal(size=(50, 5)), random.normal(scale=3, size=50)
    apart = distances(claims, claims, measured.mean(axis=1), measured.std(axis=1, ddof=1))
    for row, claim, outside, inside in zip(measured, claims, is_outside(apart, 5), is_inside(apart, 5), strict=True):
        expected = REPRODUCED if inside else NOT_REPRODUCED if outside else CANNOT_BE_TOLD
        assert judge(exactly(float(claim)), row.tolist()).verdict == expected
