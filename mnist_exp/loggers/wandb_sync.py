"""Upload runs that Weights & Biases does not have: those that were offline, or that lost the server.

Each run keeps its id, group and project, and is marked when it is uploaded (run-ID.wandb.synced), so that the same command
continues with the rest.

A run directory may come from another person. It is sent only to a project to which the user sends runs anyway, and files
of the run only if the user asks for it.
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
from mnist_exp.loggers.wandb_again import is_incomplete, log_again
from mnist_exp.loggers.wandb_file import records
from mnist_exp.loggers.wandb_place import allowed_place
from mnist_exp.loggers.wandb_private import staging_folder
from mnist_exp.loggers.wandb_service import start_service
from mnist_exp.runs import RunDirectoryError
from mnist_exp.runs.files import refuse_links_for_wandb
from mnist_exp.runs.locking import is_locked
from mnist_exp.runs.reading import read_metrics, read_record
from mnist_exp.runs.record import WandbRun
from mnist_exp.terminal import say

# A process that was killed leaves a file without records, of this many bytes, or with an incomplete last record.
EMPTY_BYTES = 7
SECONDS_A_RUN = 300  # the longest time for one run
# Kinds of records without files and destinations.
HARMLESS = {
    *("header", "footer", "environment", "telemetry", "stats", "metric", "summary", "history", "exit", "config"),
    *("output", "output_raw", "final"),
}
CUT_OFF = "the file ends with an incomplete record"


class ServerGone(Exception):
    """The server does not answer. One line."""


def sync(runs: Iterable[Path], place: str | None = None, *, files: bool = False) -> int:
    """Upload runs and print a line for each.

    Args:
        runs: run directories; repetitions are ignored.
        place: PROJECT or ENTITY/PROJECT to which runs may be sent, besides the account's own entity. None: WANDB_PROJECT
            and WANDB_ENTITY, else mnist-exp.
        files: whether files of runs with ``logger.upload_files=true`` may be sent.

    Returns:
        the number of runs that could not be uploaded.

    Raises:
        UsageError: there is no API key, or it is refused.
        ServerGone: the server does not answer.
    """
    entity, project = allowed_place(place)
    found: dict[Path, list[Path]] = {}
    refused = 0
    for run in _each_once(runs):
        try:
            left = not_uploaded(run)
            for file in left:
                check_records(file, project, entity, files=files)
        except (ValueError, RunDirectoryError) as error:
            say(f"{run}: failed: {error}")
            refused += 1
        else:
            if left:
                found[run] = left
    if not found and not refused:
        say("nothing to upload")
    return refused + (_upload_all(found, project, entity, files=files) if found else 0)


def _each_once(runs: Iterable[Path]) -> Iterable[Path]:
    found: dict[Path, Path] = {}
    for run in runs:
        found.setdefault(run.resolve(), run)  # a run and its sweep may both be given
    return found.values()


def not_uploaded(run: Path) -> list[Path]:
    """The W&B files of a run that are not marked as uploaded, oldest first.

    Raises:
        RunDirectoryError: there are links or settings that W&B would follow.
    """
    refuse_links_for_wandb(run)
    files = [file for file in _files_of(run) if not _marker(file).exists()]
    return files if any(map(_has_records, files)) or (files and read_metrics(run)) else []


def _has_records(file: Path) -> bool:
    return file.stat().st_size > EMPTY_BYTES


def _files_of(run: Path) -> list[Path]:
    """All W&B files of a run, oldest first."""
    files = run.glob("wandb/*run-*/run-*.wandb")
    return sorted(files, key=lambda file: file.parent.name.removeprefix("offline-"))


def check_records(file: Path, project: str, entity: str | None, *, files: bool) -> None:
    """Check the records of a W&B file, because ``wandb sync`` obeys them.

    Args:
        project, entity: to which runs may be sent; the account's own entity is always allowed.
        files: whether files of the run may be sent.

    Raises:
        ValueError: it asks for another project, for files elsewhere, or for more than curves and media.
    """
    try:
        for record in records(file.read_bytes()):
            kind = record.WhichOneof("record_type")
            if kind in {"run", "artifact"}:
                target = getattr(record, kind)
                if target.project != project or target.entity not in {"", entity}:
                    raise ValueError(_of_another_place(target.project, target.entity))
            if kind == "artifact":
                if not files:
                    raise ValueError("files of the run are to be uploaded, too; if you want that, type --wandb-files")
                if record.artifact.manifest.manifest_file_path:
                    raise ValueError("the list of the files that it asks for is outside it")
                for entry in record.artifact.manifest.contents:
                    if not entry.local_path or not _is_copy(Path(entry.local_path)):
                        raise ValueError(
                            f"it asks for the file {entry.local_path!r}, which is not a copy that W&B made"
                        )
            elif kind == "files":
                for item in record.files.files:
                    path = PurePosixPath(item.path)
                    if path.is_absolute() or ".." in path.parts:
                        raise ValueError(f"it asks for the file {item.path!r}, which is not beside it")
            elif kind not in {"run", *HARMLESS}:
                raise ValueError(f"it has a record that no run of this project writes: {kind}")
    except ValueError as error:
        raise ValueError(
            _one_line(f"Failed to read {file}: {error}" if "no record" in str(error) else error)
        ) from error


def _is_copy(path: Path) -> bool:
    """Whether this is a file in the folder of W&B's copies, and not a link."""
    return path.resolve().parent == staging_folder() and not path.is_symlink()


