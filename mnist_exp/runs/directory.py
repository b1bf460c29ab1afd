"""Write a run directory: its files, its lock, the status of the run.

Evaluation, resuming and reports need the directory only.

    config.yaml      resolved        overrides.yaml   as typed      .hydra/   as Hydra writes it
    run.json         status (waiting running completed failed diverged interrupted pruned), error, config hash,
                     provenance, seconds, final and best metrics
    metrics.jsonl    one line an epoch
    checkpoints/     last.pt, best.pt
    predictions.npz  logits (N, C) and labels (N,) of the final model on the test set; worst (K,) and worst_images
                     (K, S, S): the images whose label got the least probability
    train.log
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

import yaml
from filelock import FileLock

from mnist_exp.config import Config
from mnist_exp.errors import as_typed, typed
from mnist_exp.hashing import HASH_VERSION, NOT_HASHED, config_hash, hashed_config
from mnist_exp.plain import load_yaml
from mnist_exp.runs.files import (
    LARGEST_TEXT,
    TEMPORARY,
    RunDirectoryError,
    naming,
    open_file,
    read_file,
    refuse_links,
    write_atomically,
)
from mnist_exp.runs.locking import acquire, is_locked
from mnist_exp.runs.reading import read_config, read_metrics, read_record
from mnist_exp.runs.record import NOT_RESUMABLE, RunRecord, Status

LOG = logging.getLogger("mnist_exp")
# Files that ``create`` writes before run.json. Without run.json they contain no result and may be overwritten.
WRITTEN_BEFORE_RECORD = {"config.yaml", "overrides.yaml", "train.log", "checkpoints"}

Revision = Callable[[RunRecord, Config], tuple[dict[str, Any], Config]]


class RunDirectory:
    """Holds the lock of one run directory and writes into it. Use as a context manager.

    Attributes:
        path: the directory.
        record: the content of ``run.json``.
        config: the content of ``config.yaml``.
        trusted: packages whose code may run besides ours; None: all, because the user wrote the configuration.
        may_download: whether missing data may be downloaded into ``data.root``; False for a folder that only the run
            directory names.
    """

    def __init__(self, path: Path, lock: FileLock, record: RunRecord, config: Config) -> None:
        self.path = path
        self.record = record
        self.config = config
        self.may_download = True
        self.trusted: Collection[str] | None = None
        self._lock = lock
        self._before: tuple[RunRecord, Config] | None = None
        self._log = _LogFile(open_file(path / "train.log", "a"))
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOG.addHandler(self._log)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        config: Config,
        overrides: Sequence[str],
        record: Mapping[str, Any],
        status: Literal[Status.RUNNING, Status.WAITING] = Status.RUNNING,
    ) -> RunDirectory:
        """Write the directory of a new run, in which ``.hydra/`` may exist already.

        Args:
            record: further fields of ``run.json``.
            status: waiting for a run that ``reopen`` starts later.

        Raises:
            RunDirectoryError: another process uses the directory, or it holds a run or other files.
        """
        refuse_unless_free(path)
        path.mkdir(parents=True, exist_ok=True)
        lock = acquire(path)
        try:
            _refuse_run(path)  # again, because another process may have started a run before we had the lock
        except RunDirectoryError:
            lock.release()
            raise
        run = cls(path, lock, RunRecord.model_validate({"status": status, "started": _now(), **record}), config)
        with run._closed_after_a_failure():
            write_config(path, config)
            write_atomically(path / "overrides.yaml", yaml.safe_dump(list(overrides)).encode())
            (path / "checkpoints").mkdir(exist_ok=True)
            run.update()
        return run

    @classmethod
    def reopen(cls, path: Path, revise: Revision | None = None) -> RunDirectory:
        """Continue a run that was interrupted, killed, or failed; or start one that waits.

        Args:
            revise: gets the record and the configuration, and returns fields of the record that change and the whole
                configuration, or raises UsageError. None: nothing changes, and a completed or diverged run is refused.

        Raises:
            RunDirectoryError: the directory holds no run, or a completed or diverged one, or another process uses it.
        """
        read_record(path)
        read_config(path)
        refuse_links(path)
        lock = acquire(path)
        try:
            before = read_record(path), read_config(path)  # again, because they may have changed before we had the lock
            _refuse_edited_config(path, *before)
            changes, config = (revise or _unchanged(path))(*before)
        except BaseException:
            lock.release()
            raise
        record, status = before[0].with_fields(**changes), before[0].status
        run = cls(path, lock, record, config)
        run.may_download, run.trusted = False, ()
        run._before = before
        with run._closed_after_a_failure():
            (path / "checkpoints").mkdir(exist_ok=True)  # git, for example, does not copy empty folders
            if config != before[1]:
                write_config(path, config)
            if status == Status.WAITING:
                run.update(status=Status.RUNNING, started=_now())
            else:
                run.update(status=Status.RUNNING, error=None, resumed=[*record.resumed, _now()])
        return run

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.record.status == Status.RUNNING:  # the end was not recorded
            with self._closed_after_a_failure():
                self.end(Status.INTERRUPTED if kind is KeyboardInterrupt else Status.FAILED, error)
        self._close()

    def _close(self) -> None:
        LOG.removeHandler(self._log)
        self._log.close()
        self._lock.release()

    @contextmanager
    def _closed_after_a_failure(self) -> Iterator[None]:
        """For changes of files that a full disk can prevent."""
        try:
            yield
        except BaseException:
            self._close()
            raise

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def best_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    def update(self, **fields: Any) -> None:
        """Change fields of ``run.json``."""
        self._write_record(self.record.with_fields(**fields))

    def _write_record(self, record: RunRecord) -> None:
        self.record = record
        content = record.model_dump(mode="json", exclude_unset=True)
        write_atomically(self.path / "run.json", json.dumps(content, indent=2).encode() + b"\n")

    def end(self, status: Status, error: BaseException | None = None, **fields: Any) -> None:
        """Record how the run ended; the traceback of an unexpected failure goes to ``train.log``."""
        if status == Status.FAILED and error is not None:
            record = LOG.makeRecord(LOG.name, logging.ERROR, __file__, 0, "%s: %s", (type(error).__name__, error), None)
            record.exc_info = (type(error), error, error.__traceback__)
            self._log.handle(record)  # not to the console, where the command prints one line
        message = None if error is None else f"{type(error).__name__}: {error}"
        self.update(status=status, error=message, ended=_now(), **fields)

    def restore(self) -> None:
        """Undo the changes of ``reopen`` to the record and the configuration."""
        assert self._before is not None
        record, self.config = self._before
        self._write_record(record)
        write_config(self.path, self.config)

    def append_metrics(self, row: Mapping[str, float | int | None]) -> None:
        """Add one epoch's line to ``metrics.jsonl``."""
        path = self.path / "metrics.jsonl"
        with naming(path), open_file(path, "a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep_metrics(self, epochs: int) -> list[dict[str, Any]]:
        """Remove the lines of metrics after the first ``epochs`` epochs, and an incomplete last line; return the others.

        If a process is killed after it wrote a line and before its checkpoint, that epoch is trained again.

        Raises:
            RunDirectoryError: a line of these epochs is missing, duplicate, or damaged.
        """
        rows = [row for row in read_metrics(self.path) if row["epoch"] <= epochs]
        found = [row["epoch"] for row in rows]
        wrong = next((epoch for epoch in range(1, epochs + 1) if found.count(epoch) != 1), None)
        if wrong or found != sorted(found):
            problem = f"it has {found.count(wrong)} of epoch {wrong}" if wrong else "they are in another order"
            raise RunDirectoryError(
                f"{self.path / 'metrics.jsonl'} should have a line of each of the {epochs} epochs of the checkpoint, and "
                f"{problem}; restore the file, or train again: {self.record.command or 'mnist-train'}"
            )
        file = self.path / "metrics.jsonl"
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        open_file(file, "ab").close()  # from the start on there is a file
        if content != read_file(file):
            write_atomically(file, content)
        return rows


class _LogFile(logging.StreamHandler[IO[str]]):
    """Writes ``train.log``. The rest of a line that a full disk does not take is lost; it does not end the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Print nothing: a file that a result needs reports the same problem."""

    def close(self) -> None:
        with suppress(OSError):
            self.stream.close()
        super().close()


def _refuse_edited_config(path: Path, record: RunRecord, config: Config) -> None:
    """Refuse to continue a run whose settings have another hash than those that it began with.

    Raises:
        RunDirectoryError: as said; the message names the settings, as far as ``.hydra/config.yaml`` has them as plain values.
    """
    if record.config_hash_version != HASH_VERSION or config_hash(config) == record.config_hash:
        return
    try:
        began = load_yaml(read_file(path / ".hydra" / "config.yaml", LARGEST_TEXT, below=path))
    except (OSError, ValueError):
        began = {}
    changes = [f"{key}={as_typed(now)}, was {as_typed(was)}" for key, was, now in _changed(began, config.plain())]
    if not changes and "root" in hashed_config(config)["data"]:
        return  # data that are identified by their folder may have been moved; their content is compared later
    shown = f" ({'; '.join(changes)})" if changes else ""
    raise RunDirectoryError(
        f"{path / 'config.yaml'} was edited after the run began{shown}; put it back, or start a new run: "
        f"{record.command or 'mnist-train'}"
    )


def _changed(before: Any, after: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys in both trees with another plain value in each, with these values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [key for key in after if key in before and f"{prefix}{key}" not in NOT_HASHED]:
            yield from _changed(before[key], after[key], f"{prefix}{key}.")
    elif before != after and "${" not in str(before):
        yield prefix.rstrip("."), before, after


def _unchanged(path: Path) -> Revision:
    """A revision that changes nothing, and refuses a completed or diverged run."""

    def revise(record: RunRecord, config: Config) -> tuple[dict[str, Any], Config]:
        if (status := record.status) in NOT_RESUMABLE:
            advice = (
                f"mnist-eval {path} evaluates it" if status == Status.COMPLETED else "a new run needs other settings"
            )
            raise RunDirectoryError(f"{path} holds a {status} run; there is nothing to resume, {advice}")
        return {}, config

    return revise


def write_config(path: Path, config: Config) -> None:
    """Write ``config.yaml`` of a run directory."""
    write_atomically(path / "config.yaml", yaml.safe_dump(config.plain(), sort_keys=False).encode())


def resume_command(path: Path | str, *more: str) -> str:
    """The command that continues the run in ``path``, with further arguments."""
    return " ".join(["mnist-train", typed("resume", path), *map(shlex.quote, more)])


def refuse_unless_free(path: Path) -> None:
    """Check that a new run may start in ``path``.

    Raises:
        RunDirectoryError: it holds a run, other files, or links.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise RunDirectoryError(f"{path} is a file; a run needs a directory of its own")
    refuse_links(path)
    if (path / "run.json").exists():
        if is_locked(path):
            raise RunDirectoryError(f"{path} is in use by another process")
        _refuse_run(path)
        return
    ours = {".hydra", ".lock", *_logs_written_in(path)}
    if (path / ".lock").exists() and not any((path / "checkpoints").glob("*")):
        ours |= WRITTEN_BEFORE_RECORD  # ``create`` was killed before it wrote run.json
    names = [item.name for item in path.iterdir()]
    if others := sorted(name for name in names if name not in ours and not TEMPORARY.fullmatch(name)):
        raise RunDirectoryError(f"{path} holds no run but other files ({others[0]}); choose another hydra.run.dir")


def _logs_written_in(path: Path) -> set[str]:
    """Names of log files that Hydra opened there before the run began, for example with ``hydra/job_logging=default``."""
    files = [Path(item.baseFilename) for item in logging.getLogger().handlers if isinstance(item, logging.FileHandler)]
    return {file.name for file in files if file.parent == path.absolute()}


def _refuse_run(path: Path) -> None:
    """Refuse a directory that holds a run, except one that failed before its first checkpoint."""
    if not (path / "run.json").exists():
        return
    status = read_record(path).status
    if status in NOT_RESUMABLE:
        raise RunDirectoryError(f"{path} already holds a {status} run; choose another hydra.run.dir")
    if status != Status.FAILED or any((path / "checkpoints").glob("*.pt")):
        raise RunDirectoryError(f"{path} holds an unfinished run; continue it: {resume_command(path)}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
