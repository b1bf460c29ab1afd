"""The statistics of a report against other implementations and against worked examples of the sources."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
from lazily import Lazily

from mnist_exp.reports.statistics import (
    POWER,
    calibration,
    detectable,
    holm,
    image_difference,
    importance,
    mcnemar,
    merge_dependent,
    over_seeds,
    pareto,
    plan_seeds,
    power,
    seed_difference,
    seeds_needed,
    wilson,
)

pd, stats = Lazily("pandas"), Lazily("scipy.stats")
formula, anova = Lazily("statsmodels.formula.api"), Lazily("statsmodels.stats.anova")
tables, weights = Lazily("statsmodels.stats.contingency_tables"), Lazily("statsmodels.stats.weightstats")
several, proportion = Lazily("statsmodels.stats.multitest"), Lazily("statsmodels.stats.proportion")
RANDOM = np.random.default_rng(0)


class TestOverSeeds:
    def test_agrees_with_scipy(self) -> None:
        values = [0.9905, 0.9911, 0.9897, 0.9902, 0.9920]
        sample = over_seeds(values)
        low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
        assert sample.interval is not None
        assert (sample.n, sample.mean, sample.std) == pytest.approx((5, np.mean(values), np.std(values, ddof=1)))
        assert (sample.interval.low, sample.interval.high) == pytest.approx((low, high))

    def test_two_seeds_by_hand(self) -> None:
        """t(0.975; 1) = 12.706, standard error 0.005: 0.985 +- 0.0635."""
        interval = over_seeds([0.98, 0.99]).interval
        assert interval is not None
        assert (interval.low, interval.high) == pytest.approx((0.985 - 0.06353, 0.985 + 0.06353), abs=1e-5)

    def test_one_seed_has_no_spread(self) -> None:
        sample = over_seeds([0.99])
        assert (sample.std, sample.interval) == (None, None)

    def test_none_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="no values"):
            over_seeds([])

    def test_the_interval_has_its_coverage(self) -> None:
        draws = RANDOM.normal(0.5, 0.1, (4000, 4))
        covered = [i.low <= 0.5 <= i.high for i in (over_seeds(list(row)).interval for row in draws) if i]
        assert np.mean(covered) == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors


@pytest.mark.parametrize(("correct", "images"), [(9909, 10_000), (10_000, 10_000), (0, 50), (40, 50)])
def test_wilson_agrees_with_statsmodels(correct: int, images: int) -> None:
    low, high = proportion.proportion_confint(correct, images, 0.05, method="wilson")
    interval = wilson(correct, images)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)


class TestSeedDifference:
    ARM: ClassVar = {0: 0.9911, 1: 0.9905, 2: 0.9920, 3: 0.9899}
    BASELINE: ClassVar = {0: 0.9890, 1: 0.9894, 2: 0.9889, 3: 0.9897, 7: 0.5}

    def test_paired_agrees_with_scipy_and_uses_shared_seeds_only(self) -> None:
        difference = seed_difference(self.ARM, self.BASELINE)
        reference = stats.ttest_rel([self.ARM[s] for s in range(4)], [self.BASELINE[s] for s in range(4)])
        low, high = reference.confidence_interval(0.95)
        assert difference.interval is not None
        assert difference.n == 4
        assert difference.p == pytest.approx(reference.pvalue)
        assert (difference.interval.low, difference.interval.high) == pytest.approx((low, high))

    def test_unpaired_is_welch(self) -> None:
        first, second = self.ARM, {11: 0.9890, 12: 0.9894, 13: 0.9850}
        difference = seed_difference(first, second)
        compared = weights.CompareMeans(
            weights.DescrStatsW(list(first.values())), weights.DescrStatsW(list(second.values()))
        )
        assert difference.interval is not None
        assert difference.n is None
        assert difference.p == pytest.approx(compared.ttest_ind(usevar="unequal")[1])
        assert (difference.interval.low, difference.interval.high) == pytest.approx(
            compared.tconfint_diff(usevar="unequal")
        )

    def test_student_1908_sleep(self) -> None:
        """Two soporifics, ten patients: t = 4.0621 with 9 degrees of freedom, p = 0.002833 (Student 1908)."""
        first = dict(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))
        second = dict(enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]))
        difference = seed_difference(second, first)
        assert difference.mean == pytest.approx(1.58)
        assert difference.p == pytest.approx(0.002833, abs=1e-6)

    @pytest.mark.parametrize(
        ("arm", "baseline"),
        [({0: 0.9}, {0: 0.8}), ({0: 0.9}, {0: 0.8, 1: 0.8}), ({0: 0.9}, {1: 0.8, 2: 0.7}), ({5: 0.9}, {1: 0.8})],
    )
    def test_one_seed_has_no_p_value(self, arm: dict[int, float], baseline: dict[int, float]) -> None:
        difference = seed_difference(arm, baseline)
        assert difference.mean > 0.09
        assert (difference.interval, difference.p) == (None, None)

    def test_equal_differences_have_no_spread(self) -> None:
        difference = seed_difference({0: 0.903, 1: 0.913}, {0: 0.9, 1: 0.91})
        assert difference.mean == pytest.approx(0.003)
        assert (difference.interval, difference.p) == (None, None)


class TestPower:
    @pytest.mark.parametrize(
        ("n", "effect", "paired", "known"),
        [(34, 0.5, True, 0.8078), (5, 1.0, True, 0.4014), (64, 0.5, False, 0.8015), (26, 0.8, False, 0.8075)],
    )
    def test_published_values(self, n: int, effect: float, paired: bool, known: float) -> None:
        """G*Power 3; Cohen (1988), tables 2.3.5 and 2.4.1, for 64 and 26."""
        assert power(n, effect, paired=paired) == pytest.approx(known, abs=5e-5)

    @pytest.mark.parametrize(("n", "effect", "level"), [(2, 8.0, 0.05), (3, 2.0, 0.05), (5, 1.2, 0.05), (8, 1.5, 0.01)])
    def test_paired_agrees_with_simulation(self, n: int, effect: float, level: float) -> None:
        differences = np.random.default_rng(1).normal(effect, 1.0, (40_000, n))
        shown = stats.ttest_1samp(differences, 0, axis=1).pvalue < level
        assert power(n, effect, level=level) == pytest.approx(shown.mean(), abs=0.01)

    @pytest.mark.parametrize(("n", "effect"), [(3, 2.0), (6, 1.5)])
    def test_unpaired_agrees_with_simulation(self, n: int, effect: float) -> None:
        random = np.random.default_rng(2)
        shown = stats.ttest_ind(random.normal(effect, 1, (40_000, n)), random.normal(0, 1, (40_000, n)), axis=1)
        assert power(n, effect, paired=False) == pytest.approx((shown.pvalue < 0.05).mean(), abs=0.01)

    def test_the_planned_number_is_the_smallest_that_is_enough(self) -> None:
        for effect in (0.6, 1.0, 3.0):
            needed = seeds_needed(effect)
            assert needed is not None
            assert power(needed, effect) >= POWER > power(needed - 1, effect)
        assert (seeds_needed(1.0), seeds_needed(0.3)) == (10, None)

    @pytest.mark.parametrize("level", [0.05, 0.05 / 29])
    def test_detectable_is_the_inverse(self, level: float) -> None:
        for n in (2, 3, 10):
            assert power(n, detectable(n, level=level), level=level) == pytest.approx(POWER)

    def test_a_plan_from_measured_seeds(self) -> None:
        values = {0: 0.980, 1: 0.984, 2: 0.983, 3: 0.981}
        gains = (0.000, 0.004, 0.001, 0.003)
        paired = seed_difference({seed: values[seed] + gains[seed] for seed in values}, values)
        plan = plan_seeds(paired, 4)
        assert plan is not None
        assert plan.needed == seeds_needed(0.002 / np.std(gains, ddof=1))
        assert plan.detectable == pytest.approx(detectable(4) * np.std(gains, ddof=1))
        stricter = plan_seeds(paired, 4, comparisons=10)
        assert stricter is not None
        assert stricter.detectable > plan.detectable
        separate = plan_seeds(seed_difference({10 + seed: value for seed, value in values.items()}, values), 4)
        assert separate is not None
        assert separate.needed is None, "no difference at all"
        assert separate.detectable == pytest.approx(detectable(4, paired=False) * np.std([*values.values()], ddof=1))
        assert plan_seeds(seed_difference({0: 0.9}, {0: 0.8}), 1) is None

    def test_the_best_against_the_runner_up_keeps_the_level_without_correction(self) -> None:
        """Hung and Fithian (2019): also where many equal arms compete, and where two are equal and the others worse."""
        random = np.random.default_rng(3)
        for centre in ([0.0] * 8, [0.0, 0.0, -9.0]):
            arms = np.sort(np.array(centre)[:, None, None] + random.normal(0, 1, (len(centre), 4000, 4)), axis=-1)
            arms = random.permuted(arms, axis=-1)
            order = arms.mean(axis=-1).argsort(axis=0)
            best, second = (np.take_along_axis(arms, order[[place], :, None], axis=0)[0] for place in (-1, -2))
            assert (stats.ttest_rel(best, second, axis=1).pvalue < 0.05).mean() < 0.06


class TestMcNemar:
    @pytest.mark.parametrize(("only_first", "only_second"), [(0, 5), (3, 9), (12, 7), (60, 31), (8, 8), (0, 1)])
    def test_mid_p_is_exact_minus_half_of_the_observed(self, only_first: int, only_second: int) -> None:
        exact = tables.mcnemar([[0, only_first], [only_second, 0]], exact=True).pvalue
        observed = stats.binom.pmf(only_first, only_first + only_second, 0.5)
        expected = 1 - observed / 2 if only_first == only_second else exact - observed
        assert mcnemar(only_first, only_second) == pytest.approx(expected)

    def test_worked_example(self) -> None:
        """Airway hyper-responsiveness before and after stem cell transplantation, b = 1, c = 7: exact 0.0703, mid-p
        0.0391 (the example of Fagerland, Lydersen and Laake 2013)."""
        assert mcnemar(1, 7) == pytest.approx(0.0391, abs=5e-5)

    def test_no_image_with_different_answers(self) -> None:
        assert mcnemar(0, 0) == 1.0


class TestImages:
    def test_one_pair_is_the_interval_of_paired_proportions(self) -> None:
        """Agresti, Categorical Data Analysis, table 11.1: approval 944 and 880 of 1,600, 150 and 86 changed their mind;
        difference -0.04, standard error 0.0095, interval -0.0587 to -0.0213."""
        first = np.array([True] * 794 + [True] * 150 + [False] * 86 + [False] * 570)
        second = np.array([True] * 794 + [False] * 150 + [True] * 86 + [False] * 570)
        difference = image_difference([(second, first)])
        assert difference.mean == pytest.approx(-0.04)
        assert (difference.interval.low, difference.interval.high) == pytest.approx((-0.0587, -0.0213), abs=1e-4)
        assert (difference.only_arm, difference.only_baseline) == (86, 150)
        assert difference.p == mcnemar(86, 150)

    def test_pairs_are_averaged_image_by_image(self) -> None:
        base = np.array([True, True, False, False] * 25)
        difference = image_difference([(np.ones(100, dtype=bool), base), (base, base)])
        assert difference.pairs == 2
        assert difference.mean == 0.25
        assert (difference.only_arm, difference.only_baseline) == (25, 0)

    def test_merged_p_values_keep_their_level_when_they_depend(self) -> None:
        """Five tests that see the same data in part: under no difference at most 5 % of merged values are below 5 %."""
        shared, own = RANDOM.normal(size=(6000, 1)), RANDOM.normal(size=(6000, 5))
        p = 2 * stats.norm.sf(np.abs(math.sqrt(0.8) * shared + math.sqrt(0.2) * own))
        merged = np.array([merge_dependent(list(row)) for row in p])
        assert 0.005 < np.mean(merged < 0.05) <= 0.05

    def test_merging_by_hand(self) -> None:
        assert merge_dependent([0.03]) == 0.03
        assert merge_dependent([0.01, 0.2]) == 0.2
        assert merge_dependent([0.3, 0.01, 0.02]) == pytest.approx(0.03)


class TestHolm:
    def test_agrees_with_statsmodels(self) -> None:
        for size in (1, 2, 7, 30):
            values = RANDOM.uniform(0, 0.2, size)
            assert holm(list(values)) == pytest.approx(several.multipletests(values, method="holm")[1])

    def test_worked_example(self) -> None:
        assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])

    def test_nothing_to_correct(self) -> None:
        assert holm([]) == []


class TestCalibration:
    def test_by_hand(self) -> None:
        """Two bins: 0.3 and 0.5 (one of two right), 0.9 and 1.0 (both right): (|0.8 - 1| + |1.9 - 2|) / 4."""
        found = calibration(np.array([0.3, 0.5, 0.9, 1.0]), np.array([True, False, True, True]), bins=2)
        assert found.counts.tolist() == [2, 2]
        assert found.correct.tolist() == [1, 2]
        assert found.error == pytest.approx(0.075)

    def test_a_calibrated_network_has_almost_none(self) -> None:
        confidence = RANDOM.uniform(0.1, 1, 200_000)
        correct = RANDOM.uniform(size=200_000) < confidence
        assert calibration(confidence, correct).error < 0.01
        assert calibration(confidence, np.ones(200_000, dtype=bool)).error == pytest.approx(0.45, abs=0.01)

    def test_runs_add_up(self) -> None:
        confidence, correct = RANDOM.uniform(0.1, 1, 300), RANDOM.uniform(size=300) < 0.7
        parts = calibration(confidence[:100], correct[:100]) + calibration(confidence[100:], correct[100:])
        assert parts.error == pytest.approx(calibration(confidence, correct).error)


class TestImportance:
    def test_agrees_with_statsmodels(self) -> None:
        groups = [RANDOM.normal(mean, 1, 12) for mean in (0, 0.5, 2)]
        data = pd.DataFrame({"y": np.concatenate(groups), "g": np.repeat(list("abc"), 12)})
        table = anova.anova_lm(formula.ols("y ~ g", data).fit())
        between, within, error = table["sum_sq"]["g"], table["sum_sq"]["Residual"], table["mean_sq"]["Residual"]
        # Epsilon squared as textbooks write it: (SS_between - df_between MS_error) / SS_total.
        assert importance([list(group) for group in groups]) == pytest.approx(
            (between - 2 * error) / (between + within)
        )

    def test_noise_explains_nothing(self) -> None:
        shares = [importance([list(RANDOM.normal(size=3)) for _ in range(5)]) or 0 for _ in range(300)]
        assert np.median(shares) < 0.1

    @pytest.mark.parametrize("groups", [[[1.0, 2.0]], [[1.0], [2.0]], [[1.0, 1.0], [1.0, 1.0]], []])
    def test_unknown_importance(self, groups: list[list[float]]) -> None:
        assert importance(groups) is None


def test_pareto_front() -> None:
    costs, gains = [1, 2, 2, 3, 4, 1], [0.5, 0.7, 0.6, 0.65, 0.9, 0.4]
    assert pareto(costs, gains) == [0, 1, 4]
    assert pareto([1, 1], [0.5, 0.5]) == [0, 1]
    assert pareto([], []) == []
