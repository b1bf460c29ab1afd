"""Read run directories and group them into arms: runs that differ in their seed only."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_exp.errors import is_unicode, printable, typed
from mnist_exp.hashing import arm_settings
from mnist_exp.reports.baseline import choose
from mnist_exp.reports.notes import recorded, until_of, warnings
from mnist_exp.reports.statistics import Calibration, calibration
from mnist_exp.reports.test_set import HardDigit, TestSet
from mnist_exp.runs import Run, RunDirectoryError, Status, find_runs, read_run
from mnist_exp.runs.files import open_file
from mnist_exp.runs.names import labels
from mnist_exp.runs.reading import read_overrides, read_predictions
from mnist_exp.runs.settings import Varied, natural, natural_order, split_settings
from mnist_exp.runs.sweep import Until


class NoRuns(RunDirectoryError):
    """There is no run yet where one was looked for."""


@dataclass
class Arm:
    """Runs that differ in their seed only.

    Attributes:
        settings: configuration by dotted key, without the seed and the keys that the hash ignores.
        label: short, and unique in a comparison.
        runs: completed runs by seed.
        others: runs that are not completed.
        test_set: digest of the test labels, and number of classes; None without predictions.
        correct: by seed, whether each test image is classified correctly (N,).
        confusion: number of images (C, C) by label (row) and prediction (column), summed over seeds; None without
            predictions.
        calibration: of all seeds together; None without predictions.
    """

    settings: dict[str, Any]
    name: str
    label: str = ""
    runs: dict[int, Run] = field(default_factory=dict)
    others: list[Run] = field(default_factory=list)
    test_set: str | None = None
    correct: dict[int, NDArray[np.bool_]] = field(default_factory=dict)
    confusion: NDArray[np.int64] | None = None
    calibration: Calibration | None = None

    @property
    def any_run(self) -> Run:
        return next(iter(self.runs.values()), None) or self.others[0]

    @property
    def test_images(self) -> int | None:
        """Size of the test set; None without predictions."""
        return next((len(correct) for correct in self.correct.values()), None)

    def final(self, metric: str) -> dict[int, float]:
        """A metric of the result by seed, such as ``test_accuracy``, a fraction, for the runs that have it."""
        results = {seed: run.record.final or {} for seed, run in self.runs.items()}
        return {seed: float(final[metric]) for seed, final in results.items() if metric in final}

    def recorded(self, *path: str) -> list[float]:
        """A number of ``run.json`` for each completed run that has it, such as ``("seconds", "train")``."""
        found = []
        for run in self.runs.values():
            value = recorded(run, *path)
            if isinstance(value, int | float):
                found.append(float(value))
        return found

    def curves(self) -> list[Run]:
        """The runs whose curves are drawn: the completed ones; if there is none, all that have an epoch."""
        return list(self.runs.values()) or [run for run in self.others if run.metrics]


@dataclass(frozen=True)
class Problem:
    """A run that is not counted.

    Attributes:
        path: of its directory. status: of the run, or ``unreadable``.
        epochs: number of completed ones. arm: its label; None if the run is unreadable.
    """

    path: str
    status: str
    reason: str
    epochs: int
    arm: str | None


@dataclass
class Comparison:
    """The data of a report.

    Attributes:
        arms: in the natural order of their names and settings.
        baseline: position of the baseline in ``arms``. reason: why it was chosen, in words.
        varied: settings that differ between arms. common: settings that all arms share.
        problems: runs that are not counted.
        notes: warnings that a reader needs before comparing.
        hard_digits: of the baseline's test set.
        found: number of run directories.
        until: of the sweep of all these runs, if it added seeds: the statistics over seeds then allow for its looks.
    """

    arms: list[Arm]
    baseline: int
    reason: str
    varied: list[Varied]
    common: dict[str, Any]
    problems: list[Problem]
    notes: list[str]
    hard_digits: list[HardDigit]
    found: int
    until: Until | None = None


def paths_of(patterns: Sequence[str]) -> list[Path]:
    """The run directories that match a pattern, or are in a folder that does; each once, in natural order.

    Raises:
        NoRuns: a pattern matches nothing, or there is no run.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise NoRuns(f"{pattern} does not exist; name run directories, folders of them, or a pattern")
        directories = [Path(match) for match in matches if len(matches) == 1 or Path(match).is_dir()]
        found.update(
            dict.fromkeys(
                path for root in directories for path in sorted(find_runs(root), key=lambda path: natural(str(path)))
            )
        )
    if not found:
        raise NoRuns(f"no run in {', '.join(patterns)}; a run directory has a run.json")
    return list(found)


