"""The launcher and sweepers of this project: Hydra finds plugins only in this namespace.

Hydra imports this module at every start, so the module imports nothing slow; the work is in ``mnist_exp.sweeps``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, flag_override

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from mnist_exp.runs.sweep import Until
    from mnist_exp.sweeps.search import Search, SearchSettings
    from mnist_exp.sweeps.until import Rounds


class FinishingLauncher(Launcher):
    """Gives another launcher the jobs of a sweep that are not complete yet. See ``mnist_exp.sweeps.launching``.

    Args:
        inner: the configuration of that launcher.

    Attributes:
        records: for each job of the next launch, extra fields of its ``run.json``; set by a search.
        until: how the sweep adds seeds; set by a sweep that does.
        trials: the number of trials of the whole search; set by a search.
    """

    def __init__(self, inner: DictConfig) -> None:
        self._inner = inner
        self.records: Sequence[Mapping[str, Any]] | None = None
        self.until: Until | None = None
        self.trials: int | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context = hydra_context
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from mnist_exp.sweeps.launching import launch

        records = self.records or [{}] * len(job_overrides)
        return launch(
            self._context,
            self._config,
            self._inner,
            job_overrides,
            initial_job_idx,
            records,
            until=self.until,
            trials=self.trials,
        )


class GridSweeper(Sweeper):
    """Runs every combination of the given values, like Hydra's own sweeper, but composes each job only once.

    With ``sweep.until`` it adds seeds, see ``mnist_exp.sweeps.until``. The launcher composes and checks all jobs before any
    starts; if it refuses them, no new directory remains.

    Args:
        max_batch_size: number of jobs given to the launcher at once; None: all.
        params: overrides placed before those of the command line.
    """

    def __init__(self, max_batch_size: int | None, params: Mapping[str, Any] | None = None) -> None:
        self._max_batch_size = max_batch_size
        self._params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.config, self.hydra_context = config, hydra_context
        self._launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run all jobs, and return their results by batch.

        Raises:
            UsageError: there are no jobs, or an interval is given. See ``launching.launch`` for other errors.
        """
        from hydra.core.override_parser.overrides_parser import OverridesParser

        assert self.config is not None
        assert self.hydra_context is not None
        path = Path(self.config.hydra.sweep.dir)
        new = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            parser = OverridesParser.create(self.hydra_context.config_loader)
            overrides = parser.parse_overrides([*(f"{k}={v}" for k, v in self._params.items()), *arguments])
            rounds = self._rounds(overrides, path)
            jobs = _jobs(overrides)
            path.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, path / "multirun.yaml")
            return rounds.run() if rounds else self._in_batches(jobs, 0)
        finally:
            for folder in new:
                with suppress(OSError):  # not empty: jobs were stored in it
                    folder.rmdir()

    def _in_batches(self, jobs: list[list[str]], first: int) -> list[Sequence[JobReturn]]:
        size = self._max_batch_size or len(jobs)
        return [self._launcher.launch(jobs[i : i + size], first + i) for i in range(0, len(jobs), size)]

    def _rounds(self, overrides: Sequence[Override], path: Path) -> Rounds | None:
        """The rounds of a sweep that adds seeds; None of an ordinary one.

        Raises:
            UsageError: the sweep is not possible.
        """
        assert self.config is not None
        if self.config.sweep.until is None:
            return None
        from mnist_exp.errors import UsageError
        from mnist_exp.sweeps.until import Rounds, until_of

        arms = _jobs([override for override in overrides if override.get_key_element() != "seed"])
        typed = _jobs([override for override in overrides if override.get_key_element() == "seed"])
        words = dict.fromkeys(word for job in typed for word in job or [f"seed={self.config.seed}"])
        try:
            seeds = [int(word.partition("=")[2]) for word in words]
        except ValueError:
            raise UsageError(f"{' '.join(words)}: with sweep.until, seeds are whole numbers: seed=0,1,2") from None
        until = until_of(self.config, len(arms), seeds)
        assert until is not None
        assert isinstance(self._launcher, FinishingLauncher)
        launcher = self._launcher

        def launch(jobs: list[list[str]], first: int, until: Until) -> Sequence[JobReturn]:
            launcher.until = until
            return [job for batch in self._in_batches(jobs, first) for job in batch]

        return Rounds(launch, path.absolute(), arms, seeds, until)


