"""What stands on a command line: flags and the rest in any order; a mistake is one line and exit status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mnist_exp import __version__
from mnist_exp.errors import UsageError, flag_as_override, nearest, report, typed


class ArgumentParser(argparse.ArgumentParser):
    """Flags and the rest in any order; a mistake is one line on standard error and exit status 2.

    Args:
        prog: the command.
        example: a whole command line, named where something is missing.
    """

    def __init__(self, *, prog: str, example: str, **options: Any) -> None:
        # Hydra's parser, which mnist-train extends, has a --version of Hydra's.
        super().__init__(prog=prog, allow_abbrev=False, conflict_handler="resolve", **options)
        self._example = example
        self.add_argument("--version", action="version", version=f"mnist-exp {__version__}", help="print the version")

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The options of a command line.

        Raises:
            SystemExit: with 0 after ``--help``, with 2 for a mistake.
        """
        given = sys.argv[1:] if arguments is None else list(arguments)
        options, rest = self.parse_known_intermixed_args(given)
        if rest:
            self.error(self._explain_unknown(given, next((word for word in rest if word.startswith("-")), rest[0])))
        return options

    def error(self, message: str) -> NoReturn:
        """Print one line and leave."""
        if missing := message.partition("arguments are required: ")[2].split(", "):
            meant = {str(action.metavar or action.dest): action.help for action in self._actions}
            named = " and ".join(f"{name} ({meant[name]})" if meant.get(name) else name for name in missing if name)
            message = f"{named} is missing; type {self._example}" if named else message
        report(UsageError(message), self.prog)
        sys.exit(2)

    def options(self) -> list[str]:
        """The long names of all flags."""
        return [name for action in self._actions for name in action.option_strings if name.startswith("--")]

    def _explain_unknown(self, given: Sequence[str], flag: str) -> str:
        if not flag.startswith("-"):
            return f"{flag} is one argument too many; type {self._example}"
        near = nearest(flag.partition("=")[0], self.options()) or f"; {self.prog} --help lists them"
        if any(action.dest == "overrides" for action in self._actions) and "did you mean" not in near:
            near = f"; type {typed(*flag_as_override(given, flag, lambda word: '=' in word))}"
        return f"{flag} is not an option of {self.prog}{near}"


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The option of every command that reads a network from a run directory."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="run the code of this package where the run directory names it; may be repeated",
    )
