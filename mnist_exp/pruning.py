"""The Optuna study of a search, and the callback that ends a run that is worse than the median of earlier trials."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import RDBStorage
from optuna.trial import Trial
from sqlalchemy.pool import NullPool

from mnist_exp.runs.record import SearchTrial
from mnist_exp.training.events import Callback, EpochMetrics, Pruned, TrainingStarted

LOG = logging.getLogger("mnist_exp")
METRICS: Mapping[str, Literal["maximize", "minimize"]] = {"val_accuracy": "maximize", "val_loss": "minimize"}
WARM_UP_EPOCHS = 1  # no run is pruned after the first epoch, whose metrics predict little
STUDY = "study.db"  # in the sweep directory


class OptunaPruning(Callback):
    """Reports the validation metric to the study, and ends a run that is worse than the median of earlier trials.

    Args:
        search: as ``sweeps.search.Search.record`` returns it.
        folder: the sweep directory. A run that was moved out of it has no study, and is not pruned.
        last: the line of metrics of the epoch after which the run was interrupted, perhaps before it was judged.
    """

    def __init__(self, search: SearchTrial, folder: Path, last: Mapping[str, Any] | None = None) -> None:
        name = search.study
        self._metric = name.partition("-")[0]
        self._trial: Trial | None = None
        self._last = last
        try:
            if self._metric not in METRICS or not (folder / STUDY).is_file():
                raise KeyError(name)
            storage = storage_of(folder.absolute() / STUDY)
            study = optuna.load_study(study_name=name, storage=storage, pruner=pruner_of(search.startup_trials))
            storage.get_trial(search.trial)
        except KeyError:
            LOG.warning("%s does not contain this run, which is therefore not pruned", folder / STUDY)
        else:
            self._id = search.trial
            self._trial = Trial(study, self._id)

    def on_start(self, event: TrainingStarted) -> None:
        if self._last is not None:
            self._judge(self._last["epoch"], self._last[self._metric])

    def on_epoch(self, event: EpochMetrics) -> None:
        self._judge(event.epoch, getattr(event, self._metric))

    def _judge(self, epoch: int, value: Any) -> None:
        if self._trial is None:
            return
        if self._trial.storage.get_trial(self._id).state.is_finished():
            return  # the search counts the run as failed, and the user resumes it by hand
        self._trial.report(value, epoch)
        if self._trial.should_prune():
            raise Pruned(f"{self._metric} {value:.4f} after epoch {epoch} is worse than the median of earlier trials")


def storage_of(file: Path) -> RDBStorage:
    """The Optuna storage in an SQLite file."""
    # Not by a URL: Optuna replaces braces in it, and SQLAlchemy before 2.1 reads a question mark as the start of a query.
    # The timeout (in seconds) is for several jobs that write to one file.
    connection = {"creator": lambda: sqlite3.connect(file, timeout=60), "poolclass": NullPool}
    return RDBStorage("sqlite://", engine_kwargs=connection)


def pruner_of(startup_trials: int) -> optuna.pruners.BasePruner:
    """The pruner of a search: the median rule, not applied to the first ``startup_trials`` trials."""
    return optuna.pruners.MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=WARM_UP_EPOCHS)
