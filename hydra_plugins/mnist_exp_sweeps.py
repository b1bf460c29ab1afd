"""What Hydra finds of this project: it takes launchers and sweepers from this namespace only.

Hydra imports this module whenever it starts, so it holds names; the work is in ``mnist_exp.sweeps``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class FinishingLauncher(Launcher):
    """Gives another launcher the jobs of a sweep that are not complete yet. See ``mnist_exp.sweeps.launching``.

    Args:
        inner: the configuration of that launcher.

    Attributes:
        records: for each job of the next launch, what else its ``run.json`` says; a search sets it.
    """

    def __init__(self, inner: DictConfig) -> None:
        self._inner = inner
        self.records: Sequence[Mapping[str, Any]] | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context = hydra_context
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from mnist_exp.sweeps.launching import launch

        records = self.records or [{}] * len(job_overrides)
        return launch(self._context, self._config, self._inner, job_overrides, initial_job_idx, records)


class GridSweeper(BasicSweeper):
    """Hydra's own sweeper, which leaves nothing behind when the launcher refuses its jobs.

    Without its rehearsal: the launcher composes all jobs, and checks them, before any starts.
    """

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None: ...

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """The jobs, in batches. Hydra makes ``~KEY=`` of ``~KEY``, which deletes nothing.

        Raises:
            UsageError: there are no jobs.
        """
        deletions = [str(override.input_line) for override in overrides if override.is_delete()]
        kept = [override for override in overrides if not override.is_delete()]
        batches = BasicSweeper.split_arguments(kept, max_batch_size)
        if not any(batches):
            from mnist_exp.errors import UsageError

            empty = [str(override.input_line) for override in kept if not _has_values(override)]
            raise UsageError(f"{empty[0]} has no values, so this sweep has no jobs")
        return [[[*job, *deletions] for job in batch] for batch in batches]

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        path = Path(self.config.hydra.sweep.dir)
        new = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            return super().sweep(arguments)
        finally:
            for folder in new:
                with suppress(OSError):  # it is not empty, so something was done
                    folder.rmdir()


def _has_values(override: Override) -> bool:
    return not override.is_sweep_override() or next(iter(override.sweep_string_iterator()), None) is not None


class OptunaSweeper(Sweeper):
    """Asks an Optuna study which jobs to run. ``conf/hydra/sweeper/optuna.yaml`` says what the arguments mean."""

    def __init__(self, params: DictConfig, **settings: Any) -> None:
        self._params = params
        self._settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.config, self.hydra_context = config, hydra_context
        self._launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        """Run what is left of the study's trials.

        Raises:
            PastHydra: with a UsageError where the search cannot be; see ``launching.launch`` for the others.
        """
        from hydra.core.override_parser.overrides_parser import OverridesParser

        from mnist_exp.errors import PastHydra, UsageError
        from mnist_exp.sweeps.directory import read_job_status
        from mnist_exp.sweeps.launching import JobRefused
        from mnist_exp.terminal import say

        assert self.config is not None
        assert self.hydra_context is not None
        assert isinstance(self._launcher, FinishingLauncher)
        parser = OverridesParser.create(self.hydra_context.config_loader)
        parsed = parser.parse_overrides([*(f"{key!s}={value}" for key, value in self._params.items()), *arguments])
        last = {override.get_key_element(): override for override in parsed}
        try:
            try:
                from mnist_exp.sweeps.search import Search, SearchSettings, assignments, space_of
            except ImportError as error:
                raise UsageError("hydra/sweeper=optuna needs Optuna: pip install 'mnist-exp[optuna]'") from error
            settings = SearchSettings.check(self._settings)
            if self.config.data.val_size == 0:
                raise UsageError("a search needs validation data; hold some out: data.val_size=5000")
            space = space_of(list(last.values()), self.config)
            search = Search(Path(self.config.hydra.sweep.dir), space, settings)
        except UsageError as error:
            raise PastHydra(error) from error
        fixed = [
            # Hydra would make ~KEY= of ~KEY, which deletes nothing.
            str(override.input_line) if override.is_delete() else f"{key}={override.get_value_element_as_str()}"
            for key, override in last.items()
            if not override.is_sweep_override()
        ]
        if search.earlier != search.taken_over:
            say(f"search: {search.taken_over} of {search.earlier} earlier trials lie in the changed search space")
        if search.finished() >= settings.n_trials:
            say(
                f"search: nothing to do, finished trials: {search.finished()}; ask for more: hydra.sweeper.n_trials="
                f"{search.finished() + settings.n_trials}"
            )
            self._launcher.launch([], 0)  # runs nothing; the program ends with the table of all jobs
        while (left := settings.n_trials - search.finished()) > 0:
            trials = search.next(min(left, settings.n_jobs))
            self._launcher.records = [search.record(trial) for trial in trials]
            overrides = [[*fixed, *assignments(trial)] for trial in trials]
            try:
                results = self._launcher.launch(overrides, trials[0].number)
            except PastHydra as passing:
                if isinstance(passing.error, JobRefused):
                    search.refuse(trials, str(passing.error))
                raise
            for trial, result in zip(trials, results, strict=True):
                assert result.working_dir is not None
                job_status = read_job_status(Path(result.working_dir))
                search.tell(trial, job_status.status, getattr(job_status, settings.metric))
