"""The values of a report's tables, which HTML, Markdown and CSV share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from mnist_exp.reports.collect import Arm, Comparison
from mnist_exp.reports.statistics import Interval, Sample, over_seeds, wilson
from mnist_exp.runs import Run


@dataclass(frozen=True)
class Row:
    """The results of one arm. Accuracies and intervals are fractions; None means unknown.

    Attributes:
        place: position of the arm in the natural order.
        accuracy: test accuracy of the result, over seeds; None if the test set was not evaluated.
        validation: validation accuracy of the result, over seeds; None if not all runs have a validation split.
        images_interval: of the mean accuracy, over test images.
        loss: test loss of the result, mean over seeds, in nats.
        best: highest mean test accuracy of an epoch, and that epoch; optimistic, because it is chosen on test data.
        last_epoch: lowest and highest number of the last epoch of the completed runs.
        parameters: number of trainable ones. macs: multiply-accumulates for one image.
        train_seconds, images_per_second, memory: means over seeds; memory is the peak of the GPU or the process, in bytes.
        ece: expected calibration error, a fraction.
        extra: metrics of callbacks at the end, by name, over the seeds that have them.
    """

    arm: Arm
    place: int
    is_baseline: bool
    accuracy: Sample | None
    validation: Sample | None
    images_interval: Interval | None
    loss: float | None
    best: tuple[float, int] | None
    last_epoch: tuple[int, int] | None
    parameters: int | None
    macs: int | None
    train_seconds: float | None
    images_per_second: float | None
    memory: float | None
    ece: float | None
    extra: Mapping[str, Sample] = field(default_factory=dict)

    @property
    def has_result(self) -> bool:
        """Whether a run of the arm is completed."""
        return bool(self.arm.runs)

    @property
    def mean(self) -> float | None:
        return self.accuracy.mean if self.accuracy else None

    @property
    def std(self) -> float | None:
        return self.accuracy.std if self.accuracy else None

    @property
    def seeds_interval(self) -> Interval | None:
        return self.accuracy.interval if self.accuracy else None

    @property
    def validation_mean(self) -> float | None:
        return self.validation.mean if self.validation else None

    @property
    def not_completed(self) -> str:
        return ", ".join(f"{count} {status}" for status, count in Counter(r.status for r in self.arm.others).items())


def rows(comparison: Comparison) -> list[Row]:
    """A row for each arm, best first (see ``is_ranked_by_validation``), arms without a result last."""
    unsorted = [_row(arm, index, index == comparison.baseline) for index, arm in enumerate(comparison.arms)]
    by_validation = is_ranked_by_validation(unsorted)

    def rank(row: Row) -> float:
        mean = row.validation_mean if by_validation else row.mean
        return math.inf if mean is None else -mean

    return sorted(unsorted, key=rank)


def is_ranked_by_validation(rows: Sequence[Row]) -> bool:
    """Whether arms are ranked by validation accuracy: all with a result have it. Else they are ranked by test accuracy."""
    known = [row for row in rows if row.has_result]
    return bool(known) and all(row.validation for row in known)


@dataclass(frozen=True)
class Measure:
    """The accuracy by which figures show how good an arm is.

    Attributes:
        title: in words. key: in records.
    """

    title: str
    key: str

    def of(self, row: Row) -> Sample | None:
        return row.accuracy if self.key == "test_accuracy" else row.validation


def measure_of(rows: Sequence[Row]) -> Measure:
    """Test accuracy; if no run evaluated the test set, validation accuracy."""
    if any(row.validation for row in rows) and not any(row.accuracy for row in rows):
        return Measure("validation accuracy", "val_accuracy")
    return Measure("test accuracy", "test_accuracy")


def _row(arm: Arm, place: int, is_baseline: bool) -> Row:
    accuracies = list(arm.final("test_accuracy").values())
    losses = list(arm.final("test_loss").values())
    accuracy = _within_bounds(over_seeds(accuracies)) if accuracies else None
    held_out = arm.recorded("final", "val_accuracy")
    images = arm.test_images
    ends = [int(run.record.final["epoch"]) for run in arm.runs.values() if run.record.final]
    speeds = [speed for run in arm.runs.values() if (speed := images_per_second_of(run)) is not None]
    record = arm.any_run.record
    return Row(
        arm=arm,
        place=place,
        is_baseline=is_baseline,
        accuracy=accuracy,
        validation=_within_bounds(over_seeds(held_out)) if held_out and len(held_out) == len(arm.runs) else None,
        images_interval=wilson(accuracy.mean * images, images) if accuracy and images else None,
        loss=fmean(losses) if losses else None,
        best=_best_epoch(arm),
        last_epoch=(min(ends), max(ends)) if ends else None,
        parameters=record.parameters,
        macs=record.macs,
        train_seconds=_mean(arm.recorded("seconds", "train")),
        images_per_second=_mean(speeds),
        memory=_mean(arm.recorded("peak_gpu_memory_bytes") or arm.recorded("peak_memory_bytes")),
        ece=arm.calibration.error if arm.calibration else None,
        extra=_extra(arm),
    )


def _extra(arm: Arm) -> dict[str, Sample]:
    found: dict[str, list[float]] = {}
    for run in arm.runs.values():
        for name, value in run.extra.items():
            found.setdefault(name, []).append(value)
    return {name: over_seeds(values) for name, values in found.items()}


def _within_bounds(sample: Sample) -> Sample:
    """Limit the t interval of an accuracy to 0 and 1; with two seeds it can be wider."""
    if sample.interval is None:
        return sample
    return replace(sample, interval=Interval(max(0.0, sample.interval.low), min(1.0, sample.interval.high)))


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def images_per_second_of(run: Run) -> float | None:
    """Training images a second, all epochs together; None before the first."""
    seconds = sum(row["train_seconds"] for row in run.metrics)
    return run.metrics[-1]["images_seen"] / seconds if run.metrics and seconds > 0 else None


def _best_epoch(arm: Arm) -> tuple[float, int] | None:
    by_epoch: dict[int, list[float]] = {}
    for run in arm.runs.values():
        for row in run.metrics:
            if "test_accuracy" in row:
                by_epoch.setdefault(int(row["epoch"]), []).append(row["test_accuracy"])
    whole = {epoch: fmean(values) for epoch, values in by_epoch.items() if len(values) == len(arm.runs)}
    if not whole:
        return None
    epoch = max(whole, key=lambda number: (whole[number], -number))
    return whole[epoch], epoch


@dataclass(frozen=True)
class Column:
    """A column of the table of arms: ``key`` for sorting (None last), ``show`` for the text of a cell."""

    title: str
    explanation: str
    key: Callable[[Row], float | str | None]
    show: Callable[[Row], str]


def percent(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def with_spread(sample: Sample | None) -> str:
    """Mean and standard deviation over seeds in percent."""
    if sample is None:
        return "-"
    return percent(sample.mean) if sample.std is None else f"{100 * sample.mean:.2f} ± {100 * sample.std:.2f} %"


def interval(value: Interval | None, scale: float = 100, digits: int = 2) -> str:
    return "-" if value is None else f"{scale * value.low:.{digits}f} to {scale * value.high:.{digits}f}"


def count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """Seconds with at least three digits, so that 0.04 s is not 0.0 s."""
    return "-" if value is None else f"{value:,.1f}" if value >= 10 else f"{value:.3g}"


def seeds(counts: Iterable[int]) -> str:
    """The range of the numbers of seeds of several arms as text: ``n = 1 to 3 seeds``."""
    fewest, *others = sorted(set(counts)) or [0]
    return f"n = {fewest}{f' to {others[-1]}' if others else ''} {'seeds' if others or fewest != 1 else 'seed'}"


def p_value(value: float | None) -> str:
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


COLUMNS = (
    Column("arm", "Runs that differ in their seed only", lambda r: r.place, lambda r: r.arm.label),
    Column("n", "Seeds that completed", lambda r: len(r.arm.runs), lambda r: str(len(r.arm.runs))),
    Column(
        "validation",
        "Validation accuracy of the result, mean ± standard deviation over seeds. Arms are ranked by it if all have it",
        lambda r: r.validation_mean,
        lambda r: with_spread(r.validation),
    ),
    Column(
        "test accuracy",
        "Test accuracy of the result, mean over seeds",
        lambda r: r.mean,
        lambda r: percent(r.mean),
    ),
    Column(
        "std",
        "Standard deviation over seeds, in percentage points",
        lambda r: r.std,
        lambda r: "one seed" if r.accuracy and r.std is None else percent(r.std),
    ),
    Column(
        "95 % over seeds",
        "Student's t interval of the mean: covers training with other seeds, on these test images",
        lambda r: r.seeds_interval.low if r.seeds_interval else None,
        lambda r: interval(r.seeds_interval),
    ),
    Column(
        "95 % over images",
        "Wilson's interval of the mean: covers other test images of the same kind, with these networks",
        lambda r: r.images_interval.low if r.images_interval else None,
        lambda r: interval(r.images_interval),
    ),
    Column("loss", "Test loss, mean over seeds, nats", lambda r: r.loss, lambda r: _fixed(r.loss, 4)),
    Column(
        "best epoch",
        "Highest mean test accuracy of an epoch. Chosen on test data, so too high; not the result",
        lambda r: r.best and r.best[0],
        lambda r: f"{percent(r.best[0])} at {r.best[1]}" if r.best else "-",
    ),
    Column(
        "last epoch",
        "Last epoch of the completed runs",
        lambda r: r.last_epoch and r.last_epoch[1],
        lambda r: "-" if not r.last_epoch else " to ".join(str(epoch) for epoch in sorted(set(r.last_epoch))),
    ),
    Column("parameters", "Trainable parameters", lambda r: r.parameters, lambda r: count(r.parameters)),
    Column("MACs", "Multiply-accumulates for one image", lambda r: r.macs, lambda r: count(r.macs)),
    Column(
        "train s",
        "Seconds of training, mean over seeds",
        lambda r: r.train_seconds,
        lambda r: seconds(r.train_seconds),
    ),
    Column("images/s", "Training images a second", lambda r: r.images_per_second, lambda r: count(r.images_per_second)),
    Column(
        "memory",
        "Peak memory of the GPU if there is one, else of the process (with PyTorch itself and the data)",
        lambda r: r.memory,
        lambda r: "-" if r.memory is None else f"{r.memory / 2**20:,.0f} MiB",
    ),
    Column("ECE", "Expected calibration error, 15 bins", lambda r: r.ece, lambda r: percent(r.ece)),
    Column("not completed", "Runs that are not counted", lambda r: len(r.arm.others), lambda r: r.not_completed),
)


OF_TEST = {"test accuracy", "std", "95 % over seeds", "95 % over images", "loss", "best epoch", "ECE"}


def columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """The columns of the table of arms: those of ``COLUMNS`` that are not empty, and one for each metric of callbacks."""
    names = sorted({name for row in rows for name in row.extra})
    empty = set()
    if not any(row.validation for row in rows):
        empty.add("validation")
    if not any(row.arm.others for row in rows):
        empty.add("not completed")
    if any(row.has_result for row in rows) and not any(row.accuracy for row in rows):
        empty |= OF_TEST
    shown = [column for column in COLUMNS if column.title not in empty]
    place = len(shown) - ("not completed" not in empty)
    return (*shown[:place], *map(_own_column, names), *shown[place:])


def _own_column(name: str) -> Column:
    def mean(row: Row) -> float | None:
        return row.extra[name].mean if name in row.extra else None

    def show(row: Row) -> str:
        if name not in row.extra:
            return "-"
        sample = row.extra[name]
        spread = "one seed" if sample.std is None else f"± {sample.std:.2g}"
        few = f", n = {sample.n}" if 1 < sample.n < len(row.arm.runs) else ""
        return f"{sample.mean:.4g} ({spread}{few})" if sample.std is None or few else f"{sample.mean:.4g} {spread}"

    return Column(name, "Metric of a callback at the end: mean ± standard deviation over seeds", mean, show)


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
