"""Warnings that a reader needs before comparing arms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mnist_exp.runs import Run, RunDirectoryError
from mnist_exp.runs.sweep import Until, read_sweep

if TYPE_CHECKING:
    from mnist_exp.reports.collect import Arm


def warnings(arms: Sequence[Arm]) -> Iterable[str]:
    """What a reader needs to know before comparing the arms."""
    done = [(arm, run) for arm in arms for run in arm.runs.values()]

    def distinct(title: str, values: Iterable[object]) -> Iterable[str]:
        counts = Counter(str(value) for value in values)
        if len(counts) > 1:
            yield f"{title}: " + ", ".join(f"{value} ({count})" for value, count in counts.most_common(6))

    def of(run: Run, *path: str) -> Any:
        value = recorded(run, *path)
        return "unknown" if value is None else value

    if untested := sum(run.config.trainer.evaluate_test == "never" for _, run in done):
        yield (
            f"{untested} of {len(done)} completed runs did not evaluate the test set (trainer.evaluate_test=never, the "
            "default of a search, so that nobody chooses by test figures). mnist-eval DIR computes the test figures of a run"
        )
    test_sets = Counter(arm.test_set for arm in arms if arm.test_set)
    if len(test_sets) > 1:
        yield (
            f"The arms were tested on {len(test_sets)} different test sets ({_sizes(arms)}); their accuracies cannot be "
            "compared, and only arms with the baseline's test set are compared with it"
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
    machines = [
        f"{of(run, 'hardware', 'cpu')}, {of(run, 'device')}, {of(run, 'threads')} threads"
        + (", native kernels" if of(run, "backend") == "native" else "")
        for _, run in done
    ]
    for line in distinct("Seconds, images/s and memory were measured in different places", machines):
        yield f"{line}; compare them with care"
    single = [arm for arm in arms if len(arm.runs) == 1]
    if single and len(arms) > 1:  # of one arm, the headline says it
        yield f"One seed only, so the effect of the seed is not known: {_listed(single)}"
    seeds = {tuple(sorted(arm.runs)) for arm in arms if len(arm.runs) > 1}
    if len(seeds) > 1:
        yield "Not all arms have the same seeds; differences use the seeds that both arms have"


def until_of(arms: Sequence[Arm]) -> tuple[Until | None, list[str]]:
    """How the sweep of all these runs added seeds, if it did; a warning if only some of them are of such a sweep."""
    folders = {run.path.parent for arm in arms for run in [*arm.runs.values(), *arm.others]}
    sweeps = {}
    for folder in folders:
        with suppress(RunDirectoryError):
            sweeps[folder] = read_sweep(folder).until
    adding = [folder for folder, until in sweeps.items() if until is not None]
    if len(folders) == 1:
        return next(iter(sweeps.values()), None), []
    return None, [
        f"{folder} added seeds until its question was settled. Intervals and p-values over seeds do not allow for this here; "
        f"those of its own report do: mnist-report {folder}"
        for folder in adding
    ]


def _sizes(arms: Sequence[Arm]) -> str:
    """The size of each test set, and its arms, as text."""
    by_set: dict[str, list[Arm]] = {}
    for arm in arms:
        if arm.test_set:
            by_set.setdefault(arm.test_set, []).append(arm)
    return "; ".join(f"{same[0].test_images:,} images: {_listed(same)}" for same in by_set.values())


def _listed(arms: Sequence[Arm]) -> str:
    """The labels of the first few arms."""
    return ", ".join(arm.label for arm in arms[:6]) + (f" and {len(arms) - 6} more" if len(arms) > 6 else "")


def recorded(run: Run, *path: str) -> Any:
    """A value of ``run.json``; None if it is missing."""
    value: Any = run.record
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
    return value
