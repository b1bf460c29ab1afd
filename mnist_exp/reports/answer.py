"""The result of a report in words: the best arm, how sure its lead is, and what to run if there are too few seeds."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from mnist_exp.errors import as_override
from mnist_exp.reports.collect import Arm, Comparison
from mnist_exp.reports.pairwise import Pairwise, compare_pair, stopping
from mnist_exp.reports.reproduction import words_of
from mnist_exp.reports.sequential import is_narrow, next_look
from mnist_exp.reports.statistics import LEVEL, MOST_SEEDS, SeedPlan, plan_seeds
from mnist_exp.reports.tables import Row, is_ranked_by_validation, p_value, percent
from mnist_exp.runs.reading import Run
from mnist_exp.runs.settings import natural
from mnist_exp.runs.sweep import Until, read_sweep


class Finding(StrEnum):
    """Whether a difference is shown."""

    REAL = "real"
    NOT_SHOWN = "not shown"
    TOO_FEW = "too few seeds"


@dataclass(frozen=True)
class Contrast:
    """The best arm against another.

    Attributes:
        pair: the comparison, best minus opponent.
        role: of the opponent: ``the baseline``, ``the runner-up`` or both.
        finding: None if they cannot be compared. reason: for the finding, in words.
        more: how many more seeds are needed; None if that is not the reason.
        commands: that train them.
    """

    pair: Pairwise
    opponent: Arm
    role: str
    finding: Finding | None
    reason: str
    more: int | None = None
    commands: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The contrast in one sentence."""
        if self.pair.seeds is None:
            return f"Against {self.role} {self.opponent.label}: {self.reason}"
        known = self.pair.seeds.interval
        between = f" (95 % interval {100 * known.low:+.2f} to {100 * known.high:+.2f})" if known else ""
        return f"Against {self.role} {self.opponent.label}: {self.pair.effect} points{between}: {self.finding}. {self.reason}"


@dataclass(frozen=True)
class Answer:
    """The answer of a report.

    Attributes:
        title: the result in one line. facts: about it, in a sentence; empty if there is nothing to say.
        contrasts: against the baseline and the runner-up.
        more_seeds: the commands for more seeds of a single arm; empty if there are several arms, or enough seeds.
    """

    title: str
    facts: str
    contrasts: tuple[Contrast, ...] = ()
    more_seeds: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """All of it in words, without the commands."""
        return " ".join(filter(None, (f"{self.title}.", self.facts, *(c.sentence for c in self.contrasts))))


# Words of a report, and what they mean.
MEANING = (
    (
        "Paired over seeds",
        "Runs with the same seed see the training images in the same order. So two arms are compared seed by seed, and luck "
        "that both share does not count. The interval shows where the difference would be with other seeds",
    ),
    (
        "By image",
        "Two networks answer the same test images, and only those count that exactly one of them gets right. This shows "
        "whether other test images of the same kind would give a difference, too",
    ),
    (
        "Real, not shown, too few seeds",
        "Real: with other seeds and other images, chance alone would give so large a difference in less than 5 % of all "
        "cases (p < 0.05; against the baseline corrected for the number of comparisons). Not shown does not mean that the "
        "arms are equal",
    ),
    (
        "More needed",
        "So many seeds that a two-sided t-test at 5 % (against the baseline divided by the number of comparisons) finds the "
        "difference in 8 of 10 repetitions (power 80 %), if the true difference is as large as the measured one, and the "
        "spread over seeds is normal and stays as measured. From a few seeds this is a rough number",
    ),
)
UNTESTED = (
    "The test set was not evaluated (trainer.evaluate_test=never). The best of many on validation data is usually a little "
    "worse on other data."
)
NOTHING = 1e-12  # a smaller difference of accuracies is rounding
ENOUGH = 5  # seeds from which the spread is known within a factor of about two
FEW = 3  # with fewer seeds the spread cannot be estimated well enough for a number of seeds


def answer(comparison: Comparison, rows: Sequence[Row], pairs: Sequence[Pairwise]) -> Answer:
    """The result of a comparison.

    The baseline's p-value is corrected for the number of comparisons with it. The runner-up's is not, because a two-sided
    test of the best arm against the second keeps its level whatever the number of arms (Hung and Fithian, "Rank
    verification for exponential families", Annals of Statistics 47, 2019).

    Args:
        rows: best first. pairs: see ``pairwise.against_baseline``.
    """
    known = [row for row in rows if row.has_result]
    if not known:
        return Answer("No run has completed yet", "There is no result; the curves show the epochs so far.")
    best = known[0]
    means = (("validation", best.validation_mean if is_ranked_by_validation(rows) else None), ("test", best.mean))
    shown = [f"{percent(mean)} {split}" for split, mean in means if mean is not None]
    if not shown:
        return Answer(
            "Neither validation nor test accuracy is known",
            "The runs held out no validation data and did not evaluate the test set (trainer.evaluate_test=never), so "
            "nothing can be said about the arms. mnist-eval DIR computes the test figures of a run.",
        )
    figures = f"{' and '.join(shown)} accuracy"
    facts = " ".join(filter(None, (_facts(best), stopping(comparison, pairs))))
    if len(comparison.arms) == 1:
        more = FEW - len(best.arm.runs)
        return Answer(f"{best.arm.label}: {figures}", facts, more_seeds=_commands([best.arm], more) if more > 0 else ())
    if best.is_baseline:
        facts += f" It is the baseline ({comparison.reason})."
    title = f"Best arm: {best.arm.label}, {figures}"
    if not any(row.accuracy for row in known):
        return Answer(title, f"{facts} {UNTESTED}")
    return Answer(title, facts, tuple(_contrasts(comparison, known, pairs)))


