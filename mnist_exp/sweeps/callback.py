"""A Hydra callback that puts our launcher between the sweeper and the chosen launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, flag_override

from mnist_exp.compose import BASIC_SWEEPER
from mnist_exp.explain import wrap_errors_for_hydra
from mnist_exp.runs.files import refuse_links

SWEEPER = "hydra_plugins.mnist_exp_sweeps.GridSweeper"
LAUNCHER = "hydra_plugins.mnist_exp_sweeps.FinishingLauncher"


class FinishSweep(Callback):
    """Gives the chosen launcher to ``FinishingLauncher``, and prints the table of the sweep at the end."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with flag_override(config, ["struct", "readonly"], False):
            config.hydra.launcher = {"_target_": LAUNCHER, "_recursive_": False, "inner": config.hydra.launcher}
            if config.hydra.sweeper._target_ == BASIC_SWEEPER:
                config.hydra.sweeper._target_ = SWEEPER
        # Hydra does this for jobs only, but the path of the sweep directory may interpolate ${hydra:...}, too.
        HydraConfig.instance().set_config(config)
        with wrap_errors_for_hydra():
            refuse_links(Path(config.hydra.sweep.dir))  # Hydra and the study write there next

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from mnist_exp.sweeps.launching import conclude

        conclude()
