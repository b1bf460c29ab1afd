"""From a report's claims and the measured runs to verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from mnist_exp.config import Config
from mnist_exp.errors import UsageError
from mnist_exp.reports.audit.claims import Claimed, Model, Report
from mnist_exp.reports.audit.counting import Count
from mnist_exp.reports.audit.results import Row, values_at
from mnist_exp.reports.single_run import MOST_RUNS, Judgement, Verdict, judge

WORDS = {"accuracy": "accuracy", "error": "error rate", "loss": "loss"}
SPLITS = {"train": "training", "test": "test"}


@dataclass(frozen=True)
class Point:
    """One claimed number, and what the runs say about it.

    Attributes:
        epoch: None: the end of training.
        judgement: None if no run has this epoch.
    """

    epoch: int | None
    claimed: Claimed
    judgement: Judgement | None


@dataclass(frozen=True)
class Finding:
    """One claim about a result, and its verdict: a number at the end of training, or the numbers after earlier epochs together.

    Attributes:
        quantity: as in ``claims.Results``.
        verdict: None if nothing is measured.
    """

    quantity: str
    points: tuple[Point, ...]

    @property
    def title(self) -> str:
        """What is claimed, without the numbers; without an epoch: at the end of training."""
        split, _, kind = self.quantity.partition("_")
        epochs = [point.epoch for point in self.points if point.epoch is not None]
        which = (
            ""
            if not epochs
            else f", epoch {epochs[0]}"
            if len(epochs) == 1
            else f", epochs {epochs[0]} to {epochs[-1]}"
        )
        return f"{SPLITS[split]} {WORDS[kind]}{which}"

    @property
    def is_fraction(self) -> bool:
        return not self.quantity.endswith("_loss")

    @cached_property
    def worst(self) -> Point | None:
        """The point that is farthest from the runs, in standard deviations; None if nothing is measured."""
        judged = [point for point in self.points if point.judgement]
        return max(judged, key=lambda point: abs((point.judgement and point.judgement.distance) or 0.0), default=None)

    @property
    def verdict(self) -> Verdict | None:
        found = {point.judgement.verdict for point in self.points if point.judgement}
        order = (Verdict.NOT_REPRODUCED, Verdict.CANNOT_BE_TOLD, Verdict.REPRODUCED)
        return next((verdict for verdict in order if verdict in found), None)

    @property
    def needed(self) -> str:
        """How many seeds would decide, for a claim that cannot be told; else empty."""
        if self.verdict != Verdict.CANNOT_BE_TOLD:
            return ""
        undecided = [p.judgement for p in self.points if p.judgement and p.judgement.verdict == self.verdict]
        needed = [judgement.needed for judgement in undecided]
        return str(max(filter(None, needed))) if all(needed) else f"more than {MOST_RUNS}"


@dataclass(frozen=True)
class Audited:
    """A network of a report, with all that is known about it.

    Attributes:
        label: report and network. config: of the recipe, with seed 0. runs: the epochs of each measured run.
        count: of its parameters. problems: a sentence for each run that does not count.
    """

    report: Report
    name: str
    model: Model
    config: Config
    count: Count
    runs: Sequence[dict[int, Row]]
    problems: Sequence[str] = ()

    @property
    def label(self) -> str:
        return f"{self.report.name} {self.name}"

    @cached_property
    def findings(self) -> list[Finding]:
        """A finding for each claim about a result."""
        return list(_findings(self.model, self.config.trainer.epochs, self.runs))


def check_epochs(model: Model, config: Config) -> None:
    """Check that the claimed epochs are trained, and that nothing is claimed twice.

    Raises:
        UsageError: one line.
    """
    trained = config.trainer.epochs
    if model.epochs and max(model.epochs) > trained:
        raise UsageError(
            f"epochs.{max(model.epochs)} is claimed, and the recipe trains {trained}; add trainer.epochs={max(model.epochs)} to run"
        )
    if trained in model.epochs:
        for quantity, _ in model.epochs[trained].given():
            if getattr(model.final, quantity) is not None:
                raise UsageError(
                    f"final.{quantity} and epochs.{trained}.{quantity} are the same claim, because the recipe trains "
                    f"{trained} epochs; leave one out"
                )


def _findings(model: Model, trained: int, runs: Sequence[dict[int, Row]]) -> Iterator[Finding]:
    """The claims about the end of training, each by itself; those about earlier epochs, all of a quantity together."""
    final = {**dict(model.epochs[trained].given() if trained in model.epochs else ()), **dict(model.final.given())}
    for quantity, claimed in final.items():
        yield Finding(quantity, (_point(None, claimed, quantity, runs, 1),))
    earlier: dict[str, list[tuple[int, Claimed]]] = {}
    for epoch, results in sorted(model.epochs.items()):
        if epoch != trained:
            for quantity, claimed in results.given():
                earlier.setdefault(quantity, []).append((epoch, claimed))
    for quantity, points in earlier.items():
        judged = (_point(epoch, claimed, quantity, runs, len(points)) for epoch, claimed in points)
        yield Finding(quantity, tuple(judged))


def _point(epoch: int | None, claimed: Claimed, quantity: str, runs: Sequence[dict[int, Row]], values: int) -> Point:
    measured = values_at(runs, quantity, epoch)
    return Point(epoch, claimed, judge(claimed.interval, measured, values) if measured else None)
