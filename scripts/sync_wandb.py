"""Upload what Weights & Biases has not got: runs that were offline, and runs that lost the server on the way.

python scripts/sync_wandb.py                            all runs in outputs/
python scripts/sync_wandb.py outputs/sweeps/mlp_width   a sweep, a run, or any folder of them

Prints a line for each run. Each arrives under the id, group and project it was recorded with, and is marked
(run-ID.wandb.synced), so that the same command again goes on with the rest. Exit status 1 if something is left.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import wandb

from mnist_exp.loggers.wandb_service import end_service, start_service
from mnist_exp.mistakes import UsageError, report
from mnist_exp.runs import find_runs
from mnist_exp.runs.directory import is_locked

# Two ways in which a process that was killed leaves its file: without a record, this many bytes long; or in the middle of one.
BEGUN = 7
CUT_OFF = "the file ends with an incomplete record"


class ServerGone(Exception):
    """W&B does not answer. One line."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=[Path("outputs")], help="default: outputs")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that one run may take (300)")
    options = parser.parse_args(arguments)
    try:
        runs: dict[Path, Path] = {}
        for path in options.paths:
            for run in find_runs(path):
                runs.setdefault(run.resolve(), run)  # a run and its sweep may both be named
        left = upload_all({run: files for run in runs.values() if (files := not_uploaded(run))}, options.timeout)
    except UsageError as error:
        report(error, "sync_wandb.py")
        sys.exit(2)
    except ServerGone as error:
        report(error, "sync_wandb.py")
        end_service()
        sys.exit(1)
    sys.exit(1 if left else 0)


def not_uploaded(run: Path) -> list[Path]:
    """The W&B files of a run that are not marked, oldest first."""
    files = [file for file in run.glob("wandb/*run-*/run-*.wandb") if file.stat().st_size > BEGUN]
    files = [file for file in files if not marker(file).exists()]
    return sorted(files, key=lambda file: file.parent.name.removeprefix("offline-"))


def marker(file: Path) -> Path:
    """W&B's own mark of a file that the server has."""
    return file.with_suffix(".wandb.synced")


def upload_all(runs: dict[Path, list[Path]], timeout: float) -> int:
    """Upload runs one after the other, each with its files; returns how many could not be.

    Raises:
        UsageError: no API key, or one that is refused.
        ServerGone: the server does not answer.
    """
    if not runs:
        print("nothing to upload")
        return 0
    ask_server(min(timeout, 15.0))
    left = 0
    for run, files in runs.items():
        if is_locked(run):
            print(f"{run}: still running, left for later")
            continue
        try:
            print(f"{run}: uploaded{upload(run, files, timeout)}", flush=True)
        except ValueError as error:
            left += 1
            print(f"{run}: failed: {error}", flush=True)
            ask_server(min(timeout, 15.0))  # else the rest would wait for it one after the other
    return left


def ask_server(patience: float) -> None:
    """Raises what ``upload_all`` does; takes about ``patience`` seconds at most."""
    settings = start_service()
    began = time.monotonic()
    try:
        # Asked for here, because wandb sync would ask the user.
        if not wandb.login(prompt=False, verify=False):
            raise UsageError("no API key is configured; type wandb login")
        began = time.monotonic()
        wandb.Api(timeout=patience)
    except wandb.errors.Error as error:
        if time.monotonic() - began >= patience:
            raise ServerGone(f"{settings.base_url} does not answer") from error
        raise UsageError(f"the API key cannot be used: {one_line(error)}") from error


def upload(run: Path, files: Iterable[Path], timeout: float) -> str:
    """Upload files of one run with ``wandb sync``; returns what else there is to say.

    Raises:
        ValueError: the server has not got all of it.
    """
    # Its exit status does not tell; what it prints and marks does.
    process = subprocess.Popen(
        [sys.executable, "-m", "wandb", "sync", "--include-online", *map(str, files)],
        env={**os.environ, "WANDB_DIR": str(run), "WANDB_MODE": "online"},  # its own log goes to the run's
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"not done after {timeout:g} s") from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # W&B's service, too
            process.wait()
        if process.stdout is not None:
            process.stdout.close()  # without reading to its end: what outlives its group may hold the other end open
    said = re.findall(r"^(?:wandb: )?(?:ERROR|Error:) (.*)", output, re.MULTILINE)
    errors = [line for line in said if CUT_OFF not in line]
    cut_off = len(said) > len(errors)
    if errors:
        for file in files:
            marker(file).unlink(missing_ok=True)
        raise ValueError(one_line(errors[0]))
    for file in files:
        if cut_off:
            marker(file).touch()  # nothing more can come of it
        elif not marker(file).exists():
            raise ValueError(f"{file} is not marked as uploaded")
    return ", without the last rows before its process was killed" if cut_off else ""


def one_line(error: object) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