def _marker(file: Path) -> Path:
    """The empty file with which W&B marks that the server has ``file``."""
    return file.with_suffix(".wandb.synced")


def _upload_all(runs: Mapping[Path, list[Path]], project: str, entity: str | None, *, files: bool) -> int:
    """Upload the W&B files of each run; return the number of runs that could not be uploaded."""
    _check_server()
    failed = 0
    for run, left in runs.items():
        if is_locked(run):
            say(f"{run}: still running, not uploaded")
            continue
        try:
            recorded = read_record(run).wandb
            if recorded and is_incomplete(run, _files_of(run)):
                _refuse_other_place(recorded, project, entity)
                log_again(run, project, entity, files=files)
                addition = ", with what W&B's files lack from metrics.jsonl"
            else:
                addition = _upload([file for file in left if _has_records(file)])
            for file in left:
                _marker(file).touch()
            say(f"{run}: uploaded{addition}")
        except (ValueError, RunDirectoryError) as error:
            failed += 1
            say(f"{run}: failed: {_one_line(error)}")
            _check_server()  # without an answer, each of the other runs would wait for it
    return failed


def _refuse_other_place(recorded: WandbRun, project: str, entity: str | None) -> None:
    """Check that the run is on W&B where runs may be sent, so that no new one is made elsewhere.

    Args:
        project, entity: to which runs may be sent, besides the account's own entity.

    Raises:
        ValueError: it is elsewhere.
    """
    import wandb

    elsewhere = recorded.entity not in {None, "", entity} and recorded.entity != wandb.Api().default_entity
    if recorded.project != project or elsewhere:
        raise ValueError(_of_another_place(recorded.project or "", recorded.entity or ""))


def _of_another_place(project: str, entity: str) -> str:
    typed = shlex.quote(f"{entity}/{project}" if entity else project)
    owner = f" of {entity!r}" if entity else ""
    return f"it is recorded for project {project!r}{owner}; if you want it there, type --wandb-project {typed}"


def _check_server() -> None:
    """Check the API key and that the server answers, in about 15 seconds at most.

    Raises:
        UsageError, ServerGone: see ``sync``.
    """
    import wandb

    patience = min(SECONDS_A_RUN, 15)
    settings = start_service()
    began = time.monotonic()
    try:
        # Checked here, because wandb sync would ask the user.
        if not wandb.login(prompt=False, verify=False):
            raise UsageError("no API key is configured; type wandb login")
        began = time.monotonic()
        wandb.Api(timeout=patience)
    except wandb.errors.Error as error:
        if time.monotonic() - began >= patience:
            raise ServerGone(f"{settings.base_url} does not answer") from error
        raise UsageError(f"the API key cannot be used: {_one_line(error)}") from error


def _upload(files: Sequence[Path]) -> str:
    """Upload the files of one run with ``wandb sync``; return an addition to the message, or an empty string.

    Raises:
        ValueError: the upload is not complete.
    """
    if not files:
        return ""
    # The exit status of wandb sync is 0 even after errors, so its output and its marks are checked. It runs in a new folder
    # because it would read settings from the working directory.
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
            os.killpg(process.pid, signal.SIGKILL)  # with W&B's service
            process.wait()
        if process.stdout is not None:
            process.stdout.close()  # not read to its end, because a surviving process may keep it open
    printed = re.findall(r"^(?:wandb: )?(?:ERROR|Error:) (.*)", output, re.MULTILINE)
    errors = [line for line in printed if CUT_OFF not in line]
    cut_off = len(printed) > len(errors)
    if errors:
        for file in files:
            _marker(file).unlink(missing_ok=True)
        raise ValueError(_one_line(errors[0]))
    for file in files:
        if cut_off:
            _marker(file).touch()  # the rest of the file is lost
        elif not _marker(file).exists():
            raise ValueError(f"{file} is not marked as uploaded")
    return ", without the last rows before its process was killed" if cut_off else ""


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
