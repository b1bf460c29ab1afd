"""The exit status of a command of this package that is called in this process."""

from __future__ import annotations

from collections.abc import Callable


def status_of(main: Callable[[list[str]], None], *arguments: str) -> int:
    """The exit status of a command with these arguments."""
    try:
        main(list(arguments))
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0
