"""Upload what Weights & Biases has not got: runs that were offline, and runs that lost the server on the way.

python scripts/sync_wandb.py                            all runs in outputs/
python scripts/sync_wandb.py outputs/sweeps/mlp_width   a sweep, a run, or any folder of them

Prints a line for each run. Each arrives under the id, group and project it was recorded with, and is marked
(run-ID.wandb.synced), so that the same command again goes on with the rest. Exit status 1 if something is left.

A run directory may be somebody else's, so what it says is sent only where you send your runs anyway: to project mnist-exp
of your account, or where WANDB_PROJECT, WANDB_ENTITY, --project and --entity say. Files of the run are sent only with --files.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import wandb

from mnist_exp.errors import UsageError, report
from mnist_exp.loggers.wandb_file import records
from mnist_exp.loggers.wandb_private import staging_folder
from mnist_exp.loggers.wandb_service import end_service, start_service
from mnist_exp.runs import RunDirectoryError, find_runs
from mnist_exp.runs.directory import is_locked
from mnist_exp.runs.files import refuse_links_for_wandb

# Two ways in which a process that was killed leaves its file: without a record, this many bytes long; or in the middle of one.
BEGUN = 7
PROJECT = "mnist-exp"  # as in conf/logger/wandb.yaml
# Kinds of records that name no file and no destination.
HARMLESS = {
    *("header", "footer", "environment", "telemetry", "stats", "metric", "summary", "history", "exit", "config"),
    *("output", "output_raw", "final"),
}
CUT_OFF = "the file ends with an incomplete record"


class ServerGone(Exception):
    """W&B does not answer. One line."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=[Path("outputs")], help="default: outputs")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that one run may take (300)")
    parser.add_argument("--project", default=os.environ.get("WANDB_PROJECT") or PROJECT, help="whose runs are uploaded")
    parser.add_argument(
        "--entity", default=os.environ.get("WANDB_ENTITY"), help="whose runs are uploaded, beside yours"
    )
    parser.add_argument("--files", action="store_true", help="also files that runs were told to upload")
    options = parser.parse_args(arguments)
    try:
        runs: dict[Path, Path] = {}
        for path in options.paths:
            for run in find_runs(path):
                runs.setdefault(run.resolve(), run)  # a run and its sweep may both be named
        found: dict[Path, list[Path]] = {}
        refused = 0
        for run in runs.values():
            try:
                files = not_uploaded(run)
                for file in files:
                    check_records(file, options.project, options.entity, files=options.files)
            except (ValueError, RunDirectoryError) as error:
                print(f"{run}: failed: {error}", flush=True)
                refused += 1
                continue
            if files:
                found[run] = files
        left = refused + (upload_all(found, options.timeout) if found or not refused else 0)
    except UsageError as error:
        report(error, "sync_wandb.py")
        sys.exit(2)
    except ServerGone as error:
        report(error, "sync_wandb.py")
        end_service()
        sys.exit(1)
    sys.exit(1 if left else 0)


def not_uploaded(run: Path) -> list[Path]:
    """The W&B files of a run that are not marked, oldest first.

    Raises:
        RunDirectoryError: links or settings lie there that W&B would follow.
    """
    refuse_links_for_wandb(run)
    files = [file for file in run.glob("wandb/*run-*/run-*.wandb") if file.stat().st_size > BEGUN]
    files = [file for file in files if not marker(file).exists()]
    return sorted(files, key=lambda file: file.parent.name.removeprefix("offline-"))


def check_records(file: Path, project: str, entity: str | None, *, files: bool) -> None:
    """Check what a W&B file asks for, which ``wandb sync`` does.

    Args:
        project, entity: where runs may be sent; the account's own entity is always allowed.
        files: whether files of the run may be sent.

    Raises:
        ValueError: it asks for more than curves, the media beside them, and where the user sends runs.
    """
    try:
        for record in records(file.read_bytes()):
            kind = record.WhichOneof("record_type")
            if kind in {"run", "artifact"}:
                what = getattr(record, kind)
                if what.project != project or what.entity not in {"", entity}:
                    also = f" --entity {shlex.quote(what.entity)}" if what.entity else ""
                    raise ValueError(
                        f"it is recorded for project {what.project!r}{f' of {what.entity!r}' if what.entity else ''}; if "
                        f"you want it there, type --project {shlex.quote(what.project)}{also}"
                    )
            if kind == "artifact":
                if not files:
                    raise ValueError("files of the run are to be uploaded, too; if you want that, type --files")
                if record.artifact.manifest.manifest_file_path:
                    raise ValueError("the list of the files that it asks for lies elsewhere")
                for entry in record.artifact.manifest.contents:
                    if not entry.local_path or not is_copy(Path(entry.local_path)):
                        raise ValueError(f"it asks for the file {entry.local_path!r}, which is no copy that W&B made")
            elif kind == "files":
                for item in record.files.files:
                    path = PurePosixPath(item.path)
                    if path.is_absolute() or ".." in path.parts:
                        raise ValueError(f"it asks for the file {item.path!r}, which is not beside it")
            elif kind not in {"run", *HARMLESS}:
                raise ValueError(f"it asks for what no run of this project asks for: {kind}")
    except ValueError as error:
        raise ValueError(one_line(f"Failed to read {file}: {error}" if "no record" in str(error) else error)) from error


def is_copy(path: Path) -> bool:
    """Whether W&B has put this file aside to upload it."""
    return path.resolve().parent == staging_folder() and not path.is_symlink()


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
    # Its exit status does not tell; what it prints and marks does. It would obey settings in the folder for its own log.
    folder = tempfile.mkdtemp(prefix="sync-wandb-")
    process = subprocess.Popen(
        [sys.executable, "-m", "wandb", "sync", "--include-online", *(str(file.absolute()) for file in files)],
        cwd=folder,
        env={**os.environ, "WANDB_DIR": folder, "WANDB_MODE": "online"},
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
        shutil.rmtree(folder, ignore_errors=True)
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