def compare(paths: Iterable[Path], baseline: str | None = None) -> Comparison:
    """Read runs and group them into arms.

    Args:
        paths: run directories.
        baseline: see ``baseline.choose``.

    Raises:
        RunDirectoryError: none of them can be read.
        UsageError: ``baseline`` matches no arm, or more than one.
    """
    collector = Collector()
    paths = list(paths)
    for path in paths:
        collector.add(path)
    return comparison_of(collector, len(paths), baseline)


def comparison_of(collector: Collector, found: int, baseline: str | None = None) -> Comparison:
    """The comparison of the runs that were added.

    Args:
        found: number of run directories.

    Raises: as ``compare``.
    """
    arms = collector.ordered_arms()
    if not arms:
        first = collector.problems[0]
        more = f" (and {len(collector.problems) - 1} more)" if len(collector.problems) > 1 else ""
        raise RunDirectoryError(f"{first.reason}{more}")
    varied, common = split_settings([arm.settings for arm in arms])
    typed_words = [overrides_of(arm.any_run) for arm in arms]
    for arm, label in zip(arms, labels([arm.name for arm in arms], varied, typed_words), strict=True):
        arm.label = label
    chosen, reason = choose(arms, baseline)
    test_set = collector.test_sets.get(arms[chosen].test_set or "")
    until, remarks = until_of(arms)
    return Comparison(
        arms=arms,
        baseline=chosen,
        reason=reason,
        varied=varied,
        common=common,
        problems=collector.problems + _not_completed(arms),
        notes=[*remarks, *collector.notes, *warnings(arms)],
        hard_digits=test_set.hardest() if test_set else [],
        found=found,
        until=until,
    )


