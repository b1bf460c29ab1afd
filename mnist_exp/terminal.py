"""Lines for the terminal. Standard output may be closed early, as in ``mnist-train | head -3``: the work continues."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.text import Text

from mnist_exp.errors import printable


class Terminal(Console):
    """Rich's console without colours for numbers and paths. A closed pipe does not end the program."""

    def __init__(self, *, soft_wrap: bool = True) -> None:
        super().__init__(highlight=False, soft_wrap=soft_wrap)

    def on_broken_pipe(self) -> None:
        """Print nothing more."""
        self.quiet = True
        discard_output()


def plain(line: str) -> Text:
    """The line without markup and escape sequences."""
    return Text(printable(line))


def say(line: str) -> None:
    """Print a line."""
    Terminal().print(plain(line))


def discard_output() -> None:
    """Discard all further output; otherwise Python raises an error when it flushes the rest at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
