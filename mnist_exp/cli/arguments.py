"""The parser of command lines."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mnist_exp import __version__
from mnist_exp.errors import UsageError, flag_as_override, is_unicode, nearest, report, typed


class ArgumentParser(argparse.ArgumentParser):
    """Allows flags and arguments in any order. A mistake is one line on standard error and exit status 2.

    Args:
        prog: name of the command.
        example: a command line, shown if an argument is missing.
    """

    def __init__(self, *, prog: str, example: str, **options: Any) -> None:
        # "resolve" replaces the --version of Hydra's parser, which mnist-train extends.
        super().__init__(prog=prog, allow_abbrev=False, conflict_handler="resolve", **options)
        self._example = example
        self.add_argument("--version", action="version", version=f"mnist-exp {__version__}", help="print the version")

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse a command line.

        Args:
            arguments: None: those of the process.

        Raises:
            SystemExit: status 0 after ``--help``, 2 for a mistake.
        """
        given = sys.argv[1:] if arguments is None else list(arguments)
        self._refuse_undecodable(given)
        options, rest = self.parse_known_intermixed_args(given)
        if rest:
            self.error(self._explain_unknown(given, next((word for word in rest if word.startswith("-")), rest[0])))
        return options

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        if missing := message.partition("arguments are required: ")[2]:
            help_of = {str(action.metavar or action.dest): action.help for action in self._actions}
            names = (f"{name} ({help_of[name]})" if help_of.get(name) else name for name in missing.split(", "))
            message = f"{' and '.join(names)} is missing; type {self._example}"
        report(UsageError(message), self.prog)
        sys.exit(2)

    def _refuse_undecodable(self, given: Sequence[str]) -> None:
        """Refuse names with bytes that are no text, because no record could name them."""
        try:
            here = os.getcwd()
        except OSError:
            self.error("the working directory has been deleted; go to another one")
        for what in (*given, here):
            if not is_unicode(what):
                which = "the working directory " if what is here else ""
                self.error(f"{which}{what} is no text in {sys.getfilesystemencoding().upper()}; rename it")

    def options(self) -> list[str]:
        """The long names of all options."""
        return [name for action in self._actions for name in action.option_strings if name.startswith("--")]

    def _explain_unknown(self, given: Sequence[str], flag: str) -> str:
        if not flag.startswith("-"):
            return f"{flag} is one argument too many; type {self._example}"
        near = nearest(flag.partition("=")[0], self.options()) or f"; {self.prog} --help lists them"
        if any(action.dest == "overrides" for action in self._actions) and "did you mean" not in near:
            near = f"; type {typed(*flag_as_override(given, flag, lambda word: '=' in word))}"
        return f"{flag} is not an option of {self.prog}{near}"


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust``, for commands that read a network from a run directory."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="run code of this package if the run directory names it; may be repeated",
    )