class Collector:
    """Reads runs one by one and adds them to their arms."""

    def __init__(self) -> None:
        self.arms: dict[str, Arm] = {}
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.test_sets: dict[str, TestSet] = {}

    def copy(self) -> Collector:
        """A collector with the same runs, to which others can be added that are not complete."""
        other = Collector()
        other.arms = {
            key: replace(arm, runs=dict(arm.runs), others=list(arm.others), correct=dict(arm.correct))
            for key, arm in self.arms.items()
        }
        other.problems, other.notes, other.test_sets = list(self.problems), list(self.notes), self.test_sets
        return other

    def add(self, path: Path) -> None:
        """Read a run and add it; a run that cannot be read becomes a problem."""
        try:
            self.add_run(read_result(path))
        except RunDirectoryError as error:
            self.add_unreadable(path, error)

    def add_unreadable(self, path: Path, error: RunDirectoryError) -> None:
        self.problems.append(Problem(printable(str(path)), "unreadable", str(error), 0, None))

    def add_run(self, run: Run) -> None:
        path = run.path
        settings, seed = arm_settings(run.config), run.config.seed
        if cut_off(path, run):
            self.notes.append(f"{path / 'metrics.jsonl'} ends in an incomplete line, which is left out")
        key = json.dumps(settings, sort_keys=True)
        arm = self.arms.setdefault(key, Arm(settings, str(run.record.name or path.name)))
        if run.status != Status.COMPLETED:
            arm.others.append(run)
        elif seed in arm.runs:
            self.notes.append(
                f"{path} repeats {arm.runs[seed].path}: same settings, same seed; only the latter is counted"
            )
        else:
            arm.runs[seed] = run
            if run.config.trainer.evaluate_test != "never":
                self._add_predictions(arm, seed, run)

    def ordered_arms(self) -> list[Arm]:
        """Arms in the natural order of their names and settings, runs by seed."""
        arms = list(self.arms.values())
        for arm in arms:
            arm.runs = dict(sorted(arm.runs.items()))
            arm.others.sort(key=lambda run: run.config.seed)
        return [arms[place] for place in natural_order([arm.name for arm in arms], [arm.settings for arm in arms])]

    def _add_predictions(self, arm: Arm, seed: int, run: Run) -> None:
        file = run.path / "predictions.npz"
        try:
            arrays = read_predictions(run.path)
            logits, truth = arrays["logits"], arrays["labels"].astype(np.int64)
            classes = logits.shape[1]
            if len(logits) != len(truth) or not len(truth) or truth.min() < 0 or truth.max() >= classes:
                raise ValueError("its logits and labels do not match")
        except FileNotFoundError:
            self.notes.append(f"{file} is missing: the run counts for accuracy, not for errors or tests by image")
            return
        except RunDirectoryError as error:
            self.notes.append(f"{error}: no errors or tests by image for that run")
            return
        except Exception as error:  # arrays of another shape or type
            reason = " ".join(str(error).split()) or type(error).__name__
            self.notes.append(f"{file} cannot be read ({reason}): no errors or tests by image for that run")
            return
        digest = f"{hashlib.sha256(truth.tobytes()).hexdigest()[:12]}-{classes}"
        if arm.test_set not in {None, digest}:
            self.notes.append(f"{file} holds other test labels than its arm's other runs: not compared by image")
            return
        arm.test_set = digest
        test_set = self.test_sets.setdefault(digest, TestSet(truth, classes))
        probabilities, predicted = test_set.add(logits, arrays.get("worst"), arrays.get("worst_images"))
        correct = predicted == truth
        arm.correct[seed] = correct
        matrix = np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)
        arm.confusion = matrix if arm.confusion is None else arm.confusion + matrix
        own = calibration(probabilities[np.arange(len(truth)), predicted].astype(np.float64), correct)
        arm.calibration = own if arm.calibration is None else arm.calibration + own


def read_result(path: Path) -> Run:
    """Read a run.

    Raises:
        RunDirectoryError: it cannot be read, or is complete without a result.
    """
    if not is_unicode(str(path)):
        raise RunDirectoryError(f"{printable(str(path))}: the name is no text; rename it")
    run = read_run(path)
    final = run.record.final or {}
    expected = {"images_seen"}
    if run.config.trainer.evaluate_test != "never":
        expected |= {"test_accuracy", "test_loss"}
    if run.status == Status.COMPLETED and not expected <= final.keys():
        raise RunDirectoryError(f"{path / 'run.json'}: a completed run without its final metrics")
    return run


def overrides_of(run: Run) -> list[str]:
    """The overrides of a run as typed; none where they are not known."""
    try:
        return read_overrides(run.path)
    except RunDirectoryError:
        return []


def _not_completed(arms: Sequence[Arm]) -> list[Problem]:
    problems = []
    for arm in arms:
        for run in arm.others:
            reason = run.record.error or {
                Status.WAITING: "not started yet",
                Status.RUNNING: "still running: counted when it is complete",
                Status.KILLED: f"its process ended without recording why; to continue it: mnist-train {typed('resume', run.path)}",
            }.get(run.status, "no reason recorded")
            problems.append(Problem(str(run.path), run.status, " ".join(reason.split()), len(run.metrics), arm.label))
    return problems


def cut_off(path: Path, run: Run) -> bool:
    """Whether ``metrics.jsonl`` ends in a line that was not read."""
    try:
        with open_file(path / "metrics.jsonl") as stream:
            return sum(1 for _ in stream) > len(run.metrics)
    except FileNotFoundError:
        return False
