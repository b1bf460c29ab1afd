"""Audit reports: train what their claims files describe, and say which claims are reproduced.

    mnist-audit examples/claims/made_up.yaml --seeds 3
    mnist-audit claims --seeds 0

Complete runs are kept: the same command finishes an interrupted audit, and a larger --seeds adds runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mnist_exp.audit import audit_reports
from mnist_exp.cli.arguments import ArgumentParser
from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.errors import RunFailed, UsageError, printable
from mnist_exp.reports.audit import words
from mnist_exp.reports.audit.document import Audit, write

OUTPUT = Path("outputs/audit")


def main(arguments: Sequence[str] | None = None) -> None:
    """``mnist-audit``: exit status 2 for a user's mistake, 1 if a run failed, 130 or 143 when stopped."""
    options = _read(arguments)
    with exit_status("mnist-audit"):
        results = options.output / "results.csv"
        flags = {"--output": options.output, "--config-dir": options.config_dir}
        again = [word for flag, value in flags.items() if value not in {None, OUTPUT} for word in (flag, str(value))]
        audit, failed = audit_reports(options.claims, options.seeds, results, options.overrides, options.config_dir)
        audit = replace(audit, options=[*options.overrides, *again])
        try:
            files = write(audit, options.output)
        except OSError as error:
            raise UsageError(f"--output {options.output} cannot be written: {error.strerror or error}") from error
        with printing():
            _print(audit, [*files, results])
        if failed:
            raise RunFailed(f"not all runs completed: {', '.join(failed)}; the same command trains them again")


def _read(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="mnist-audit",
        example="mnist-audit FILE",
        description="Train what claims files describe, and say which claims of the reports are reproduced.",
    )
    parser.add_argument("claims", nargs="+", metavar="FILE", help="claims files, or folders of them (docs/audits.md)")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="how and where runs are trained, as for mnist-train -m: a launcher, data.root",
    )
    parser.add_argument(
        "--seeds", type=int, default=10, help="runs of each network, with seeds from 0; default: 10; 0: train nothing"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=OUTPUT,
        help="folder; default: outputs/audit. Runs in its results.csv are not trained again",
    )
    parser.add_argument(
        "--config-dir", type=Path, metavar="FOLDER", help="your own configuration files, as for mnist-train"
    )
    options = parser.parse(arguments)
    given = [*options.claims, *options.overrides]
    options.overrides = [word for word in given if "=" in word and not Path(word).exists()]
    options.claims = [Path(word) for word in given if word not in options.overrides]
    if not options.claims:
        parser.error("the following arguments are required: FILE")
    if options.seeds < 0:
        parser.error(f"--seeds {options.seeds} should be 0 or more")
    return options


def _print(audit: Audit, files: Sequence[Path]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from mnist_exp.terminal import Terminal

    table = Table(title="Claims: mean ± standard deviation of single runs", box=None, pad_edge=False)
    for title in ("claim", "verdict", "claimed", "measured", "n"):
        table.add_column(title, overflow="fold")
    for audited in audit.networks:
        table.add_row(f"[bold]{escape(printable(audited.label))}[/bold]")
        for line in words.lines(audited):
            claim, *cells = (escape(printable(text)) for text in line.cells)
            table.add_row(f" {claim}", *cells[:3], cells[4])
    Terminal(soft_wrap=False).print(table)
    for text in _sentences(audit):
        print(printable(text))
    print("written:", ", ".join(map(str, files)))


def _sentences(audit: Audit) -> Iterator[str]:
    for audited in audit.networks:
        for line in words.lines(audited):
            if line.sentence:
                yield f"{audited.label}, {line.claim}: {line.sentence}"
    yield from (f"More seeds: {command}" for command in audit.more_seeds)
    yield from (f"Not counted: {problem}" for problem in audit.problems)
    yield f"{audit.headline}."


if __name__ == "__main__":
    main()
