"""The configurations of a sweep's jobs, for which ``conf/`` is read once for each set of choices and not once a job."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.compose import directory_part_of


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