def _jobs(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of each job. If a key occurs several times, its last value is used, in the position of the first.

    Raises:
        UsageError: there are no jobs, or an interval is given.
    """
    from mnist_exp.errors import UsageError

    deletions = [str(override.input_line) for override in overrides if override.is_delete()]
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_delete():
            continue  # Hydra would turn ~KEY into ~KEY=, which deletes nothing
        if not override.is_sweep_override():
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise UsageError(
                "intervals are searched, not swept over; add hydra/sweeper=optuna, or give a list of values"
            )
        if not values[key]:
            raise UsageError(f"{override.input_line} has no values, so this sweep has no jobs")
    return [[*job, *deletions] for job in itertools.product(*values.values())]


class OptunaSweeper(Sweeper):
    """Runs the jobs that an Optuna study proposes. ``conf/hydra/sweeper/optuna.yaml`` explains the arguments."""

    def __init__(self, params: DictConfig, **settings: Any) -> None:
        self._params = params
        self._settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.config, self.hydra_context = config, hydra_context
        self._launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the remaining trials of the study.

        Raises:
            UsageError: the search is not possible. See ``launching.launch`` for other errors.
        """
        from mnist_exp.errors import UsageError

        try:
            from mnist_exp.sweeps.search import study_errors_explained
        except ImportError as error:
            raise UsageError("hydra/sweeper=optuna needs Optuna: pip install 'mnist-exp[optuna]'") from error
        assert self.config is not None
        with study_errors_explained(Path(self.config.hydra.sweep.dir)):
            self._run_trials(arguments)

    def _run_trials(self, arguments: list[str]) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        from mnist_exp.errors import UsageError
        from mnist_exp.sweeps.search import Search, SearchSettings, locked, space_of

        assert self.config is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(self.hydra_context.config_loader)
        parsed = parser.parse_overrides([*(f"{key!s}={value}" for key, value in self._params.items()), *arguments])
        last = {override.get_key_element(): override for override in parsed}
        if "trainer.evaluate_test" not in last and self.config.trainer.evaluate_test == "every":
            last |= self._leave_test_set_alone(parser)
        fixed = [
            # Hydra would turn ~KEY into ~KEY=, which deletes nothing.
            str(override.input_line) if override.is_delete() else f"{key}={override.get_value_element_as_str()}"
            for key, override in last.items()
            if not override.is_sweep_override()
        ]
        settings = SearchSettings.check(self._settings)
        if self.config.sweep.until is not None:
            raise UsageError(
                "sweep.until compares given arms with several seeds; a search proposes its own: leave it out"
            )
        if self.config.data.val_size == 0:
            raise UsageError("a search needs validation data; hold some out: data.val_size=5000")
        space = space_of(list(last.values()), self.config)
        folder = Path(self.config.hydra.sweep.dir)
        with locked(folder):
            self._run_search(Search(folder, space, settings), settings, fixed)

    def _run_search(self, search: Search, settings: SearchSettings, fixed: Sequence[str]) -> None:
        """Run the remaining trials.

        Args:
            fixed: overrides of every trial.
        """
        from mnist_exp.runs.sweep import read_job_status
        from mnist_exp.sweeps.composing import JobRefused
        from mnist_exp.sweeps.progress import jobs_to_run
        from mnist_exp.sweeps.search import assignments
        from mnist_exp.terminal import say

        assert isinstance(self._launcher, FinishingLauncher)
        self._launcher.trials = settings.n_trials
        if search.earlier != search.taken_over:
            say(f"search: {search.taken_over} of {search.earlier} earlier trials lie in the changed search space")
        if search.finished() >= settings.n_trials:
            say(
                f"search: nothing to do, finished trials: {search.finished()}; ask for more: hydra.sweeper.n_trials="
                f"{search.finished() + settings.n_trials}"
            )
            self._launcher.launch([], 0)  # runs nothing; the program ends with the table of all jobs
        else:
            say(f"search: {jobs_to_run(settings.n_trials, 'trial', search.finished())}")
        while (left := settings.n_trials - search.finished()) > 0:
            trials = search.next(min(left, settings.n_jobs))
            self._launcher.records = [search.record(trial) for trial in trials]
            overrides = [[*fixed, *assignments(trial)] for trial in trials]
            try:
                results = self._launcher.launch(overrides, trials[0].number)
            except JobRefused as error:
                search.refuse(trials, str(error))
                raise
            for trial, result in zip(trials, results, strict=True):
                assert result.working_dir is not None
                job_status = read_job_status(Path(result.working_dir))
                search.tell(trial, job_status.status, getattr(job_status, settings.metric))

    def _leave_test_set_alone(self, parser: OverridesParser) -> dict[str, Override]:
        """The override with which trials have no test figures, which somebody who tunes would read; also added to the
        overrides that all jobs share, so that no name of a job has it."""
        assert self.config is not None
        word = "trainer.evaluate_test=never"
        with flag_override(self.config.hydra, ["struct", "readonly"], False):
            self.config.hydra.overrides.task.append(word)
        (override,) = parser.parse_overrides([word])
        return {override.get_key_element(): override}