def _facts(row: Row) -> str:
    sample, split = (row.accuracy, "test") if row.accuracy else (row.validation, "validation")
    if sample is None or sample.interval is None:
        return "One seed; another seed may give another result."
    over_seeds = f"{100 * sample.interval.low:.2f} to {100 * sample.interval.high:.2f} %"
    return f"Mean of {sample.n} seeds; 95 % interval of the {split} accuracy over seeds {over_seeds}."


def _contrasts(comparison: Comparison, known: Sequence[Row], pairs: Sequence[Pairwise]) -> Iterable[Contrast]:
    best = known[0].arm
    others = [row.arm for row in known[1:]]
    baseline, until = comparison.arms[comparison.baseline], comparison.until
    if baseline is not best:
        (pair,) = [pair for pair in pairs if pair.arm is best]
        both = bool(others) and others[0] is baseline
        compared = sum(other.seeds is not None and other.seeds.p is not None for other in pairs)
        yield _contrast(pair, baseline, "the baseline and runner-up" if both else "the baseline", compared, until)
    if others and others[0] is not baseline:
        yield _contrast(compare_pair(best, others[0], until), others[0], "the runner-up", 1, until)


def _contrast(pair: Pairwise, opponent: Arm, role: str, comparisons: int, until: Until | None) -> Contrast:
    arm, seeds = pair.arm, pair.seeds
    if seeds is None:
        return Contrast(pair, opponent, role, None, f"{pair.verdict}.")
    fewest = min(len(arm.runs), len(opponent.runs))
    n = seeds.n or fewest
    ordered = sorted((arm, opponent), key=lambda one: natural(one.label))

    def too_few(reason: str, more: int) -> Contrast:
        return Contrast(pair, opponent, role, Finding.TOO_FEW, reason, more, _commands(ordered, more))

    if until is not None and pair.seeds_p is not None:
        return _of_adding_sweep(pair, opponent, role, until)
    plan = plan_seeds(seeds, n, max(comparisons, 1))
    if plan is None or pair.seeds_p is None:
        if fewest < FEW:
            more = FEW - fewest
            return too_few(
                f"{'One seed does' if fewest == 1 else f'{fewest} seeds do'} not show how much results differ from seed to "
                f"seed: {_count(more, 'more ')} of each needed for a first estimate.",
                more,
            )
        if abs(seeds.mean) < NOTHING:
            return Contrast(pair, opponent, role, Finding.NOT_SHOWN, f"All {n} seeds give both arms the same accuracy.")
        return too_few(
            "The difference is the same with every seed, so its spread is not known: 1 more seed of each needed.", 1
        )
    if abs(seeds.mean) < NOTHING:
        reason = f"The means are equal; {n} seeds of each can tell {100 * plan.detectable:.2f} points apart."
        return Contrast(pair, opponent, role, Finding.NOT_SHOWN, reason)
    if pair.seeds_p < 1 - LEVEL:
        return _shown(pair, opponent, role)
    points = f"{100 * abs(seeds.mean):{'.2f' if abs(seeds.mean) >= 5e-5 else '.1g'}} points"
    if plan.needed is not None and plan.needed > n:
        more = plan.needed - n
        rough = f" A rough number: the spread is known from {n} seeds only." if n < ENOUGH else ""
        return too_few(f"About {_count(more, 'more ')} of each needed to tell {points} apart.{rough}", more)
    return Contrast(pair, opponent, role, Finding.NOT_SHOWN, _not_shown(plan, n, points))


def _of_adding_sweep(pair: Pairwise, opponent: Arm, role: str, until: Until) -> Contrast:
    """The contrast in a sweep that adds seeds by itself."""
    assert pair.seeds is not None
    assert pair.seeds_p is not None
    n = pair.seeds.n or 0
    if pair.seeds_p < 1 - LEVEL:
        return _shown(pair, opponent, role)
    if is_narrow(pair.seeds, until):
        reason = f"{n} seeds of each: the difference is known to ± {until.points:g} points, as asked."
        return Contrast(pair, opponent, role, Finding.NOT_SHOWN, reason)
    if role == "the runner-up":
        reason = f"{n} seeds of each do not show it; the sweep adds seeds for comparisons with the baseline only."
        return Contrast(pair, opponent, role, Finding.NOT_SHOWN, reason)
    at_end = n >= until.max_seeds
    most = next_look(replace(until, max_seeds=1000), n) if at_end else until.max_seeds
    folder = pair.arm.any_run.path.parent
    own = [word for word in read_sweep(folder).arguments if _key(word) not in OF_ADDING]
    command = shlex.join(["mnist-train", *own, as_override("hydra.sweep.dir", folder), f"sweep.max_seeds={most}"])
    reason = f"sweep.max_seeds={n} is reached; to add more:" if at_end else "The sweep is not finished; to finish it:"
    return Contrast(pair, opponent, role, Finding.TOO_FEW, reason, None, (command,))


