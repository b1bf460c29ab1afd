"""Make the file of a W&B sweep, which the W&B server controls, from a Hydra sweep preset or from overrides.

    python scripts/wandb_sweep.py sweep=search > sweep.yaml
    wandb sweep sweep.yaml                prints the next command, which several machines may run:
    wandb agent ENTITY/mnist-exp/ID

The space stands in ``conf/sweep`` only. Overrides with several values become parameters, the others are the same in all runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.compose import CONF
from mnist_exp.errors import UsageError
from mnist_exp.training.events import CURVES

# Side by side, so that mnist-report outputs/sweeps/ID compares them; a directory that holds a run is refused.
DIRECTORY = "hydra.run.dir=outputs/sweeps/${oc.env:WANDB_SWEEP_ID}/${oc.env:WANDB_RUN_ID}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the file; exit status 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description="Make the file of a W&B sweep from a Hydra sweep preset.")
    parser.add_argument("overrides", nargs="+", help="as for mnist-train -m: sweep=search, seed=0,1,2")
    options = parser.parse_args(arguments)
    with exit_status("wandb_sweep.py"), printing():
        yaml.safe_dump(wandb_sweep(options.overrides), sys.stdout, sort_keys=False, width=1000)


def wandb_sweep(overrides: Sequence[str]) -> dict[str, Any]:
    """The content of the file.

    Raises:
        UsageError: nothing is varied, or in a way that W&B has no word for.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    shared = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("train", [*shared, "hydra.mode=RUN"], return_hydra_config=True)
    params = config.hydra.sweeper.get("params") or {}
    own = {override.get_key_element(): override for override in parsed if override.is_sweep_override()}
    preset = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    varied = {**{override.get_key_element(): override for override in preset}, **own}
    if not varied:
        raise UsageError("nothing is varied; name a preset, sweep=search, or several values, seed=0,1,2")
    parameters = {key: _parameter(override, OmegaConf.select(config, key)) for key, override in varied.items()}
    return {
        "project": config.logger.project,
        **_method(config, is_grid=all("values" in parameter for parameter in parameters.values())),
        "parameters": parameters,
        "command": ["mnist-train", "hydra.mode=RUN", *shared, DIRECTORY, "${args_no_hyphens}"],
    }


def _method(config: DictConfig, *, is_grid: bool) -> dict[str, Any]:
    """All combinations; of ranges, random points, as many as the search preset would try."""
    if is_grid:
        return {"method": "grid"}
    sweeper = config.hydra.sweeper
    metric = sweeper.get("metric", "val_accuracy")  # the test set selects nothing
    goal = "minimize" if metric.endswith("loss") else "maximize"
    return {
        "method": "random",
        "metric": {"name": CURVES[metric], "goal": goal},
        "run_cap": sweeper.get("n_trials", 30),  # number of runs after which the sweep and its agents end
    }


def _parameter(override: Override, default: Any) -> dict[str, Any]:
    """W&B's words for the values of an override.

    Args:
        default: of its key: a range of whole numbers for a key that has one is a range of whole numbers.
    """
    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if isinstance(default, int) and float(low).is_integer() and float(high).is_integer():
            return {"distribution": "int_uniform", "min": int(low), "max": int(high)}
        kind = "log_uniform_values" if "log" in value.tags else "uniform"
        return {"distribution": kind, "min": low, "max": high}
    if not isinstance(value, ChoiceSweep | RangeSweep):
        raise UsageError(f"{override.input_line}: W&B has only values and ranges; type values with commas between them")
    return {"values": [_number_or_text(text) for text in override.sweep_string_iterator()]}


def _number_or_text(text: str) -> int | float | str:
    """A number; anything else as text, because an agent passes lists, null and true on as Python writes them."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


if __name__ == "__main__":
    main()
