"""From run directories to arms: groups of runs that differ in their seed only, and what varies between the groups."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_exp.config import what_counts
from mnist_exp.mistakes import UsageError, as_typed, nearest, typed
from mnist_exp.reports.statistics import Calibration, calibration
from mnist_exp.runs import Run, RunDirectoryError, find_runs, read_run

ABSENT = "n/a"
# Where one value is read from several places by interpolation, the place where a user sets it comes first.
SECTIONS = ("regularization", "data", "trainer", "scheduler", "optimizer", "model")


@dataclass
class Arm:
    """Runs that differ in their seed only.

    Attributes:
        settings: configuration by dotted key, without the seed and what does not count.
        label: short and unique in a comparison.
        runs: completed, one for each seed, by seed.
        others: not completed, whatever the reason.
        test_set: digest of the test labels; None without predictions.
        correct: by seed, which test images (N,) are classified correctly.
        confusion: (C, C), rows are labels, columns predictions, summed over seeds; None without predictions.
        calibration: of all seeds together.
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

    def final(self, metric: str) -> dict[int, float]:
        """A metric of the result by seed, such as ``test_accuracy``, a fraction."""
        return {seed: float(run.record["final"][metric]) for seed, run in self.runs.items()}

    def recorded(self, *path: str) -> list[float]:
        """A number of ``run.json`` for each completed run that has it, such as ``("seconds", "train")``."""
        found = []
        for run in self.runs.values():
            value: Any = run.record
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, int | float):
                found.append(float(value))
        return found

    def curves(self) -> list[Run]:
        """Runs whose curves speak for the arm: the completed, or what there is while there is none."""
        return list(self.runs.values()) or [run for run in self.others if run.metrics]


@dataclass(frozen=True)
class HardDigit:
    """A test image that many runs get wrong.

    Attributes:
        index: in the test set.
        pixels: (S, S) uint8, ink bright.
        wrong: number of runs that get it wrong, of ``runs``.
        probabilities: (C,), mean over runs.
    """

    index: int
    label: int
    pixels: NDArray[np.uint8]
    wrong: int
    runs: int
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """A run that is not counted: where, its status or ``unreadable``, and why."""

    path: str
    status: str
    reason: str
    epochs: int
    arm: str | None


@dataclass(frozen=True)
class Varied:
    """A setting that differs between arms. ``aliases`` always have the same value, by interpolation as a rule."""

    key: str
    aliases: tuple[str, ...]
    values: tuple[Any, ...]  # one for each arm; ABSENT where the arm has no such setting

    @property
    def title(self) -> str:
        return self.key.removesuffix("._target_")

    def shown(self, index: int) -> str:
        value = self.values[index]
        if self.key.endswith("_target_") and value != ABSENT:
            return str(value).rpartition(".")[2]
        return ABSENT if isinstance(value, str) and value == ABSENT else as_typed(value)

    @property
    def is_numeric(self) -> bool:
        """Whether three or more distinct numbers, and nothing else, are there to draw a result against."""
        numbers = [value for value in self.values if isinstance(value, int | float) and not isinstance(value, bool)]
        return len(numbers) == len([v for v in self.values if v != ABSENT]) and len(set(numbers)) >= 3


@dataclass
class Comparison:
    """All that a report shows, before any of it is drawn.

    Attributes:
        arms: in the order in which they were found.
        baseline: position of the arm that the others are compared with.
        common: settings that all arms share.
        notes: what a reader must know before comparing.
        hard_digits: of the baseline's test set.
        images: size of the baseline's test set; 0 without predictions.
    """

    arms: list[Arm]
    baseline: int
    varied: list[Varied]
    common: dict[str, Any]
    problems: list[Problem]
    notes: list[str]
    hard_digits: list[HardDigit]
    images: int
    found: int


