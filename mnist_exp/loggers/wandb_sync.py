"""Upload what Weights & Biases has not got: runs that were offline, and runs that lost the server on the way.

Each run arrives under the id, group and project it was recorded with, and is marked (run-ID.wandb.synced), so that the same
again goes on with the rest.

A run directory may be somebody else's, so what it says is sent only where the user sends runs anyway, and files of the run only
if the user says so.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from mnist_exp.errors import UsageError
from mnist_exp.loggers.wandb_file import records
from mnist_exp.loggers.wandb_private import staging_folder
from mnist_exp.loggers.wandb_service import start_service
from mnist_exp.runs import RunDirectoryError
from mnist_exp.runs.files import refuse_links_for_wandb
from mnist_exp.runs.locking import is_locked
from mnist_exp.terminal import say

# Two ways in which a process that was killed leaves its file: without a record, this many bytes long; or in the middle of one.
BEGUN = 7
SECONDS_A_RUN = 300  # that one run may take
PROJECT = "mnist-exp"  # as in conf/logger/wandb.yaml
# Kinds of records that name no file and no destination.
HARMLESS = {
    *("header", "footer", "environment", "telemetry", "stats", "metric", "summary", "history", "exit", "config"),
    *("output", "output_raw", "final"),
}
CUT_OFF = "the file ends with an incomplete record"


class ServerGone(Exception):
    """W&B does not answer. One line."""


def sync(runs: Iterable[Path], place: str | None = None, *, files: bool = False) -> int:
    """Upload runs, with a line for each; returns how many could not be.

    Args:
        runs: run directories; one that is named twice counts once.
        place: PROJECT or ENTITY/PROJECT that runs may be sent to, beside those of the account itself. None: where WANDB_PROJECT
            and WANDB_ENTITY say, else mnist-exp.
        files: whether files that runs were told to upload may be sent.

    Raises:
        UsageError: no API key, or one that is refused.
        ServerGone: the server does not answer.
    """
    entity, _, project = (place or os.environ.get("WANDB_PROJECT") or PROJECT).rpartition("/")
    found: dict[Path, list[Path]] = {}
    refused = 0
    for run in _each_once(runs):
        try:
            left = not_uploaded(run)
            for file in left:
                check_records(file, project, entity or os.environ.get("WANDB_ENTITY"), files=files)
        except (ValueError, RunDirectoryError) as error:
            say(f"{run}: failed: {error}")
            refused += 1
        else:
            if left:
                found[run] = left
    if not found and not refused:
        say("nothing to upload")
    return refused + (_upload_all(found) if found else 0)


def _each_once(runs: Iterable[Path]) -> Iterable[Path]:
    found: dict[Path, Path] = {}
    for run in runs:
        found.setdefault(run.resolve(), run)  # a run and its sweep may both be named
    return found.values()


def not_uploaded(run: Path) -> list[Path]:
    """The W&B files of a run that are not marked, oldest first.

    Raises:
        RunDirectoryError: links or settings lie there that W&B would follow.
    """
    refuse_links_for_wandb(run)
    files = [file for file in run.glob("wandb/*run-*/run-*.wandb") if file.stat().st_size > BEGUN]
    files = [file for file in files if not _marker(file).exists()]
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
                    there = f"{what.entity}/{what.project}" if what.entity else what.project
                    raise ValueError(
                        f"it is recorded for project {what.project!r}{f' of {what.entity!r}' if what.entity else ''}; if "
                        f"you want it there, type --wandb-project {shlex.quote(there)}"
                    )
            if kind == "artifact":
                if not files:
                    raise ValueError("files of the run are to be uploaded, too; if you want that, type --wandb-files")
                if record.artifact.manifest.manifest_file_path:
                    raise ValueError("the list of the files that it asks for lies elsewhere")
                for entry in record.artifact.manifest.contents:
                    if not entry.local_path or not _is_copy(Path(entry.local_path)):
                        raise ValueError(f"it asks for the file {entry.local_path!r}, which is no copy that W&B made")
            elif kind == "files":
                for item in record.files.files:
                    path = PurePosixPath(item.path)
                    if path.is_absolute() or ".." in path.parts:
                        raise ValueError(f"it asks for the file {item.path!r}, which is not beside it")
            elif kind not in {"run", *HARMLESS}:
                raise ValueError(f"it asks for what no run of this project asks for: {kind}")
    except ValueError as error:
        raise ValueError(
            _one_line(f"Failed to read {file}: {error}" if "no record" in str(error) else error)
        ) from error


def _is_copy(path: Path) -> bool:
    """Whether W&B has put this file aside to upload it."""
    return path.resolve().parent == staging_folder() and not path.is_symlink()


def _marker(file: Path) -> Path:
    """W&B's own mark of a file that the server has."""
    return file.with_suffix(".wandb.synced")


def _upload_all(runs: Mapping[Path, list[Path]]) -> int:
    """Upload runs one after the other, each with its files; returns how many could not be."""
    _ask_server()
    left = 0
    for run, files in runs.items():
        if is_locked(run):
            say(f"{run}: still running, left for later")
            continue
        try:
            say(f"{run}: uploaded{_upload(run, files)}")
        except ValueError as error:
            left += 1
            say(f"{run}: failed: {error}")
            _ask_server()  # else the rest would wait for it one after the other
    return left


def _ask_server() -> None:
    """Raises what ``sync`` does; takes about 15 seconds at most."""
    import wandb

    patience = min(SECONDS_A_RUN, 15)
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
        raise UsageError(f"the API key cannot be used: {_one_line(error)}") from error


def _upload(run: Path, files: Sequence[Path]) -> str:
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
        output, _ = process.communicate(timeout=SECONDS_A_RUN)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"not done after {SECONDS_A_RUN} s") from error
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
            _marker(file).unlink(missing_ok=True)
        raise ValueError(_one_line(errors[0]))
    for file in files:
        if cut_off:
            _marker(file).touch()  # nothing more can come of it
        elif not _marker(file).exists():
            raise ValueError(f"{file} is not marked as uploaded")
    return ", without the last rows before its process was killed" if cut_off else ""


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
