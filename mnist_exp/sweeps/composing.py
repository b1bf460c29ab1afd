"""Compose the configurations of a sweep's jobs; ``conf/`` is read once for each set of choices, not once for each job."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.compose import directory_part_of, groups, interpolations_parsed_once, resolve, with_choices_checked
from mnist_exp.config import Config, ImageProperties, check
from mnist_exp.errors import UsageError
from mnist_exp.explain import as_usage_error
from mnist_exp.runs.directory import resume_command
from mnist_exp.stored import check_runs_named
from mnist_exp.torch_import import import_torch


class JobComposer:
    """Returns exactly what ``load_sweep_config`` of Hydra's loader returns, but faster.

    Most jobs differ only in values, such as a seed or a learning rate. Hydra applies values last and in their order, so
    they can be set on a copy of the configuration that the other overrides give.

    Args:
        loader: Hydra's.
        config: of the sweep.
        groups: names of the config groups, such as ``model`` and ``hydra/launcher``.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig, groups: Collection[str]) -> None:
        self._loader, self._config, self._groups = loader, config, groups
        self._parser = OverridesParser.create(loader)
        self._parsed: dict[str, Override] = {}
        self._bases: dict[tuple[str, ...], DictConfig] = {}
        self._tasks: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The whole configuration of a job.

        Raises:
            Exception: those of ``load_sweep_config``.
        """
        others, values = self._split(overrides)
        if any(self._touches(self._parsed[other], value) for other in others for value in values):
            return self._loader.load_sweep_config(self._config, list(overrides))
        config = copy.deepcopy(self._base(others))
        if not _updated(config, values):
            return self._loader.load_sweep_config(self._config, list(overrides))  # raises Hydra's own message
        self._describe_job(config, overrides)
        return config

    def compose_task(self, overrides: Sequence[str], number: int) -> tuple[DictConfig, DictConfig]:
        """The configuration of a job without ``hydra``, and one that has the section ``hydra`` of this job.

        The second is changed by the next call. It is not copied, because it is several times as large as the first.

        Args:
            number: Hydra's number of the job.

        Raises:
            Exception: those of ``load_sweep_config``.
        """
        others, values = self._split(overrides)
        differs = any(value.key_or_group.partition(".")[0] == "sweep" for value in values)
        if differs or any(self._touches(self._parsed[other], value) for other in others for value in values):
            whole = self.compose(overrides)
            task = without_hydra(whole)
        else:
            whole = self._base(others)
            if others not in self._tasks:
                self._tasks[others] = without_hydra(whole)
            task = copy.deepcopy(self._tasks[others])
            if not _updated(task, values):
                self._loader.load_sweep_config(self._config, list(overrides))  # raises Hydra's own message
            self._describe_job(whole, overrides)
        with open_dict(whole):
            whole.hydra.job.id = whole.hydra.job.num = number
        return task, whole

    def _split(self, overrides: Sequence[str]) -> tuple[tuple[str, ...], list[Override]]:
        """The overrides that are not values, and those that are."""
        for override in overrides:
            if override not in self._parsed:
                (self._parsed[override],) = self._parser.parse_overrides([override])
        parsed = [self._parsed[override] for override in overrides]
        others = tuple(override for override, found in zip(overrides, parsed, strict=True) if not self._is_value(found))
        return others, [override for override in parsed if self._is_value(override)]

    def _base(self, others: tuple[str, ...]) -> DictConfig:
        """The whole configuration with these overrides."""
        if others not in self._bases:
            self._bases[others] = self._loader.load_sweep_config(self._config, list(others))
        return self._bases[others]

    def _describe_job(self, config: DictConfig, overrides: Sequence[str]) -> None:
        """Set what the section ``hydra`` says about the overrides."""
        task = [found for override in overrides if not (found := self._parsed[override]).is_hydra_override()]
        config.hydra.overrides.task.clear()
        config.hydra.overrides.task.extend([override.input_line for override in task])
        config.hydra.job.override_dirname = directory_part_of(task, config)

    def _is_value(self, override: Override) -> bool:
        """Whether the override sets an existing key to a value, and does not choose a file of a group."""
        key = override.key_or_group
        return (
            override.package is None
            and not (override.is_add() or override.is_force_add() or override.is_delete())
            and not override.is_hydra_override()
            and "/" not in key
            and key not in self._groups
        )

    def _touches(self, other: Override, value: Override) -> bool:
        """Whether the order of the two may matter: their keys are equal, or one is in the section of the other."""
        one, two = f"{other.key_or_group}.", f"{value.key_or_group}."
        chooses = other.key_or_group in self._groups and isinstance(other.value(), str)
        return not chooses and (one.startswith(two) or two.startswith(one))


def without_hydra(config: DictConfig) -> DictConfig:
    """A copy without the section ``hydra``."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _updated(config: DictConfig, values: Sequence[Override]) -> bool:
    """Set the values; False if one is not possible."""
    try:
        for value in values:
            OmegaConf.update(config, value.key_or_group, value.value(), merge=True)
    except OmegaConfBaseException:
        return False
    return True


