"""Train one network: compose, check, build, fit, record.

    mnist-train model=mlp regularization=dropout seed=3
    mnist-train resume=outputs/2026-11-21/lenet5-a1b2c3

Imports move inwards where they take long: a mistyped key needs Hydra only, a value out of range no torch.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.composition import CONF, PACKAGE, explain_composition, help_text, resolve
from mnist_exp.mistakes import RunFailed, UsageError, report

if TYPE_CHECKING:
    from mnist_exp.config import Config
    from mnist_exp.runs import RunDirectory


def main() -> None:
    """``mnist-train``: exit status 2 for a user's mistake, 1 for a failed run, 130 or 143 when stopped."""
    with exit_status():
        if {"--help", "-h"} & set(sys.argv[1:]):
            print(help_text(), end="")
            return
        os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands exceptions on instead of printing and leaving
        if directory := _resume_argument(sys.argv[1:]):
            resume_run(directory, [argument for argument in sys.argv[1:] if not argument.startswith("resume=")])
        else:
            if any(argument.startswith("sweep.resume=") for argument in sys.argv):
                from mnist_exp.sweeps.resuming import arguments_to_finish

                sys.argv[1:] = arguments_to_finish(sys.argv[1:])
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(start_run)()


@contextmanager
def exit_status() -> Iterator[None]:
    """Turn what is known to go wrong into one line and an exit status; the rest keeps its traceback."""
    try:
        yield
    except UsageError as error:
        report(error)
        sys.exit(2)
    except (HydraException, OmegaConfBaseException) as error:
        report(UsageError(explain_composition(error)))
        sys.exit(2)
    except RunFailed as error:
        report(error)
        sys.exit(1)


def start_run(composed: DictConfig) -> float | None:
    """Hydra's task: a new run in the directory that Hydra chose.

    Returns:
        validation accuracy of the result, the objective of a search; None without validation data.
    """
    from mnist_exp.config import check, config_hash
    from mnist_exp.runs import RunDirectory
    from mnist_exp.runs.provenance import provenance

    tree = resolve(composed)
    config = check(tree)
    del tree["sweep"]  # what a run computes does not depend on it
    job = HydraConfig.get()
    record = {
        "name": config.name,
        "seed": config.seed,
        "config_hash": config_hash(tree),
        "command": shlex.join(["mnist-train", *sys.argv[1:]]),
        "sweep": None,
        **provenance(PACKAGE),
    }
    path, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())  # as the user would type it
    with (
        exit_status(),  # Hydra would print a line of its own
        RunDirectory.create(path, tree=tree, overrides=overrides, record=record) as run,
    ):
        return train(run, config)


def resume_run(path: Path, overrides: Sequence[str] = ()) -> float | None:
    """Continue the run in ``path`` from its last checkpoint, or from the start where it has none yet.

    Args:
        overrides: of the logger, which is not taken over from the directory: see ``trust.logger_to_use``.
    """
    from hydra import compose, initialize_config_dir

    from mnist_exp.config import check
    from mnist_exp.runs import RunDirectory
    from mnist_exp.runs.directory import read_config, read_record
    from mnist_exp.trust import logger_to_use

    read_record(path)
    stored = read_config(path)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        present = resolve(compose("train", overrides=["name=resumed", *overrides]))["logger"]
    logger, lost = logger_to_use(stored.get("logger"), present, {override.partition("=")[0] for override in overrides})
    config = check({**stored, "logger": logger})
    with RunDirectory.reopen(path) as run:
        if lost:
            command = shlex.join(["mnist-train", f"resume={path}", *overrides, *lost])
            report(
                UsageError(f"where a run is sent is not taken over from {path}; if you want the same, type {command}")
            )
        run.tree["logger"] = logger
        return train(run, config)


def train(run: RunDirectory, config: Config) -> float | None:
    """Train what ``run`` describes; the first line of this program that needs torch."""
    from mnist_exp.signals import StopRequest

    with StopRequest() as stop:
        began = time.perf_counter()
        from mnist_exp.experiment import run_experiment

        return run_experiment(run, config, stop, import_seconds=time.perf_counter() - began)


def _resume_argument(arguments: list[str]) -> Path | None:
    """The directory in ``resume=DIR``.

    Raises:
        UsageError: something else was given besides; a run continues as it began.
    """
    values = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
    if not values or values[-1] in {"", "null"}:
        return None
    if others := [argument for argument in arguments if not argument.startswith(("resume=", "logger=", "logger."))]:
        raise UsageError(
            f"{others[0]} cannot go with resume: a run continues as it began; leave it out (only logger can be given)"
        )
    return Path(values[-1])


if __name__ == "__main__":
    main()
