"""One run's directory: its layout, its lock, its status and its metrics.

These files are the truth about a run. Evaluation, resuming and reports take the directory and nothing else.

    config.yaml      resolved        overrides.yaml   as typed      .hydra/   as Hydra writes it
    run.json         status (waiting running completed failed diverged interrupted pruned), error, config hash,
                     provenance, seconds, final and best metrics
    metrics.jsonl    one line an epoch
    checkpoints/     last.pt, best.pt
    predictions.npz  logits (N, 10) and labels (N,) of the final model on the test set; worst (K,) and worst_images
                     (K, S, S): the images whose label got the least probability
    train.log
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from mnist_exp.mistakes import UsageError, typed

LOG = logging.getLogger("mnist_exp")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where it is there, is ten times as fast


class RunDirectoryError(UsageError):
    """The directory cannot be used as asked."""


class RunDirectory:
    """Holds the lock of one run directory and writes into it. Use as a context manager.

    Attributes:
        path: the directory.
        record: the content of ``run.json``.
        tree: the resolved configuration, as ``config.yaml`` holds it.
    """

    def __init__(self, path: Path, lock: FileLock, record: dict[str, Any], tree: dict[str, Any]) -> None:
        self.path = path
        self.record = record
        self.tree = tree
        self._lock = lock
        self._log = logging.FileHandler(path / "train.log", encoding="utf-8")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOG.addHandler(self._log)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        tree: Mapping[str, Any],
        overrides: Sequence[str],
        record: Mapping[str, Any],
        status: Literal["running", "waiting"] = "running",
    ) -> RunDirectory:
        """Start a new run; or, waiting, write down all there is to it and let ``reopen`` start it.

        Hydra may have put ``.hydra/`` there already.

        Raises:
            RunDirectoryError: another process trains there, or the directory holds a run or somebody's files.
        """
        refuse_unless_free(path)
        path.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path)
        try:
            _refuse_run(path)  # somebody may have been faster between the look and the lock
        except RunDirectoryError:
            lock.release()
            raise
        run = cls(path, lock, {"status": status, "started": _now(), **record}, dict(tree))
        write_atomically(path / "config.yaml", yaml.safe_dump(run.tree, sort_keys=False).encode())
        write_atomically(path / "overrides.yaml", yaml.safe_dump(list(overrides)).encode())
        (path / "checkpoints").mkdir(exist_ok=True)
        run.update()
        return run

    @classmethod
    def reopen(cls, path: Path) -> RunDirectory:
        """Continue a run that was interrupted, killed, or failed; or start one that waits.

        Raises:
            RunDirectoryError: no run of ours, complete, diverged, or another process trains there.
        """
        read_record(path)
        lock = _acquire(path)
        record = read_record(path)  # as whoever held the lock until now left it
        status = record["status"]
        if status in {"completed", "diverged"}:
            lock.release()
            advice = (
                f"mnist-eval {shlex.quote(str(path))} evaluates it"
                if status == "completed"
                else "a new run needs other settings"
            )
            raise RunDirectoryError(f"{path} holds a {status} run; there is nothing to resume, {advice}")
        run = cls(path, lock, record, read_config(path))
        if status == "waiting":
            run.update(status="running", started=_now())
        else:
            run.update(status="running", error=None, resumed=[*record.get("resumed", []), _now()])
        return run

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.record["status"] == "running":  # nobody said how it ended
            self.end("interrupted" if kind is KeyboardInterrupt else "failed", error)
        LOG.removeHandler(self._log)
        self._log.close()
        self._lock.release()

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def best_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    def update(self, **fields: Any) -> None:
        """Change fields of ``run.json``."""
        self.record.update(fields)
        write_atomically(self.path / "run.json", json.dumps(self.record, indent=2).encode() + b"\n")

    def end(self, status: str, error: BaseException | None = None, **fields: Any) -> None:
        """Record how the run ended; the traceback of an unexpected failure goes to ``train.log``."""
        if status == "failed" and error is not None:
            record = LOG.makeRecord(LOG.name, logging.ERROR, __file__, 0, "%s: %s", (type(error).__name__, error), None)
            record.exc_info = (type(error), error, error.__traceback__)
            self._log.handle(record)  # to the file alone: the console gets one line from the command
        message = None if error is None else f"{type(error).__name__}: {error}"
        self.update(status=status, error=message, ended=_now(), **fields)

    def append_metrics(self, row: Mapping[str, float | int]) -> None:
        """Add one epoch's line to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep_metrics(self, epochs: int) -> list[dict[str, float | int]]:
        """Drop what was written after ``epochs`` epochs, half a line included, and return the rest.

        A process can die between a line and the checkpoint that belongs to it; that epoch is trained again.
        """
        rows = [row for row in read_metrics(self.path) if row["epoch"] <= epochs]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.path / "metrics.jsonl", text.encode())
        return rows


