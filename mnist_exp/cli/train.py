"""Train one network, or a sweep of them.

    mnist-train model=mlp regularization=dropout seed=3
    mnist-train resume=outputs/2026-11-21/lenet5-a1b2c3

Imports move inwards where they take long: a mistyped key needs Hydra only, a value out of range no torch.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mnist_exp.commandline import folders_of, read_arguments, run_hydra, with_paths_quoted
from mnist_exp.compose import help_text
from mnist_exp.explain import exit_status

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """``mnist-train``: exit status 2 for a user's mistake, 1 for a failed run, 130 or 143 when stopped."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(), end="")
        return
    options = read_arguments(sys.argv[1:])
    with exit_status(folders_of(options)):
        if any(word.lstrip("+").startswith("sweep.resume=") for word in options.overrides):
            from mnist_exp.sweeps.resuming import arguments_to_finish

            sys.argv[1:] = arguments_to_finish(sys.argv[1:])
        sys.argv[1:] = with_paths_quoted(sys.argv[1:])  # which the sweep directory keeps
        run_hydra(_task, read_arguments(sys.argv[1:]))


def _task(composed: DictConfig) -> float | None:
    from mnist_exp.task import start_run

    return start_run(composed, sys.argv[1:])


if __name__ == "__main__":
    main()
