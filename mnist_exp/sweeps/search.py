"""Search with Optuna: what to try next is asked of a study, and the study learns from validation data alone.

The study lies in SQLite beside the runs. A trial that was interrupted is the same run continued, and a run that falls
behind the median of earlier trials at the same epoch is pruned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import Trial, TrialState

from mnist_exp.mistakes import UsageError
from mnist_exp.runs.files import exists
from mnist_exp.training.events import EpochMetrics, Listener, Pruned

STUDY = "study.db"  # in the sweep directory
METRICS: Mapping[str, Literal["maximize", "minimize"]] = {"val_accuracy": "maximize", "val_loss": "minimize"}
WARM_UP_EPOCHS = 1  # after which a run may be pruned; the first says little


class Search:
    """One study, continued where it was left.

    Args:
        folder: the sweep directory.
        space: a distribution for every key.
        metric: of validation data, at the end of training and, for pruning, after every epoch.
        seed: of the sampler.
        startup_trials: chosen at random, and not pruned, before the study knows enough.
        prune: end hopeless runs early.

    Raises:
        UsageError: the metric is none of validation data.
    """

    def __init__(
        self,
        folder: Path,
        space: Mapping[str, BaseDistribution],
        *,
        metric: str,
        seed: int,
        startup_trials: int,
        prune: bool,
    ) -> None:
        if metric not in METRICS:
            raise UsageError(
                f"hydra.sweeper.metric={metric} is refused: the test set chooses nothing; choose from {', '.join(METRICS)}"
            )
        self._space = space
        self._metric = metric
        self._prune = prune
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        self._url = f"sqlite:///{folder.absolute() / STUDY}"
        self.study = optuna.create_study(
            storage=_storage(self._url),
            study_name=metric,
            direction=METRICS[metric],
            load_if_exists=True,
            pruner=_pruner(startup_trials) if prune else optuna.pruners.NopPruner(),
        )
        # A sampler that starts with the same seed again would ask for the same trials again.
        self.study.sampler = optuna.samplers.TPESampler(
            seed=seed + len(self.study.trials), n_startup_trials=startup_trials
        )
        self._startup_trials = startup_trials

    def finished(self) -> int:
        """Number of trials that need no more training."""
        return sum(trial.state.is_finished() for trial in self.study.trials)

    def next(self, number: int) -> list[Trial]:
        """Trials to run now: first those that were interrupted, then new ones."""
        begun = self.study.get_trials(states=(TrialState.RUNNING,))
        trials = [Trial(self.study, trial._trial_id) for trial in begun[:number]]
        return trials + [self.study.ask(dict(self._space)) for _ in range(number - len(trials))]

    def record(self, trial: Trial) -> dict[str, Any]:
        """What the run of a trial is told: where to report, and when to give up."""
        if not self._prune:
            return {}
        told = {"trial": trial._trial_id, "study": self._metric}
        return {"search": {**told, "startup_trials": self._startup_trials}}

    def tell(self, trial: Trial, status: str, value: float | None) -> None:
        """What became of a trial."""
        if status == "completed" and value is not None:
            self.study.tell(trial, value)
        else:
            self.study.tell(trial, state=TrialState.PRUNED if status == "pruned" else TrialState.FAIL)


class PruneHopeless(Listener):
    """Reports validation figures to the study, and ends a run that falls behind.

    Args:
        search: what ``Search.record`` says.
        folder: the sweep directory, which has the study; where it lies is not for a record to say.

    Raises:
        UsageError: there is no study, or the record names no metric of ours.
    """

    def __init__(self, search: Mapping[str, Any], folder: Path) -> None:
        if search.get("study") not in METRICS or not exists(folder / STUDY):
            raise UsageError(f"{folder / STUDY} is missing, the study that this run belongs to")
        study = optuna.load_study(
            study_name=search["study"],
            storage=_storage(f"sqlite:///{folder.absolute() / STUDY}"),
            pruner=_pruner(search["startup_trials"]),
        )
        self._metric: str = search["study"]
        self._trial = Trial(study, search["trial"])

    def on_epoch(self, event: EpochMetrics) -> None:
        value = getattr(event, self._metric)
        if self._trial.storage.get_trial(self._trial._trial_id).state.is_finished():
            return  # the study has given up on it meanwhile; whoever runs it by hand may go on
        self._trial.report(value, event.epoch)
        if self._trial.should_prune():
            raise Pruned(
                f"{self._metric} {value:.4f} after epoch {event.epoch} is worse than the median of earlier trials"
            )


def space_of(overrides: Sequence[Override]) -> dict[str, BaseDistribution]:
    """Distributions for Hydra's ``interval``, ``range`` and ``choice``; ``tag(log, interval(...))`` is logarithmic.

    Raises:
        UsageError: a kind of sweep that is none of these.
    """
    space: dict[str, BaseDistribution] = {}
    for override in overrides:
        if not override.is_sweep_override():
            continue
        key, value = override.get_key_element(), override.value()
        if isinstance(value, IntervalSweep):
            assert value.start is not None
            assert value.end is not None
            if isinstance(value.start, int) and isinstance(value.end, int) and "float" not in value.tags:
                space[key] = IntDistribution(value.start, value.end, log="log" in value.tags)
            else:
                space[key] = FloatDistribution(float(value.start), float(value.end), log="log" in value.tags)
        elif isinstance(value, RangeSweep | ChoiceSweep):
            space[key] = CategoricalDistribution([str(choice) for choice in override.sweep_string_iterator()])
        else:
            raise UsageError(f"{override.input_line} cannot be searched; write interval(a,b), range(...) or a list")
    if not space:
        raise UsageError("nothing to search; give some key an interval: 'optimizer.lr=tag(log,interval(1e-4,1e-1))'")
    return space


def _storage(url: str) -> RDBStorage:
    # Several jobs report to one file; each waits for its turn.
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})


def _pruner(startup_trials: int) -> optuna.pruners.BasePruner:
    return optuna.pruners.MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=WARM_UP_EPOCHS)
