"""Compare runs: tables, statistics and figures in one HTML file, in Markdown and in CSV.

    mnist-report outputs/sweeps/mlp_width outputs/2026-11-21/lenet5-a1b2c3
    mnist-report 'outputs/**/lenet5-*' --baseline lenet5 --output comparison
    mnist-report outputs/sweeps/mlp_width --serve

It reads run directories only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mnist_exp.cli.arguments import ArgumentParser
from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.errors import UsageError
from mnist_exp.errors import report as report_error
from mnist_exp.reports import wandb_report
from mnist_exp.reports.build import build, write
from mnist_exp.reports.collect import compare, paths_of
from mnist_exp.reports.summary import print_summary

OUTPUT, PORT = Path("outputs/report"), 8001


def main(arguments: Sequence[str] | None = None) -> None:
    """``mnist-report``: exit status 2 without a run."""
    options = _read(arguments)
    with exit_status("mnist-report"):
        if options.wandb_sync:
            return _sync(options)
        if options.serve:
            return _serve(options)
        report = build(compare(paths_of(options.directories), options.baseline))
        others = {}
        if options.wandb_dry_run:
            others["wandb_report.json"] = json.dumps(wandb_report.specification(report), indent=2) + "\n"
        try:
            files = write(report, options.output, others)
        except OSError as error:
            raise UsageError(f"--output {options.output} cannot be written: {error.strerror or error}") from error
        address = None
        if options.wandb and not options.wandb_dry_run:
            address = wandb_report.publish(report, options.wandb_project)
        try:
            with printing():
                print_summary(report, files)
                if address:
                    print(f"W&B report: {address}")
        except UsageError as error:
            raise UsageError(f"written: {', '.join(map(str, files))}; {error}") from error
    return None


def _read(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="mnist-report", example="mnist-report DIR", description="Compare runs from their directories."
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="run directories, folders of them, or patterns")
    parser.add_argument(
        "--baseline",
        metavar="ARM",
        help="compare the others with it: its label, its name or settings (lr=0.01,model=lenet5); "
        "default: the sweep's first job, without a sweep the arm nearest to the default settings",
    )
    parser.add_argument("--output", type=Path, help=f"folder; default: {OUTPUT}")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--serve", action="store_true", help="write no report: show it on this machine and follow runs that go on"
    )
    group.add_argument("--wandb", action="store_true", help="also build a report on Weights & Biases, beside the runs")
    group.add_argument(
        "--wandb-sync",
        action="store_true",
        help="write no report: upload these runs to Weights & Biases if they are missing there; exit status 1 if one remains",
    )
    parser.add_argument(
        "--wandb-project",
        metavar="[ENTITY/]PROJECT",
        help="project for reports and runs; default: mnist-exp of the account",
    )
    parser.add_argument(
        "--wandb-dry-run",
        action="store_true",
        help="write the report of --wandb to wandb_report.json, and send nothing",
    )
    parser.add_argument(
        "--wandb-files", action="store_true", help="with --wandb-sync: also files of runs with logger.upload_files=true"
    )
    parser.add_argument("--port", type=int, help=f"of --serve; default: {PORT}; 0: any free one")
    options = parser.parse(arguments)
    if useless := _without_effect(options):
        parser.error(useless)
    options.output = options.output or OUTPUT
    return options


# The options that only some of the commands use: a report (no flag), and those with the flags named here.
USED_BY = {
    "--output": ("", "--wandb", "--wandb-dry-run"),
    "--baseline": ("", "--serve", "--wandb", "--wandb-dry-run"),
    "--wandb-dry-run": ("--wandb", "--wandb-dry-run"),
    "--wandb-project": ("--wandb-sync", "--wandb-dry-run", "--wandb"),
    "--wandb-files": ("--wandb-sync",),
    "--port": ("--serve",),
}


def _without_effect(options: argparse.Namespace) -> str | None:
    """What to say of an option that would be ignored; None if there is none."""

    def given(flag: str) -> bool:
        value = getattr(options, flag[2:].replace("-", "_"))
        return value is not None and value is not False

    command = next((flag for flag in ("--serve", "--wandb-sync", "--wandb", "--wandb-dry-run") if given(flag)), "")
    for flag, commands in USED_BY.items():
        if given(flag) and command not in commands:
            if command:
                return f"{flag} has no effect with {command}; leave {flag} out"
            return f"{flag} has no effect without {commands[-1]}; add {commands[-1]}, or leave {flag} out"
    return None


def _serve(options: argparse.Namespace) -> None:
    from mnist_exp.reports.live import LiveReport, ReportServer

    live = LiveReport(options.directories, options.baseline)
    with ReportServer(live, PORT if options.port is None else options.port) as server:
        with printing():
            print(f"report at {server.url} (Ctrl+C ends it)")
            if live.waiting:
                print(live.waiting)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _sync(options: argparse.Namespace) -> None:
    from mnist_exp.loggers.wandb_service import end_service
    from mnist_exp.loggers.wandb_sync import ServerGone, sync

    try:
        left = sync(paths_of(options.directories), options.wandb_project, files=options.wandb_files)
    except ServerGone as error:
        report_error(error, "mnist-report")
        end_service()
        sys.exit(1)
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
