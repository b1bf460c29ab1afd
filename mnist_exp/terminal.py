"""Standard output whose reader may leave, as in ``mnist-train | head -3``: the rest is not printed, and the work goes on."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.text import Text

from mnist_exp.errors import printable


class Terminal(Console):
    """Rich's console without its colours for numbers and paths, and without its end of the program for a closed pipe."""

    def __init__(self, *, soft_wrap: bool = True) -> None:
        super().__init__(highlight=False, soft_wrap=soft_wrap)

    def on_broken_pipe(self) -> None:
        """Print nothing more."""
        self.quiet = True
        discard_output()


def plain(line: str) -> Text:
    """A line as the terminal shows it, whatever it holds: no markup, no escape sequences."""
    return Text(printable(line))


def say(line: str) -> None:
    """Print a line."""
    Terminal().print(plain(line))


def discard_output() -> None:
    """Let all that is printed from now on go nowhere; else Python tries what is left once more as it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
