"""Each arm against the baseline: over seeds, over test images, corrected for the number of comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mnist_exp.reports.collect import Arm, Comparison
from mnist_exp.reports.sequential import is_settled, looks_in_words, sequential_difference
from mnist_exp.reports.statistics import (
    LEVEL,
    Difference,
    ImageDifference,
    holm,
    image_difference,
    seed_difference,
)
from mnist_exp.runs.sweep import Until


@dataclass(frozen=True)
class Pairwise:
    """One arm against the baseline; differences are arm minus baseline, fractions of the test set.

    Attributes:
        seeds: over seeds; None where either has no result.
        images: over test images; None without predictions for the same test set.
        test_images: size of the test set that both were tested on; None where it is not known.
        seeds_p, images_p: p-values, corrected by Holm's method for the number of such tests in the report.
        verdict: the result in words.
    """

    arm: Arm
    seeds: Difference | None
    images: ImageDifference | None
    test_images: int | None
    seeds_p: float | None
    images_p: float | None
    verdict: str

    @property
    def effect(self) -> str:
        """Mean difference in percentage points; ``-`` where there is none."""
        return f"{100 * self.seeds.mean:+.2f}" if self.seeds else "-"

    @property
    def in_images(self) -> str:
        """Mean difference in test images, and the size of the test set; ``-`` if it is not known."""
        if self.seeds is None or self.test_images is None:
            return "-"
        return f"{self.seeds.mean * self.test_images:+,.1f}".removesuffix(".0") + f" of {self.test_images:,}"


def against_baseline(comparison: Comparison) -> list[Pairwise]:
    """All arms but the baseline, in their order."""
    baseline = comparison.arms[comparison.baseline]
    others = [arm for index, arm in enumerate(comparison.arms) if index != comparison.baseline]
    return _against(baseline, others, comparison.until)


def compare_pair(arm: Arm, opponent: Arm, until: Until | None = None) -> Pairwise:
    """One arm against another, not corrected, because it is the only comparison.

    Args:
        until: see ``Comparison``.
    """
    return _against(opponent, [arm], until)[0]


def stopping(comparison: Comparison, pairs: Sequence[Pairwise]) -> str:
    """How the sweep of a report added seeds, and why it stopped, in words; empty for an ordinary sweep.

    Args:
        pairs: as ``against_baseline`` returns them.
    """
    until = comparison.until
    if until is None:
        return ""
    left = [pair for pair in pairs if not is_settled(pair.seeds, pair.seeds_p, until)]
    most = max((len(arm.runs) for arm in comparison.arms), default=0)
    if not left:
        reason = "all comparisons are settled"
    else:
        which = ", ".join(pair.arm.label for pair in left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
        reached = f"sweep.max_seeds={until.max_seeds} is reached" if most >= until.max_seeds else "it is not finished"
        reason = f"{reached}, with {len(left)} of {len(pairs)} comparisons open ({which})"
    return (
        f"This sweep added seeds until each difference from the baseline was shown or known to ± {until.points:g} points: "
        f"{reason}. {looks_in_words(until, [pair.seeds.n or 0 for pair in pairs if pair.seeds])}; intervals and p-values of "
        "differences over seeds allow for the looks."
    )


def _against(baseline: Arm, others: Sequence[Arm], until: Until | None) -> list[Pairwise]:
    def difference(first: dict[int, float], second: dict[int, float]) -> Difference:
        return seed_difference(first, second) if until is None else sequential_difference(first, second, until)

    of_baseline = baseline.final("test_accuracy")
    tested = [arm.final("test_accuracy") for arm in others]
    comparable = [
        arm if of_arm and of_baseline and _same_test_set(arm, baseline) else None
        for arm, of_arm in zip(others, tested, strict=True)
    ]
    seeds = [difference(of_arm, of_baseline) if arm else None for arm, of_arm in zip(comparable, tested, strict=True)]
    images = [_by_image(arm, baseline) if arm else None for arm in comparable]
    all_seeds_p = _corrected([difference.p if difference else None for difference in seeds])
    all_images_p = _corrected([difference.p if difference else None for difference in images])
    return [
        Pairwise(
            arm=arm,
            seeds=by_seed,
            images=by_image,
            test_images=arm.test_images if arm.test_set == baseline.test_set else None,
            seeds_p=seeds_p,
            images_p=images_p,
            verdict=_verdict(arm, baseline, by_seed, by_image, seeds_p, images_p),
        )
        for arm, by_seed, by_image, seeds_p, images_p in zip(
            others, seeds, images, all_seeds_p, all_images_p, strict=True
        )
    ]


def _same_test_set(arm: Arm, baseline: Arm) -> bool:
    return arm.test_set is None or baseline.test_set is None or arm.test_set == baseline.test_set


def _by_image(arm: Arm, baseline: Arm) -> ImageDifference | None:
    if not arm.correct or not baseline.correct:
        return None
    shared = sorted(arm.correct.keys() & baseline.correct.keys())
    if shared:
        return image_difference([(arm.correct[seed], baseline.correct[seed]) for seed in shared])
    return image_difference([(next(iter(arm.correct.values())), next(iter(baseline.correct.values())))])


def _corrected(values: list[float | None]) -> list[float | None]:
    corrected = iter(holm([value for value in values if value is not None]))
    return [None if value is None else next(corrected) for value in values]


def _verdict(
    arm: Arm,
    baseline: Arm,
    seeds: Difference | None,
    images: ImageDifference | None,
    seeds_p: float | None,
    images_p: float | None,
) -> str:
    if seeds is None:
        if not arm.runs or not baseline.runs:
            return "no completed run to compare"
        if not arm.final("test_accuracy") or not baseline.final("test_accuracy"):
            return "test set not evaluated: not compared"
        return "other test set: not comparable"
    direction = "better" if seeds.mean > 0 else "worse"
    on_images = images_p is not None and images_p < 1 - LEVEL
    if seeds.p is None:
        if min(len(arm.runs), len(baseline.runs)) < 2:
            return "unable to say: one seed" + (f" (these networks differ: {direction} on images)" if on_images else "")
        return "unable to say: no spread over seeds"
    if seeds_p is not None and seeds_p < 1 - LEVEL:
        return f"{direction}" if on_images or images is None else f"{direction} over seeds, not shown on images"
    return f"no difference shown over seeds{f', {direction} on images' if on_images else ''}"
