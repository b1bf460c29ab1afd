"""Search with Optuna: a study chooses the settings of the next jobs from the validation results of earlier ones.

The study is an SQLite file in the sweep directory. The run of an interrupted trial is resumed, and a run that is worse
than the median of earlier trials at the same epoch is pruned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import numpy as np
import optuna
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from mnist_exp.config import Config, Section
from mnist_exp.errors import UsageError, explain_validation
from mnist_exp.pruning import METRICS, STUDY, pruner_of, storage_of
from mnist_exp.runs import Status
from mnist_exp.runs.locking import acquire
from mnist_exp.runs.sweep import read_sweep
from mnist_exp.trust import find_target

LOCK = ".search.lock"
REFUSED = "refused"  # user attribute of a trial that could not be trained: the reason


class SearchSettings(Section):
    """``hydra.sweeper`` of a search; ``conf/hydra/sweeper/optuna.yaml`` explains the keys."""

    n_trials: Annotated[int, Field(ge=1)]
    n_jobs: Annotated[int, Field(ge=1)]
    metric: str
    seed: Annotated[int, Field(ge=0)]
    startup_trials: Annotated[int, Field(ge=0)]
    prune: bool

    @classmethod
    def check(cls, given: Mapping[str, Any]) -> SearchSettings:
        """Make settings from the values of ``hydra.sweeper``.

        Raises:
            UsageError: a value has a wrong type or is out of range, or ``metric`` is not one of validation data.
        """
        try:
            settings = cls.model_validate(given)
        except ValidationError as error:
            lines = explain_validation(error, given)
            raise UsageError("\n".join(f"hydra.sweeper.{line}" for line in lines)) from error
        if settings.metric not in METRICS:
            raise UsageError(
                f"hydra.sweeper.metric={settings.metric} is refused: the test set chooses nothing; choose from "
                + ", ".join(METRICS)
            )
        return settings


class Search:
    """A study, new or continued.

    Args:
        folder: the sweep directory; the caller is inside ``locked``.
        space: the distribution of each key. A changed space starts another study in the same file, which takes over the
            earlier trials that are inside the new space.
        settings: of the sweeper.

    Attributes:
        earlier, taken_over: the number of trials of other search spaces, and how many of them are inside this one; both 0
            if the space has not changed.
    """

    def __init__(self, folder: Path, space: Mapping[str, BaseDistribution], settings: SearchSettings) -> None:
        self._folder = folder.absolute()
        self._space = space
        self._settings = settings
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = storage_of(self._folder / STUDY)
        text = json.dumps({key: distribution_to_json(space[key]) for key in sorted(space)})
        self._name = f"{settings.metric}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        self.study = optuna.create_study(
            storage=self._storage,
            study_name=self._name,
            direction=METRICS[settings.metric],
            load_if_exists=True,
            pruner=pruner_of(settings.startup_trials) if settings.prune else optuna.pruners.NopPruner(),
        )
        self.earlier = self.taken_over = 0
        if not self.study.trials:
            self._take_over()

    def _take_over(self) -> None:
        """Add the trials of other studies of the same metric that are inside this search space."""
        for params, trial in self._of_other_studies().items():
            self.earlier += 1
            if fitting := _in_space(trial, dict(params), self._space):
                self.study.add_trial(fitting)
                self.taken_over += 1

    def _of_other_studies(self) -> dict[tuple[tuple[str, Any], ...], FrozenTrial]:
        """The trials of other studies of the same metric, by their sorted parameters."""
        names = [name for name in optuna.get_all_study_names(self._storage) if name != self._name]
        return {
            tuple(sorted(trial.params.items())): trial
            for name in names
            if name.partition("-")[0] == self._settings.metric
            for trial in optuna.load_study(study_name=name, storage=self._storage).trials
            if REFUSED not in trial.user_attrs
        }

    def finished(self) -> int:
        """Number of trials that need no more training."""
        return sum(trial.state.is_finished() and REFUSED not in trial.user_attrs for trial in self.study.trials)

    def next(self, number: int) -> list[Trial]:
        """``number`` trials to run now: first those that were interrupted, then new ones."""
        begun = self.study.get_trials(states=(TrialState.RUNNING,))[:number]
        return [self._proposed(trial) for trial in begun] + [self._proposed() for _ in range(number - len(begun))]

    def _proposed(self, begun: FrozenTrial | None = None) -> Trial:
        """A new trial, or one that was interrupted, perhaps before each key had a value.

        A study that is continued proposes the same trials as one without an interruption, because each value has its own
        seed.
        """
        number = len(self.study.trials) if begun is None else begun.number
        self.study.sampler = self._sampler(number, 0)
        trial = self.study.ask() if begun is None else Trial(self.study, self._id_of(begun))
        for place, (key, distribution) in enumerate(self._space.items(), start=1):
            self.study.sampler = self._sampler(number, place)
            match distribution:
                case FloatDistribution():
                    trial.suggest_float(key, distribution.low, distribution.high, log=distribution.log)
                case IntDistribution():
                    trial.suggest_int(key, distribution.low, distribution.high, log=distribution.log)
                case CategoricalDistribution():
                    trial.suggest_categorical(key, distribution.choices)
        return trial

    def _sampler(self, *numbers: int) -> optuna.samplers.TPESampler:
        """A sampler whose seed depends on that of the search and on these numbers."""
        (seed,) = np.random.SeedSequence([self._settings.seed, *numbers]).generate_state(1)
        return optuna.samplers.TPESampler(seed=int(seed), n_startup_trials=self._settings.startup_trials)

    def record(self, trial: Trial) -> dict[str, Any]:
        """Fields of the ``run.json`` of a trial that can be pruned, see ``SearchTrial``; empty without pruning."""
        if not self._settings.prune:
            return {}
        return {
            "search": {
                "trial": self._id_of(trial),
                "study": self._name,
                "startup_trials": self._settings.startup_trials,
            }
        }

    def _id_of(self, trial: FrozenTrial | Trial) -> int:
        """The number of a trial in the file; ``trial.number`` is its number in the study."""
        study = self._storage.get_study_id_from_name(self._name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, trial.number)

    def refuse(self, trials: Sequence[Trial], reason: str) -> None:
        """Exclude trials that cannot be trained, unless they have a run in the sweep directory already.

        A study without any other trial is deleted.
        """
        stored = self._stored()
        for trial in trials:
            if not any(set(assignments(trial)) <= arguments for arguments in stored):
                trial.set_user_attr(REFUSED, reason)
                self.study.tell(trial, state=TrialState.FAIL)
        if all(REFUSED in trial.user_attrs for trial in self.study.trials):
            optuna.delete_study(study_name=self._name, storage=self._storage)
            if not optuna.get_all_study_names(self._storage):
                self._storage.engine.dispose()
                (self._folder / STUDY).unlink()
                with suppress(OSError):  # the folder is not empty, or this is Windows, where the lock is open
                    (self._folder / LOCK).unlink()
                    self._folder.rmdir()

    def _stored(self) -> list[set[str]]:
        """The overrides of each job in the sweep directory."""
        if not (self._folder / "sweep.json").exists():
            return []
        return [set(job.arguments) for job in read_sweep(self._folder).jobs]

    def tell(self, trial: Trial, status: str, value: float | None) -> None:
        """Record the result of a trial: the status of its run, and the metric or None."""
        if status == Status.COMPLETED and value is not None:
            self.study.tell(trial, value)
        else:
            self.study.tell(trial, state=TrialState.PRUNED if status == Status.PRUNED else TrialState.FAIL)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let only one command search in a sweep directory, which is made if it does not exist.

    The lock of the sweep is not enough: it is free between two trials, when the study proposes the next one.

    Raises:
        RunDirectoryError: another process searches there, or the directory cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = acquire(folder, LOCK)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def study_errors_explained(folder: Path) -> Iterator[None]:
    """Turn an error of the study's database into one line.

    Args:
        folder: the sweep directory.

    Raises:
        UsageError: the database is damaged, or cannot be written.
    """
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error
        reason = " ".join(str(getattr(cause, "orig", None) or cause).split())
        raise UsageError(f"{folder / STUDY} cannot be used: {reason}") from error


def assignments(trial: Trial) -> list[str]:
    """The parameters of a trial as overrides."""
    return [f"{key}={value}" for key, value in trial.params.items()]


def space_of(overrides: Sequence[Override], config: DictConfig) -> dict[str, BaseDistribution]:
    """Distributions for Hydra's ``interval``, ``range`` and ``choice``; ``tag(log, interval(...))`` is logarithmic.

    Args:
        config: of the sweep; keys are integers if the schema, or else the value in ``config``, is one.

    Raises:
        UsageError: nothing to search, another kind of sweep, or invalid bounds.
    """
    space: dict[str, BaseDistribution] = {}
    for override in overrides:
        if not override.is_sweep_override():
            continue
        key, value = override.get_key_element(), override.value()
        if isinstance(value, IntervalSweep):
            space[key] = _between(override, value, integer=_is_integer(key.lstrip("+"), config))
        elif isinstance(value, RangeSweep | ChoiceSweep):
            space[key] = CategoricalDistribution([str(choice) for choice in override.sweep_string_iterator()])
        else:
            raise UsageError(f"{override.input_line} cannot be searched; write interval(a,b), range(...) or a list")
    if not space:
        raise UsageError("nothing to search; give some key an interval: 'optimizer.lr=tag(log,interval(1e-4,1e-1))'")
    return space


def _between(override: Override, interval: IntervalSweep, *, integer: bool) -> BaseDistribution:
    low, high, log = interval.start, interval.end, "log" in interval.tags
    assert low is not None
    assert high is not None
    key = override.get_key_element()
    if low > high or (log and low <= 0):
        problem = "must be positive for a logarithmic scale" if low <= high else "are in the wrong order"
        raise UsageError(f"{override.input_line}: the bounds {problem}")
    if not integer and not (isinstance(low, int) and isinstance(high, int)):
        return FloatDistribution(low, high, log=log)
    if low != int(low) or high != int(high):
        raise UsageError(f"{override.input_line}: {key} takes integers; write interval({int(low)},{int(high)})")
    return IntDistribution(int(low), int(high), log=log)  # Hydra reads interval(16,128) as 16.0 and 128.0


def _is_integer(key: str, config: DictConfig) -> bool:
    """Whether a key is an integer, by the schema or the constructor's annotation; if they do not have it, by its value."""
    nodes = [*_schemas(key.split(".")), *_annotation(key, config)]
    kinds = {node.get("type") for node in nodes} - {"null", None}
    value = None if kinds else OmegaConf.select(config, key)
    return "number" not in kinds and ("integer" in kinds or (isinstance(value, int) and not isinstance(value, bool)))