def paths_of(patterns: Sequence[str]) -> list[Path]:
    """Run directories that are named, lie in a named folder, or match a pattern; each once, numbers in their order.

    Raises:
        RunDirectoryError: a name or pattern that leads nowhere.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise RunDirectoryError(f"{pattern} does not exist; name run directories, folders of them, or a pattern")
        directories = [Path(match) for match in matches if len(matches) == 1 or Path(match).is_dir()]
        found.update(dict.fromkeys(path for root in directories for path in sorted(find_runs(root), key=_natural)))
    if not found:
        raise RunDirectoryError(f"no run in {', '.join(patterns)}; a run directory has a run.json")
    return list(found)


def compare(paths: Iterable[Path], baseline: str | None = None) -> Comparison:
    """Read runs and group them into arms.

    Args:
        baseline: label or name of an arm; None is the first of those with the most seeds.

    Raises:
        RunDirectoryError: none of them can be read.
        UsageError: no arm, or more than one, is called ``baseline``.
    """
    gathering = _Gathering()
    paths = list(paths)
    for path in paths:
        gathering.add(path)
    arms = list(gathering.arms.values())
    if not arms:
        first = gathering.problems[0]
        more = f" (and {len(gathering.problems) - 1} more)" if len(gathering.problems) > 1 else ""
        raise RunDirectoryError(f"{first.reason}{more}")
    varied, common = what_varies([arm.settings for arm in arms])
    for arm, label in zip(arms, labels([arm.name for arm in arms], varied), strict=True):
        arm.label = label
    chosen = _choose(arms, baseline)
    test_set = gathering.test_sets.get(arms[chosen].test_set or "")
    return Comparison(
        arms=arms,
        baseline=chosen,
        varied=varied,
        common=common,
        problems=gathering.problems + _not_completed(arms),
        notes=[*gathering.notes, *_notes(arms)],
        hard_digits=test_set.hardest() if test_set else [],
        images=len(test_set.labels) if test_set else 0,
        found=len(paths),
    )


class _Gathering:
    """Arms while they fill up."""

    def __init__(self) -> None:
        self.arms: dict[str, Arm] = {}
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.test_sets: dict[str, _TestSet] = {}

    def add(self, path: Path) -> None:
        try:
            run = read_run(path)
            settings = what_counts(run.config)
            seed = int(settings.pop("seed"))
            final = run.record.get("final") or {}
            if run.status == "completed" and not {"test_accuracy", "test_loss", "images_seen"} <= final.keys():
                raise RunDirectoryError(f"{path / 'run.json'}: a completed run without its final metrics")
        except RunDirectoryError as error:
            self.problems.append(Problem(str(path), "unreadable", str(error), 0, None))
            return
        except (KeyError, TypeError, ValueError, AttributeError):
            message = f"{path / 'config.yaml'} is not the configuration of a run of this project"
            self.problems.append(Problem(str(path), "unreadable", message, 0, None))
            return
        if cut_off(path, run):
            self.notes.append(f"{path / 'metrics.jsonl'} ends in half a line, which is left out")
        key = json.dumps(settings, sort_keys=True)
        arm = self.arms.setdefault(key, Arm(flatten(settings), str(run.record.get("name") or path.name)))
        if run.status != "completed":
            arm.others.append(run)
        elif seed in arm.runs:
            self.notes.append(
                f"{path} repeats {arm.runs[seed].path}: same settings, same seed; only the latter is counted"
            )
        else:
            arm.runs[seed] = run
            self._add_predictions(arm, seed, run)

    def _add_predictions(self, arm: Arm, seed: int, run: Run) -> None:
        file = run.path / "predictions.npz"
        try:
            # Opened here, because numpy leaves open what it cannot read.
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            logits, truth = arrays["logits"], arrays["labels"].astype(np.int64)
            classes = logits.shape[1]
            if len(logits) != len(truth) or not len(truth) or truth.min() < 0 or truth.max() >= classes:
                raise ValueError("its logits and labels do not belong together")
        except FileNotFoundError:
            self.notes.append(f"{file} is missing: the run counts for accuracy, not for errors or tests by image")
            return
        except Exception as error:  # zipfile, zlib and numpy raise what they please for a damaged archive
            reason = " ".join(str(error).split()) or type(error).__name__
            self.notes.append(f"{file} cannot be read ({reason}): no errors or tests by image for that run")
            return
        digest = hashlib.sha256(truth.tobytes()).hexdigest()[:12]
        if arm.test_set not in {None, digest}:
            self.notes.append(f"{file} holds other test labels than its arm's other runs: not compared by image")
            return
        arm.test_set = digest
        test_set = self.test_sets.setdefault(digest, _TestSet(truth, classes))
        probabilities, predicted = test_set.add(logits, arrays.get("worst"), arrays.get("worst_images"))
        correct = predicted == truth
        arm.correct[seed] = correct
        matrix = np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)
        arm.confusion = matrix if arm.confusion is None else arm.confusion + matrix
        own = calibration(probabilities[np.arange(len(truth)), predicted].astype(np.float64), correct)
        arm.calibration = own if arm.calibration is None else arm.calibration + own


class _TestSet:
    """What all runs together make of the images of one test set."""

    def __init__(self, labels: NDArray[np.int64], classes: int) -> None:
        self.labels = labels
        self.runs = 0
        self.wrong = np.zeros(len(labels), dtype=np.int64)
        self.probabilities = np.zeros((len(labels), classes))
        self.pixels: dict[int, NDArray[np.uint8]] = {}

    def add(
        self, logits: NDArray[np.float32], worst: NDArray[np.int64] | None, images: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Probabilities (N, C) and predictions (N,) of one more run."""
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        predicted = logits.argmax(axis=1)
        self.runs += 1
        self.wrong += predicted != self.labels
        self.probabilities += probabilities
        if worst is not None and images is not None:
            for index, pixels in zip(worst.tolist(), images, strict=False):
                # One run may have seen the images enlarged to 32x32.
                if index not in self.pixels or pixels.size < self.pixels[index].size:
                    self.pixels[index] = pixels
        return probabilities, predicted

    def hardest(self, count: int = 30) -> list[HardDigit]:
        mean = self.probabilities / max(self.runs, 1)
        own = mean[np.arange(len(self.labels)), self.labels]
        order = [int(index) for index in np.lexsort((own, -self.wrong)) if self.wrong[index]]
        return [
            HardDigit(i, int(self.labels[i]), self.pixels[i], int(self.wrong[i]), self.runs, mean[i])
            for i in [index for index in order if index in self.pixels][:count]
        ]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def what_varies(settings: Sequence[Mapping[str, Any]]) -> tuple[list[Varied], dict[str, Any]]:
    """The settings that differ, each named once, and those that all arms share.

    A setting that only some kinds of model (or optimizer, ...) have, and that is the same for all of those, follows
    from the kind and is not listed.
    """
    keys = list(dict.fromkeys(key for arm in settings for key in arm))
    keys.sort(key=lambda key: _rank(key.partition(".")[0]))
    columns: dict[str, list[str]] = defaultdict(list)
    values: dict[str, tuple[Any, ...]] = {}
    common: dict[str, Any] = {}
    for key in keys:
        row = tuple(arm.get(key, ABSENT) for arm in settings)
        present = {json.dumps(arm[key], sort_keys=True) for arm in settings if key in arm}
        if len(present) == 1 and ABSENT not in row:
            common[key] = row[0]
        elif len(present) > 1 or not _follows_from_kind(key, settings):
            columns[json.dumps(row, sort_keys=True)].append(key)
            values[key] = row
    return [Varied(same[0], tuple(same[1:]), values[same[0]]) for same in columns.values()], common


