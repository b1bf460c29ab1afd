"""``sweep.until``: train the arms of a grid in rounds of seeds until each difference from the first arm is settled.

Each round is a launch like any other. What to train next follows from the stored runs alone, by the statistics of the report,
so the same command continues a sweep that was stopped anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from mnist_exp.config import SweepSettings
from mnist_exp.errors import UsageError, explain_validation
from mnist_exp.reports.collect import Comparison, compare
from mnist_exp.reports.pairwise import Pairwise, against_baseline
from mnist_exp.reports.sequential import is_settled, next_look
from mnist_exp.runs.record import FAILED, Status
from mnist_exp.runs.sweep import Job, Until, read_job_status, read_sweep
from mnist_exp.sweeps.progress import count
from mnist_exp.terminal import say

Launch = Callable[[list[list[str]], int, Until], Sequence[JobReturn]]
MINIMUM = 3  # seeds at the first look; from fewer the spread cannot be estimated


def until_of(config: DictConfig, arms: int, seeds: Sequence[int]) -> Until | None:
    """How the sweep adds seeds; None if it does not.

    Args:
        config: of the sweep.
        arms: their number.
        seeds: the first ones, as typed.

    Raises:
        UsageError: a setting is not possible.
    """
    given: Any = OmegaConf.to_container(config.sweep, resolve=True)
    try:
        settings = SweepSettings.model_validate(given)
    except ValidationError as error:
        lines = explain_validation(error, given)
        raise UsageError("\n".join(f"sweep.{line}" for line in lines)) from error
    if settings.until is None:
        return None
    asked = f"sweep.until={settings.until:g}"
    if arms < 2:
        raise UsageError(f"{asked} compares arms, and this sweep has one; give several: model=lenet5,mlp")
    if config.trainer.evaluate_test == "never":
        raise UsageError(f"{asked} compares test accuracies; type trainer.evaluate_test=last")
    first = max(MINIMUM, len(seeds))
    if settings.max_seeds < first:
        raise UsageError(f"sweep.max_seeds={settings.max_seeds} is less than the {len(seeds)} first seeds; type more")
    until = Until(settings.until, settings.max_seeds, first, settings.max_seeds)
    stored = Path(config.hydra.sweep.dir)
    if (stored / "sweep.json").exists() and (before := read_sweep(stored).until) is not None:
        return replace(until, first=before.first, planned=before.planned)  # looks that were made stay made
    return until


@dataclass
class Rounds:
    """The rounds of one command.

    Attributes:
        launch: trains jobs, by their overrides and the number of the first; returns when they have ended.
        path: the sweep directory.
        arms: the overrides of each, without the seed; the first is the baseline.
        seeds: the first ones; then come the numbers after the largest of them.
    """

    launch: Launch
    path: Path
    arms: Sequence[Sequence[str]]
    seeds: Sequence[int]
    until: Until

    def run(self) -> list[Sequence[JobReturn]]:
        """Train until everything is settled, a job fails, or the arms have the most seeds.

        Raises:
            UsageError: the sweep has another baseline. See ``launching.launch`` for other errors.
        """
        number, results = 0, []
        open_arms = set(range(len(self.arms)))
        trained: dict[int, list[Path]] = {place: [] for place in open_arms}
        n = max(self.until.first, len(self.seeds))
        while True:
            wanted = [(place, seed) for place in sorted(open_arms) for seed in self._seeds(n)[len(trained[place]) :]]
            jobs = [[*self.arms[place], f"seed={seed}"] for place, seed in wanted]
            returned = self.launch(jobs, number, self.until)
            results.append(returned)
            number += len(jobs)
            for (place, _), job in zip(wanted, returned, strict=True):
                assert job.working_dir is not None
                trained[place].append(Path(job.working_dir))
            if self._failed(returned):
                return results
            self._require_baseline(trained[0])
            # Only the seeds of this round and those before it, so that after an interruption the decisions are the same.
            comparison = compare(dict.fromkeys(path for paths in trained.values() for path in paths))
            open_arms = self._open(comparison, trained)
            self._say(comparison, n, len(open_arms))
            if not open_arms or n >= self.until.max_seeds:
                return results
            open_arms.add(0)  # the baseline
            n = next_look(self.until, n)

    def _seeds(self, n: int) -> list[int]:
        after = max(self.seeds) + 1
        return [*self.seeds, *range(after, after + n)][:n]

    def _failed(self, returned: Sequence[JobReturn]) -> bool:
        """Whether a job failed: then no seeds are added, because the same command trains it again."""
        statuses = [read_job_status(Path(str(job.working_dir))).status for job in returned]
        failed = sum(
            status in (FAILED - {Status.DIVERGED}) | {Status.INTERRUPTED, Status.WAITING} for status in statuses
        )
        if failed:
            say(
                f"sweep {self.path.name}: {count(failed, 'job')} not complete, so no seeds are added; repeat the command"
            )
        return failed > 0

    def _require_baseline(self, first_arm: Sequence[Path]) -> None:
        """Check that the report on this sweep has the same baseline.

        Raises:
            UsageError: it has another one.
        """
        jobs = read_sweep(self.path).jobs
        own = next(job for job in jobs if job.directory == first_arm[0].name)
        if _without_seed(own) != _without_seed(jobs[0]):
            raise UsageError(
                f"{self.path} compares with the arm of its first job, {jobs[0].directory}, which is not the first one of this "
                "command; type that arm first, or choose another hydra.sweep.dir"
            )

    def _open(self, comparison: Comparison, trained: Mapping[int, Sequence[Path]]) -> set[int]:
        """The arms that need more seeds."""
        place_of = {path: place for place, paths in trained.items() for path in paths}
        needed = (pair for pair in against_baseline(comparison) if not is_settled(pair.seeds, pair.seeds_p, self.until))
        runs = (run for pair in needed for run in pair.arm.runs.values())
        return {place_of[run.path] for run in runs}

    def _say(self, comparison: Comparison, n: int, left: int) -> None:
        pairs = against_baseline(comparison)
        differences = [f"{pair.arm.label} {described(pair, self.until)}" for pair in pairs]
        shown = "; ".join(differences[:4]) + (f"; and {len(pairs) - 4} more" if len(pairs) > 4 else "")
        against = comparison.arms[comparison.baseline].label
        ending = "all settled" if not left else f"{left} open" + (
            f", and sweep.max_seeds={n} is reached" if n >= self.until.max_seeds else ""
        )  # fmt: skip
        say(f"sweep {self.path.name}: {n} seeds, against {against}: {shown}; {ending}")


def _without_seed(job: Job) -> list[str]:
    return sorted(word for word in job.arguments if not word.startswith("seed="))


def described(pair: Pairwise, until: Until) -> str:
    """A comparison in a few words: ``+0.12 ± 0.05 points``."""
    if pair.seeds is None:
        return "no result"
    known = pair.seeds.interval
    half = f" ± {50 * (known.high - known.low):.2f}" if known else ""
    return f"{pair.effect}{half}" + ("" if is_settled(pair.seeds, pair.seeds_p, until) else " (open)")