class JobRefused(UsageError):
    """A job cannot run. Nothing of it has been written."""


@dataclass(frozen=True)
class Composed:
    """The configuration of a job.

    Attributes:
        checked: without the section ``hydra``, resolved and checked.
        whole: returns all of it, not resolved.
    """

    checked: Config
    whole: Callable[[], DictConfig]


@dataclass
class _Known:
    """What was found out about the jobs of a sweep and need not be found out again.

    Attributes:
        groups: all config groups.
        words: the checked form of each override.
        accepted: whole configurations that belong to this sweep, by their ids.
        found: properties of data that have been read, by their settings.
        parts: settings whose parts can be built.
    """

    groups: list[str]
    words: dict[str, list[str]] = field(default_factory=dict)
    accepted: dict[int, DictConfig] = field(default_factory=dict)
    found: dict[str, ImageProperties] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)


def compose_all(
    context: HydraContext,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
    is_settled: Callable[[Sequence[str]], bool],
) -> list[Composed]:
    """Compose and check the configurations of all jobs.

    Args:
        is_settled: whether the job with these overrides need not run, so that building it need not be tried, which imports
            torch.

    Raises:
        JobRefused: a job cannot run; the message names it.
    """
    known = _Known(groups(folders_of_conf(context)))
    composer = JobComposer(context.config_loader, config, known.groups)
    with interpolations_parsed_once():
        return [
            _compose(context, composer, config, overrides, index, is_settled, known)
            for index, overrides in enumerate(job_overrides, initial_job_idx)
        ]


def _compose(
    context: HydraContext,
    composer: JobComposer,
    config: DictConfig,
    overrides: Sequence[str],
    index: int,
    is_settled: Callable[[Sequence[str]], bool],
    known: _Known,
) -> Composed:
    """Compose and check the configuration of a job.

    Args:
        is_settled: see ``compose_all``.
        known: of the jobs before; what is found here is added.

    Raises:
        JobRefused: it cannot run; the message names the job.
    """
    hydra = HydraConfig.instance()
    sweep = hydra.cfg
    folders = folders_of_conf(context)
    try:
        for override in overrides:
            if override not in known.words:
                known.words[override] = with_choices_checked([override], folders, known.groups)
        words = [word for override in overrides for word in known.words[override]]
        task, composed = composer.compose_task(words, index)
        hydra.cfg = composed  # type: ignore[assignment]  # as set_config does, which would also copy it
        if id(composed) not in known.accepted:
            _refuse_another_sweep(config, composed)
            known.accepted[id(composed)] = composed
        tree = resolve(task)
        if tree["resume"] is not None:
            raise UsageError(
                f"resume={tree['resume']} continues one run and goes without -m: {resume_command(tree['resume'])}; a "
                "sweep is finished with mnist-train -m sweep.resume=DIR"
            )
        checked = check(tree)
        check_runs_named(checked)
        if not is_settled(overrides):
            _check_parts(checked, Path(composed.hydra.sweep.dir) / str(index), known)
        checked = checked.with_absolute_paths(Path.cwd())
    except Exception as error:
        if (mistake := as_usage_error(error, folders)) is None:
            raise
        fixed = fixed_keys(context, config)
        varying = [override for override in overrides if override.partition("=")[0] not in fixed]
        which = f" (job {' '.join(varying)})" if varying else ""
        raise JobRefused("\n".join(f"{line}{which}" for line in str(mistake).splitlines())) from error
    finally:
        hydra.cfg = sweep
    return Composed(checked, partial(_whole, composer, words, index))


