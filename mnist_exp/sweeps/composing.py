"""The configurations of a sweep's jobs, for which ``conf/`` is read once for each set of choices and not once a job."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.compose import directory_part_of, groups, resolve, with_choices_checked
from mnist_exp.config import Config, ImageProperties, check
from mnist_exp.errors import UsageError
from mnist_exp.explain import as_usage_error
from mnist_exp.runs.directory import resume_command
from mnist_exp.stored import check_runs_named


class JobComposer:
    """Does what ``load_sweep_config`` of Hydra's loader does, to the letter.

    Most jobs differ in values alone, such as a seed or a learning rate. Hydra applies values last and in their order, so
    they can as well be set on a copy of what the other overrides make.

    Args:
        loader: of Hydra.
        config: of the sweep.
        groups: what a choice can be made of, such as ``model`` and ``hydra/launcher``.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig, groups: Collection[str]) -> None:
        self._loader, self._config, self._groups = loader, config, groups
        self._parser = OverridesParser.create(loader)
        self._parsed: dict[str, Override] = {}
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The whole configuration of a job; raises what Hydra raises."""
        for override in overrides:
            if override not in self._parsed:
                (self._parsed[override],) = self._parser.parse_overrides([override])
        parsed = [self._parsed[override] for override in overrides]
        values = [override for override in parsed if self._is_value(override)]
        others = tuple(override for override, found in zip(overrides, parsed, strict=True) if not self._is_value(found))
        if any(self._touches(self._parsed[other], value) for other in others for value in values):
            return self._loader.load_sweep_config(self._config, list(overrides))
        if others not in self._bases:
            self._bases[others] = self._loader.load_sweep_config(self._config, list(others))
        config = copy.deepcopy(self._bases[others])
        try:
            for value in values:
                OmegaConf.update(config, value.key_or_group, value.value(), merge=True)
        except OmegaConfBaseException:
            return self._loader.load_sweep_config(self._config, list(overrides))  # which says it in Hydra's words
        task = [override for override in parsed if not override.is_hydra_override()]
        config.hydra.overrides.task.clear()
        config.hydra.overrides.task.extend([override.input_line for override in task])
        config.hydra.job.override_dirname = directory_part_of(task, config)
        return config

    def _is_value(self, override: Override) -> bool:
        """Whether this sets a key that exists to something, and chooses nothing."""
        key = override.key_or_group
        return (
            override.package is None
            and not (override.is_add() or override.is_force_add() or override.is_delete())
            and not override.is_hydra_override()
            and "/" not in key
            and key not in self._groups
        )

    def _touches(self, other: Override, value: Override) -> bool:
        """Whether the order of the two may matter, because one key is the other or lies in its section."""
        one, two = f"{other.key_or_group}.", f"{value.key_or_group}."
        chooses = other.key_or_group in self._groups and isinstance(other.value(), str)
        return not chooses and (one.startswith(two) or two.startswith(one))


class JobRefused(UsageError):
    """A job that cannot run; nothing of it is on disk."""


@dataclass(frozen=True)
class Composed:
    """The whole configuration of a job; ``task`` is what is not Hydra's of it, ``checked`` the same resolved and typed."""

    config: DictConfig
    task: DictConfig
    checked: Config


def compose_all(
    context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
) -> list[Composed]:
    """The configurations of all jobs, checked.

    Raises:
        JobRefused: one cannot run; the message says which job.
    """
    composer = JobComposer(context.config_loader, config, groups(folders_of_conf(context)))
    found: dict[str, ImageProperties] = {}
    return [
        _compose(context, composer, config, overrides, index, found)
        for index, overrides in enumerate(job_overrides, initial_job_idx)
    ]


def _compose(
    context: HydraContext,
    composer: JobComposer,
    config: DictConfig,
    overrides: Sequence[str],
    index: int,
    found: dict[str, ImageProperties],
) -> Composed:
    """The configuration of a job, checked.

    Args:
        found: what data have been read for already, by their settings; data that are read now are added.

    Raises:
        JobRefused: it cannot run; the message says which job.
    """
    hydra = HydraConfig.instance()
    sweep = hydra.cfg
    folders = folders_of_conf(context)
    try:
        composed = composer.compose(with_choices_checked(overrides, folders))
        with open_dict(composed):
            composed.hydra.job.id = composed.hydra.job.num = index
        hydra.set_config(composed)
        _refuse_another_sweep(config, composed)
        task = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        tree = resolve(task)
        if tree["resume"] is not None:
            raise UsageError(
                f"resume={tree['resume']} continues one run and goes without -m: {resume_command(tree['resume'])}; a "
                "sweep is finished with mnist-train -m sweep.resume=DIR"
            )
        checked = check(tree)
        check_runs_named(checked)
        from mnist_exp.build import check_parts

        check_parts(_with_image_size(checked, found), Path(composed.hydra.sweep.dir) / str(index))
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
    return Composed(composed, task, checked)


def _with_image_size(config: Config, found: dict[str, ImageProperties]) -> Config:
    """The configuration with the size of its images. Where only the data know it, they are read, once for all jobs."""
    if config.data.image_size is not None:
        return config
    from mnist_exp.components import build_data, image_properties

    key = repr(config.data.plain())
    if key not in found:
        found[key] = image_properties(build_data(config.data))
    return config.with_image_properties(found[key])


def _refuse_another_sweep(config: DictConfig, composed: DictConfig) -> None:
    """A job is one run: what a choice says of sweeping, launching or naming the sweep would go unheard.

    Raises:
        UsageError: the job's configuration asks for another sweep than the one it is in.
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
        names = [name for name in {**our, **its_own} if name != "_target_"]  # which is ours here and Hydra's there
        if differing := next((name for name in names if our.get(name) != its_own.get(name)), None):
            raise UsageError(
                f"{key}.{differing} differs from job to job: a sweep of sweeps is not possible; give a command for each"
            )


def fixed_keys(context: HydraContext, config: DictConfig) -> set[str]:
    """Keys that the command line gives one value, the same for all jobs."""
    parsed = OverridesParser.create(context.config_loader).parse_overrides(list(config.hydra.overrides.task))
    varies = {override.get_key_element(): override.is_sweep_override() for override in parsed}
    return {key for key, several in varies.items() if not several}


def folders_of_conf(context: HydraContext) -> list[Path]:
    """Where configuration files lie."""
    return [Path(source.path) for source in context.config_loader.get_sources() if source.scheme() == "file"]


def fingerprint(context: HydraContext) -> dict[Path, int]:
    """When each configuration file was last written."""
    return {file: file.stat().st_mtime_ns for folder in folders_of_conf(context) for file in folder.rglob("*.yaml")}
