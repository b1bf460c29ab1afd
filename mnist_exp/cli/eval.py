"""Evaluate a trained network. Only its run directory is needed.

mnist-eval outputs/2026-11-21/lenet5-a1b2c3
mnist-eval outputs/2026-11-21/lenet5-a1b2c3 data=fashion_mnist
mnist-eval outputs/2026-11-21/lenet5-a1b2c3 data.swap_splits=true    # on its training images
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mnist_exp.cli.arguments import ArgumentParser, add_trust
from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.errors import UsageError, report
from mnist_exp.evaluate import evaluate_run, print_result, write_result
from mnist_exp.runs import RunDirectoryError


def main(arguments: Sequence[str] | None = None) -> None:
    """``mnist-eval``: exit status 2 for a user's mistake."""
    options = _read(arguments)
    with exit_status("mnist-eval"):
        result, picture = evaluate_run(options.directory, options.overrides, options.trust)
        output = options.output or options.directory
        files: list[Path] = []
        mistake: UsageError | None = None
        try:
            files = write_result(result, picture, output)
        except UsageError as error:
            mistake = error
        except OSError as error:
            mistake = UsageError(f"{output}: the result is not written there: {error.strerror or error}")
        with printing():
            if options.json:
                print(json.dumps(result, indent=2))
            else:
                print_result(result)
            if mistake is None:
                print("written:", ", ".join(map(str, files)), file=sys.stderr if options.json else sys.stdout)
        if mistake is None:
            return
        if options.output or isinstance(mistake, RunDirectoryError):
            raise mistake
        report(mistake, "mnist-eval")  # no error, because another user's run directory is often read-only


def _read(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="mnist-eval",
        example="mnist-eval DIR",
        description="Evaluate a trained network from its run directory alone.",
    )
    parser.add_argument("directory", metavar="DIR", help="run directory")
    parser.add_argument(
        "overrides", nargs="*", default=[], help="other data, as for mnist-train: data=mnist5k data.root=FOLDER"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    add_trust(parser)
    parser.add_argument(
        "--output", type=Path, help="folder for evaluation.json and worst_digits.png; default: the run directory"
    )
    options = parser.parse(arguments)
    # The directory may be after the overrides.
    words = [options.directory, *options.overrides]
    directories = [word for word in words if not _is_override(word)]
    if not directories:
        parser.error("the following arguments are required: DIR")
    options.directory, options.overrides = Path(directories[0]), [word for word in words if word != directories[0]]
    return options


def _is_override(word: str) -> bool:
    return word.lstrip("+~").startswith(("data=", "data.")) and not os.path.isdir(word)


if __name__ == "__main__":
    main()
