"""Lines for the terminal. Standard output may be closed early, as in ``mnist-train | head -3``: the work continues."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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


_LIVE: list[Terminal] = []  # that shows a progress bar


@contextmanager
def live(terminal: Terminal) -> Iterator[None]:
    """Within it, ``current`` is ``terminal``, because lines of another one would be printed into its progress bar."""
    _LIVE.append(terminal)
    try:
        yield
    finally:
        _LIVE.remove(terminal)


def current() -> Terminal:
    """The terminal that shows a progress bar, or a new one."""
    return _LIVE[-1] if _LIVE else Terminal()


def plain(line: str) -> Text:
    """The line without markup and escape sequences."""
    return Text(printable(line))


def say(line: str) -> None:
    """Print a line."""
    current().print(plain(line))


def duration(seconds: float) -> str:
    """A number of seconds as text, in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def discard_output() -> None:
    """Discard all further output; otherwise Python raises an error when it flushes the rest at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