def read_record(path: Path) -> dict[str, Any]:
    """``run.json`` of a run directory.

    Raises:
        RunDirectoryError: it is missing or is not one of ours.
    """
    if not path.is_dir():
        raise RunDirectoryError(f"{path} is not a directory")
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{path} is not a run directory: it has no run.json") from error
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path / 'run.json'} cannot be read: {error}") from error
    if not isinstance(record, dict) or "status" not in record or "config_hash" not in record:
        raise RunDirectoryError(f"{path} holds a run of another project: run.json has no status and config_hash")
    return record


def read_config(path: Path) -> dict[str, Any]:
    """``config.yaml`` of a run directory, as plain data.

    Raises:
        RunDirectoryError: it is missing or damaged.
    """
    try:
        tree = yaml.load((path / "config.yaml").read_text(encoding="utf-8"), LOADER)
    except (OSError, yaml.YAMLError) as error:
        raise RunDirectoryError(f"{path / 'config.yaml'} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise RunDirectoryError(f"{path / 'config.yaml'} holds no configuration")
    return tree


def read_metrics(path: Path) -> list[dict[str, float | int]]:
    """The whole lines of ``metrics.jsonl``; a last line that is not whole yet is left out.

    Raises:
        RunDirectoryError: a line before the last is no metrics line.
    """
    file = path / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["epoch"]
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise RunDirectoryError(f"{file}, line {number}: not a metrics line") from error
        rows.append(row)
    return rows


def is_locked(path: Path) -> bool:
    """Whether a living process trains in this directory."""
    if not (path / ".lock").exists():
        return False
    lock = FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def refuse_unless_free(path: Path) -> None:
    """Check that a new run may start in ``path``.

    Raises:
        RunDirectoryError: it holds a run, or files that are not ours.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise RunDirectoryError(f"{path} is a file; a run needs a directory of its own")
    if (path / "run.json").exists():
        if is_locked(path):
            raise RunDirectoryError(f"{path} is in use by another process")
        _refuse_run(path)
        return
    ours = {".hydra", ".lock", *_logs_written_in(path)}
    if foreign := sorted(item.name for item in path.iterdir() if item.name not in ours):
        raise RunDirectoryError(f"{path} holds no run but other files ({foreign[0]}); choose another hydra.run.dir")


def _logs_written_in(path: Path) -> set[str]:
    """Files that Hydra opened there before the run began, with ``hydra/job_logging=default`` or a user's own."""
    files = [Path(item.baseFilename) for item in logging.getLogger().handlers if isinstance(item, logging.FileHandler)]
    return {file.name for file in files if file.parent == path.absolute()}


def _refuse_run(path: Path) -> None:
    """Refuse a directory whose run has something to lose; one that failed before its first checkpoint has not."""
    if not (path / "run.json").exists():
        return
    status = read_record(path)["status"]
    if status in {"completed", "diverged"}:
        raise RunDirectoryError(f"{path} already holds a {status} run; choose another hydra.run.dir")
    if status != "failed" or any((path / "checkpoints").glob("*.pt")):
        raise RunDirectoryError(f"{path} holds an unfinished run; continue it: mnist-train {typed('resume', path)}")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is, at any moment and after any crash, either the old one or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _acquire(path: Path) -> FileLock:
    lock = FileLock(path / ".lock", timeout=0.5)  # is_locked holds it, too, for a moment
    try:
        lock.acquire()
    except Timeout as error:
        raise RunDirectoryError(f"{path} is in use by another process") from error
    return lock


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
