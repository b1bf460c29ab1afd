"""Train one network, or a sweep of them.

    mnist-train model=mlp regularization=dropout seed=3
    mnist-train resume=outputs/2026-11-21/lenet5-a1b2c3

Slow imports are inside functions, so that a mistake is reported quickly.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.cli.train_arguments import read_arguments, topics_of
from mnist_exp.commandline import folders_of, only_prints, run_hydra, with_paths_quoted
from mnist_exp.help import help_text

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """``mnist-train``: exit status 2 for a user's mistake, 1 for a failed run, 130 or 143 when stopped."""
    options = read_arguments(sys.argv[1:])
    with exit_status("mnist-train", folders_of(options)):
        if options.help:
            with printing():
                print(help_text(topics_of(sys.argv[1:], options), folders_of(options)), end="")
            return
        if any(word.lstrip("+").startswith("sweep.resume=") for word in options.overrides):
            from mnist_exp.sweeps.resuming import arguments_to_finish

            sys.argv[1:] = arguments_to_finish(sys.argv[1:], options)
        sys.argv[1:] = with_paths_quoted(sys.argv[1:])  # in place, because a sweep stores sys.argv
        options = read_arguments(sys.argv[1:])
        with printing() if only_prints(options) else nullcontext():
            run_hydra(_task, options)


def _task(composed: DictConfig) -> float | None:
    from mnist_exp.task import start_run

    return start_run(composed, sys.argv[1:])


if __name__ == "__main__":
    main()