def _shown(pair: Pairwise, opponent: Arm, role: str) -> Contrast:
    assert pair.seeds is not None
    p = f"p {_is(pair.seeds_p)} over seeds" + ("" if pair.images_p is None else f", p {_is(pair.images_p)} by image")
    if pair.images_p is not None and pair.images_p >= 1 - LEVEL:
        reason = f"Other seeds would show it on these test images, but other test images may not ({p})."
        return Contrast(pair, opponent, role, Finding.NOT_SHOWN, reason)
    reason = f"So large a difference is rare by chance ({p})."
    if pair.seeds.mean < 0:
        reason = f"{pair.arm.label} is worse on the test images. {reason}"
    return Contrast(pair, opponent, role, Finding.REAL, reason)


def _not_shown(plan: SeedPlan, n: int, points: str) -> str:
    able = f"{n} seeds of each can tell {100 * plan.detectable:.2f} points apart"
    return f"{able}; for {points}, which is less than the luck of a seed, more than {MOST_SEEDS} would be needed."


def _is(value: float | None) -> str:
    text = p_value(value)
    return text if text.startswith("<") else f"= {text}"


def _count(seeds: int, which: str = "") -> str:
    return f"{seeds} {which}seed{'' if seeds == 1 else 's'}"


NO_SEARCH = ("hydra/sweeper=basic", "hydra.sweeper.params=null")
OF_ADDING = ("hydra.sweep.dir", "sweep.resume", "sweep.max_seeds")
NOT_REPEATED = ("seed", "hydra.run.dir", "hydra.sweep.dir", "sweep.name", "resume")


def _commands(arms: Sequence[Arm], more: int) -> tuple[str, ...]:
    """The commands that train ``more`` seeds of each arm, the same ones for all; in the arms' sweep if they are in one.

    Seeds that one of the arms has already come first. Empty if the overrides of an arm are not known.
    """
    used = {seed for arm in arms for seed in arm.runs}
    common = set.intersection(*(set(arm.runs) for arm in arms))
    target = min(len(arm.runs) for arm in arms) + more
    unused = (seed for seed in itertools.count() if seed not in used)
    wanted = list(itertools.islice(itertools.chain(sorted(used - common), unused), target - len(common)))
    words = [_repeated(arm.any_run) for arm in arms]
    missing = [sorted(seed for seed in wanted if seed not in arm.runs) for arm in arms]
    if not all(words):
        return ()  # the overrides of an arm are not known
    joined = _joined(words) if all(seeds == missing[0] for seeds in missing) else None
    if joined is not None:
        words, missing = [joined], missing[:1]
    return tuple(
        shlex.join(["mnist-train", "-m", *own, _seeds(seeds), _place(arms)])
        for own, seeds in zip(words, missing, strict=True)
        if seeds
    )


def _repeated(run: Run) -> list[str]:
    """The words of the command of a run without its seed and directory."""
    words = [word for word in words_of(run) if _key(word) not in NOT_REPEATED]
    # The settings that a search found are no search again.
    return [*words, *NO_SEARCH] if words and run.record.search else words


def _seeds(seeds: Sequence[int]) -> str:
    """The override for these seeds."""
    first, last = seeds[0], seeds[-1]
    if len(seeds) > 4 and list(seeds) == list(range(first, last + 1)):
        return f"seed=range({first},{last + 1})"
    return f"seed={','.join(map(str, seeds))}"


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0]


def _joined(words: Sequence[Sequence[str]]) -> list[str] | None:
    """One list of overrides for arms that differ in one plain value; None if they differ in more."""
    first, *others = words
    if not others:
        return list(first)
    (second,) = others
    if [_key(word) for word in first] != [_key(word) for word in second]:
        return None
    different = [place for place, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1]]
    if len(different) != 1:
        return None
    values = [own[different[0]].partition("=")[2] for own in words]
    return [*first[: different[0]], f"{first[different[0]]},{values[1]}", *first[different[0] + 1 :]]


def _place(arms: Sequence[Arm]) -> str:
    """The override for the sweep directory: that of the arms, if they are in one sweep, else a new one."""
    runs: list[Run] = [run for arm in arms for run in [*arm.runs.values(), *arm.others]]
    folders: set[Path] = {run.path.parent for run in runs}
    if len(folders) == 1 and (next(iter(folders)) / "sweep.json").is_file():
        return as_override("hydra.sweep.dir", next(iter(folders)))
    return "sweep.name=more-seeds"