def _check_parts(checked: Config, directory: Path, known: _Known) -> None:
    """Try to build the parts of a job, once for all jobs that have the same.

    Raises:
        UsageError: as ``build.check_parts``.
    """
    import_torch()
    from mnist_exp.build import check_parts

    sized = _with_image_size(checked, known.found)
    parts = repr(sized.model_copy(update={"seed": 0, "sweep": None}))  # no part is refused because of these
    if parts not in known.parts:
        check_parts(sized, directory)
        known.parts.add(parts)


def _whole(composer: JobComposer, overrides: Sequence[str], index: int) -> DictConfig:
    """All of a job's configuration, with its number."""
    composed = composer.compose(overrides)
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = index
    return composed


def _with_image_size(config: Config, found: dict[str, ImageProperties]) -> Config:
    """The configuration with the image size. If it is not configured, the data are read, once for all jobs that use them."""
    if config.data.image_size is not None:
        return config
    from mnist_exp.components import build_data, image_properties

    key = repr(config.data.plain())
    if key not in found:
        found[key] = image_properties(build_data(config.data))
    return config.with_image_properties(found[key])


def _refuse_another_sweep(config: DictConfig, composed: DictConfig) -> None:
    """Refuse a job whose choices change the sweeper, the launcher or the sweep directory, which would have no effect.

    Raises:
        UsageError: the job's configuration differs from that of the sweep in one of these.
    """
    ours, its = (OmegaConf.to_container(node, resolve=False) for node in (config, composed))
    assert isinstance(ours, dict)
    assert isinstance(its, dict)
    for key, our, its_own in (
        ("hydra.sweeper", ours["hydra"]["sweeper"], its["hydra"]["sweeper"]),
        ("hydra.launcher", ours["hydra"]["launcher"]["inner"], its["hydra"]["launcher"]),
        ("hydra.sweep", ours["hydra"]["sweep"], its["hydra"]["sweep"]),
        ("sweep", ours["sweep"], its["sweep"]),
    ):
        names = [name for name in {**our, **its_own} if name != "_target_"]  # FinishSweep replaces it in the sweep only
        if differing := next((name for name in names if our.get(name) != its_own.get(name)), None):
            raise UsageError(
                f"{key}.{differing} differs from job to job: a sweep of sweeps is not possible; give a command for each"
            )


def fixed_keys(context: HydraContext, config: DictConfig) -> set[str]:
    """The keys that the command line sets to one value for all jobs."""
    parsed = OverridesParser.create(context.config_loader).parse_overrides(list(config.hydra.overrides.task))
    varies = {override.get_key_element(): override.is_sweep_override() for override in parsed}
    fixed = {key for key, several in varies.items() if not several}
    return fixed - {"seed"} if config.sweep.until is not None else fixed  # other seeds are added to a typed one


def folders_of_conf(context: HydraContext) -> list[Path]:
    """The folders with configuration files."""
    return [Path(source.path) for source in context.config_loader.get_sources() if source.scheme() == "file"]


def fingerprint(context: HydraContext) -> dict[Path, int]:
    """The time of the last change of each configuration file, in nanoseconds."""
    return {file: file.stat().st_mtime_ns for folder in folders_of_conf(context) for file in folder.rglob("*.yaml")}