def _follows_from_kind(key: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    kind = f"{key.rpartition('.')[0]}._target_"
    having = {arm.get(kind) for arm in settings if key in arm}
    return kind in settings[0] and not any(arm.get(kind) in having for arm in settings if key not in arm)


def _rank(section: str) -> int:
    return SECTIONS.index(section) if section in SECTIONS else -1


def labels(names: Sequence[str], varied: Sequence[Varied], longest: int = 70) -> list[str]:
    """A label for each arm: its name, and where arms share a name what tells them apart."""
    result = list(names)
    for name, count in Counter(names).items():
        if count == 1:
            continue
        members = [index for index, other in enumerate(names) if other == name]
        telling = [column for column in varied if len({column.shown(index) for index in members}) > 1]
        for index in members:
            parts = [f"{_short(column, telling)}={column.shown(index)}" for column in telling]
            result[index] = " ".join([name, *parts])
    for index, label in enumerate(result):
        if len(label) > longest:
            result[index] = f"{label[: longest - 6]}… #{index + 1}"
    seen = Counter(result)
    return [label if seen[label] == 1 else f"{label} #{index + 1}" for index, label in enumerate(result)]


def _short(column: Varied, others: Sequence[Varied]) -> str:
    last = column.title.rpartition(".")[2]
    return last if sum(other.title.rpartition(".")[2] == last for other in others) == 1 else column.title


def _choose(arms: Sequence[Arm], baseline: str | None) -> int:
    if baseline is None:
        return max(range(len(arms)), key=lambda index: (len(arms[index].runs), -index))
    for names in ([arm.label for arm in arms], [arm.name for arm in arms]):
        if names.count(baseline) == 1:
            return names.index(baseline)
    all_labels = [arm.label for arm in arms]
    shown = ", ".join(repr(label) for label in all_labels[:12]) + (", ..." if len(arms) > 12 else "")
    raise UsageError(f"--baseline {baseline!r} is not one arm; choose from {shown}{nearest(baseline, all_labels)}")


def _not_completed(arms: Sequence[Arm]) -> list[Problem]:
    problems = []
    for arm in arms:
        for run in arm.others:
            reason = run.record.get("error") or {
                "running": "still running: counted when it is complete",
                "killed": f"its process is gone without a word; to continue it: mnist-train {typed('resume', run.path)}",
            }.get(run.status, "no reason recorded")
            problems.append(Problem(str(run.path), run.status, " ".join(reason.split()), len(run.metrics), arm.label))
    return problems


def _notes(arms: Sequence[Arm]) -> Iterable[str]:
    done = [(arm, run) for arm in arms for run in arm.runs.values()]

    def distinct(what: str, values: Iterable[object]) -> Iterable[str]:
        counts = Counter(str(value) for value in values)
        if len(counts) > 1:
            yield f"{what}: " + ", ".join(f"{value} ({count})" for value, count in counts.most_common(6))

    def of(run: Run, *path: str) -> Any:
        value: Any = run.record
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return "unknown" if value is None else value

    test_sets = Counter(arm.test_set for arm in arms if arm.test_set)
    if len(test_sets) > 1:
        yield (
            f"The arms were tested on {len(test_sets)} different test sets; their accuracies cannot be compared, and "
            "only arms with the baseline's test set are compared with it"
        )
    for package in ("mnist-exp", "torch", "python"):
        yield from distinct(
            f"Runs with different versions of {package}", (of(run, "versions", package) for _, run in done)
        )
    commits = Counter(str(of(run, "git", "commit"))[:10] for _, run in done)
    if len(commits) > 1:
        yield "Runs of different commits: " + ", ".join(f"{name} ({n})" for name, n in commits.most_common(6))
    if dirty := sum(of(run, "git", "dirty") is True for _, run in done):
        yield f"{dirty} of {len(done)} completed runs come from a checkout with uncommitted changes"
    machines = [f"{of(run, 'hardware', 'cpu')}, {of(run, 'device')}, {of(run, 'threads')} threads" for _, run in done]
    for line in distinct("Seconds, images/s and memory were measured in different places", machines):
        yield f"{line}; compare them with care"
    if single := [arm.label for arm in arms if len(arm.runs) == 1]:
        shown = ", ".join(single[:6]) + (f" and {len(single) - 6} more" if len(single) > 6 else "")
        yield f"One seed only, so nothing can be said about training again: {shown}"
    seeds = {tuple(sorted(arm.runs)) for arm in arms if len(arm.runs) > 1}
    if len(seeds) > 1:
        yield "Not all arms have the same seeds; differences use the seeds that both arms have"


def cut_off(path: Path, run: Run) -> bool:
    """Whether ``metrics.jsonl`` ends in a line that was not read."""
    file = path / "metrics.jsonl"
    if not file.exists():
        return False
    with file.open("rb") as stream:
        return sum(1 for _ in stream) > len(run.metrics)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]