def _annotation(key: str, config: DictConfig) -> list[Mapping[str, Any]]:
    """The JSON schemas of a constructor's argument; none if its annotation has no JSON schema."""
    section, _, name = key.rpartition(".")
    target = OmegaConf.select(config, f"{section}._target_") if section else None
    try:
        found = find_target(str(target))
        schema = TypeAdapter(get_type_hints(getattr(found, "__init__", found), include_extras=True)[name]).json_schema()
    except Exception:  # no target, no such argument, or a type that pydantic does not know
        return []
    return [schema, *schema.get("anyOf", ())]


def _schemas(path: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The JSON schemas of a key: one for each kind of section that has it."""
    schema = Config.model_json_schema()

    def walk(node: Mapping[str, Any], left: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        if "$ref" in node:
            yield from walk(schema["$defs"][node["$ref"].rpartition("/")[2]], left)
        for branch in [*node.get("anyOf", ()), *node.get("oneOf", ())]:
            yield from walk(branch, left)
        if not left:
            yield node
        elif left[0] in node.get("properties", ()):
            yield from walk(node["properties"][left[0]], left[1:])

    return walk(schema, path)


def _in_space(trial: FrozenTrial, params: dict[str, Any], space: Mapping[str, BaseDistribution]) -> FrozenTrial | None:
    """The trial with the distributions of ``space``; None if it is outside ``space``."""
    integers = {key for key, distribution in space.items() if isinstance(distribution, IntDistribution)}
    if params.keys() != space.keys() or not all(isinstance(params[key], int) for key in integers):
        return None
    try:
        return create_trial(
            state=trial.state,
            value=trial.value,
            params=params,
            distributions=dict(space),
            user_attrs=trial.user_attrs,
            intermediate_values=trial.intermediate_values,
        )
    except ValueError:
        return None
