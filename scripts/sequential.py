"""How often is ``sweep.until`` wrong? Simulate sweeps whose truth is known, decided by the statistics of the report.

python scripts/sequential.py             # 2,000 sweeps of each kind, a minute; prints the table
python scripts/sequential.py --write     # also into docs/sweeps.md

Each sweep has a baseline and three arms. An accuracy is 99 % plus the luck of the seed, of which arms with the same seed share a half,
plus the arm's true difference, rounded to one of 10,000 test images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from campaign import ROOT, write_between_markers
from numpy.typing import NDArray

from mnist_exp.reports.sequential import is_settled, next_look, sequential_difference
from mnist_exp.reports.statistics import LEVEL, holm, seed_difference
from mnist_exp.runs.sweep import Until

DOCUMENT = ROOT / "docs" / "sweeps.md"
ARMS = 3
SPREAD = 0.1  # standard deviation of a difference over seeds, percentage points
NARROW = 0.05  # sweep.until, percentage points


@dataclass(frozen=True)
class Outcome:
    """What simulated sweeps found, as shares of the sweeps.

    Attributes:
        any_shown: sweeps that call at least one difference shown. shown: comparisons that are.
        any_shown_plain: as ``any_shown``, if each look were tested as if it were the only one (Holm's method for the arms).
        covered: intervals, where the sweep stopped, that contain the true difference.
        seeds: of an arm when its comparison was settled or the sweep ended, mean.
    """

    any_shown: float
    shown: float
    any_shown_plain: float
    covered: float
    seeds: float


def simulate(sweeps: int, until: Until, difference: float, seed: int = 0) -> Outcome:
    """Simulate sweeps whose arms all have the same true difference from the baseline, in percentage points."""
    random = np.random.default_rng(seed)
    shown, plain, covered, used = [], [], [], []
    for _ in range(sweeps):
        shared = random.normal(0, SPREAD / 2, until.max_seeds)
        own = random.normal(0, SPREAD / np.sqrt(2), (ARMS + 1, until.max_seeds)) + shared
        own[1:] += difference
        accuracies = np.round((99 + own) / 100, 4)
        found = _sweep(accuracies, until, difference)
        shown.append(found[0])
        plain.append(found[1])
        covered += found[2]
        used += found[3]
    return Outcome(
        float(np.mean([any(one) for one in shown])),
        float(np.mean(shown)),
        float(np.mean(plain)),
        float(np.mean(covered)),
        float(np.mean(used)),
    )


def _sweep(
    accuracies: NDArray[np.float64], until: Until, difference: float
) -> tuple[list[bool], bool, list[bool], list[int]]:
    """One sweep: which differences are shown, whether plain tests would have shown one, coverage, seeds of each arm.

    Args:
        accuracies: (ARMS + 1, max_seeds); the first is the baseline.
    """
    by_seed = [dict(enumerate(row.tolist())) for row in accuracies]
    seeds = [until.first] * ARMS
    plain = False
    while True:
        known = [{seed: arm[seed] for seed in range(n)} for arm, n in zip(by_seed[1:], seeds, strict=True)]
        found = [sequential_difference(arm, by_seed[0], until) for arm in known]
        p = holm([1.0 if one.p is None else one.p for one in found])
        fixed = [seed_difference(arm, by_seed[0]) for arm in known]
        plain = plain or min(holm([1.0 if one.p is None else one.p for one in fixed])) < 1 - LEVEL
        settled = [is_settled(one, value, until) for one, value in zip(found, p, strict=True)]
        n = max(seeds)
        if all(settled) or n >= until.max_seeds:
            break
        seeds = [own if over else next_look(until, n) for own, over in zip(seeds, settled, strict=True)]
    true = difference / 100
    covered = [one.interval.low <= true <= one.interval.high for one in found if one.interval]
    return [value < 1 - LEVEL for value in p], plain, covered, seeds


def table(sweeps: int) -> Iterator[str]:
    yield f"| first seeds, `max_seeds` | true difference | sweeps with a difference shown | with plain tests | comparisons shown | intervals that contain the truth | seeds, mean (n = {sweeps:,} sweeps) |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for first, most, difference in (
        (3, 30, 0.0),
        (3, 12, 0.0),
        (5, 30, 0.0),
        (3, 30, 0.05),
        (3, 30, 0.1),
        (3, 30, 0.3),
    ):
        found = simulate(sweeps, Until(NARROW, most, first, most), difference)
        shares = (found.any_shown, found.any_shown_plain, found.shown, found.covered)
        cells = [
            f"{first}, {most}",
            f"{difference:g}",
            *(f"{100 * share:.1f} %" for share in shares),
            f"{found.seeds:.1f}",
        ]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=2_000, help="of each kind; default: 2000")
    parser.add_argument("--write", action="store_true", help="write the table into docs/sweeps.md")
    options = parser.parse_args()
    lines = list(table(options.sweeps))
    print("\n".join(lines))
    if options.write:
        write_between_markers(DOCUMENT, "sequential", lines)


if __name__ == "__main__":
    main()
