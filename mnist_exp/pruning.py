"""A search's study, and the callback that ends a run of it that falls behind the median of earlier trials."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import optuna
from optuna.storages import RDBStorage
from optuna.trial import Trial
from sqlalchemy.pool import NullPool

from mnist_exp.runs.record import SearchTrial
from mnist_exp.training.events import Callback, EpochMetrics, Pruned

LOG = logging.getLogger("mnist_exp")
METRICS: Mapping[str, Literal["maximize", "minimize"]] = {"val_accuracy": "maximize", "val_loss": "minimize"}
WARM_UP_EPOCHS = 1  # after which a run may be pruned; the first says little
STUDY = "study.db"  # in the sweep directory


class OptunaPruning(Callback):
    """Reports validation figures to the study, and ends a run that falls behind.

    Args:
        search: what ``sweeps.search.Search.record`` says.
        folder: the sweep directory. A run that was taken out of it has no study, and is not pruned.
    """

    def __init__(self, search: SearchTrial, folder: Path) -> None:
        name = search.study
        self._metric = name.partition("-")[0]
        self._trial: Trial | None = None
        try:
            if self._metric not in METRICS or not (folder / STUDY).is_file():
                raise KeyError(name)
            storage = storage_of(folder.absolute() / STUDY)
            study = optuna.load_study(study_name=name, storage=storage, pruner=pruner_of(search.startup_trials))
            storage.get_trial(search.trial)
        except KeyError:
            LOG.warning("%s does not know this run: it is trained to the end, whatever its figures", folder / STUDY)
        else:
            self._id = search.trial
            self._trial = Trial(study, self._id)

    def on_epoch(self, event: EpochMetrics) -> None:
        value = getattr(event, self._metric)
        if self._trial is None:
            return
        if self._trial.storage.get_trial(self._id).state.is_finished():
            return  # the study has given up on it meanwhile; whoever runs it by hand may go on
        self._trial.report(value, event.epoch)
        if self._trial.should_prune():
            raise Pruned(
                f"{self._metric} {value:.4f} after epoch {event.epoch} is worse than the median of earlier trials"
            )


def storage_of(file: Path) -> RDBStorage:
    """The studies in a file."""
    # Not by its URL: Optuna fills in braces, and SQLAlchemy before 2.1 takes what follows a question mark for a query.
    # Several jobs report to one file; each waits for its turn.
    connection = {"creator": lambda: sqlite3.connect(file, timeout=60), "poolclass": NullPool}
    return RDBStorage("sqlite://", engine_kwargs=connection)


def pruner_of(startup_trials: int) -> optuna.pruners.BasePruner:
    """What decides that a run has fallen behind: it is never one of the first trials."""
    return optuna.pruners.MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=WARM_UP_EPOCHS)
