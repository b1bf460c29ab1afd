"""One job of a sweep: what a launcher calls, wherever it calls it.

All it is told is the run directory, which holds everything else. How the run ended is written there too, so that it
does not matter what becomes of the process that reports back.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mnist_exp.compose import PACKAGE
from mnist_exp.config import check
from mnist_exp.errors import RunFailed, RunInterrupted, UsageError
from mnist_exp.runs import RunDirectory, RunDirectoryError
from mnist_exp.runs.files import open_file
from mnist_exp.runs.provenance import provenance
from mnist_exp.runs.reading import read_record
from mnist_exp.runs.record import FAILED, SETTLED, Status
from mnist_exp.signals import StopRequest
from mnist_exp.sweeps.directory import ask_to_stop, read_job_status

POLL_SECONDS = 0.5
# Longer than an optimizer step and a checkpoint take; then what does not listen is killed, and resumes from its last epoch.
PATIENCE_SECONDS = 60.0


class ProcessDied(Exception):
    """A job's process ended without saying why."""


def train_here(job: DictConfig) -> None:
    """Hydra's task in this process: train the run in ``job.directory``; whatever happens stays there.

    Only what kills the process ends the sweep.
    """
    path, stop_file = Path(job.directory), Path(job.stop_file)
    if stop_file.exists():
        return
    try:
        train_directory(path, user_settings(job), in_sweep=True)
    except (UsageError, RunDirectoryError, RunFailed):
        pass  # run.json says it
    except BaseException as error:
        if read_job_status(path).status == Status.INTERRUPTED:
            ask_to_stop(stop_file, error.signal if isinstance(error, RunInterrupted) else int(signal.SIGINT))
        # Else it called sys.exit, or failed in a way that nobody foresaw: the other jobs go on.
    _stop_others_after_a_failure(job)


def train_in_worker(job: DictConfig) -> None:
    """Hydra's task in a worker of a launcher: a crash or an out-of-memory kill of a job affects only this job."""
    _end_with_command(job.launched_by.host, job.launched_by.pid)
    _JOBS.append(job.directory)
    try:
        with StopAll(Path(job.stop_file)) as stop:
            train_in_a_child(job, lambda: stop() or _COMMAND_GONE.is_set())
    finally:
        _JOBS.remove(job.directory)


def train_in_a_child(job: DictConfig, stop: Callable[[], bool]) -> None:
    """Train the run in ``job.directory`` in a process of its own, which is told to stop when ``stop`` says so.

    A process that died without saying how its run ended has this recorded for it.
    """
    path, stop_file = Path(job.directory), Path(job.stop_file)
    if stop_file.exists() or read_job_status(path).status in SETTLED:
        return
    process = _fork(path, stop_file, HydraConfig.get().runtime.cwd, user_settings(job))
    asked: float | None = None
    while process.is_alive():
        process.join(POLL_SECONDS)
        if asked is None and stop():
            asked = time.monotonic()
            with suppress(ProcessLookupError):  # it ends at this moment
                os.kill(process.pid, signal.SIGTERM)
        elif asked is not None and time.monotonic() - asked > PATIENCE_SECONDS:
            process.kill()
    if process.exitcode < 0:
        number = signal.Signals(-process.exitcode)
        hint = ", as Linux does when memory runs out" if number == signal.SIGKILL else "; see output.log there"
        _record_death(path, f"its process was killed by {number.name}{hint}")
    elif read_job_status(path).status == Status.WAITING and not stop() and not stop_file.exists():
        _record_death(path, f"ended with exit status {process.exitcode} before it began; see output.log there")
    _stop_others_after_a_failure(job)


_JOBS: list[str] = []  # directories of the jobs that this process trains now
_COMMAND_GONE = threading.Event()  # the command is gone


def _end_with_command(host: str, command: int) -> None:
    """Have this worker of a launcher end when the command that started it is gone, killed perhaps; its job checkpoints
    first. Its fork server ends with it.

    Args:
        host, command: where the command runs, and its process. On other hosts the cluster ends its jobs itself.
    """
    if command == os.getpid() or host != platform.node() or any(t.name == "follow" for t in threading.enumerate()):
        return

    def follow() -> None:
        while _is_alive(command):
            time.sleep(POLL_SECONDS)
        _COMMAND_GONE.set()
        while _JOBS:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=follow, name="follow", daemon=True).start()


def _is_alive(process: int) -> bool:
    """Whether a process is alive; a zombie is not."""
    try:
        if hasattr(os, "pidfd_open"):
            descriptor = os.pidfd_open(process)
            try:
                return not select.select([descriptor], [], [], 0)[0]
            finally:
                os.close(descriptor)
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is another user's, or there are no descriptors left
    return True


class StopAll(StopRequest):
    """Tells every job of the sweep, wherever it runs, what the signal told us."""

    def __init__(self, stop_file: Path) -> None:
        super().__init__()
        self._stop_file = stop_file

    def _note(self, number: int, frame: FrameType | None) -> None:
        super()._note(number, frame)
        ask_to_stop(self._stop_file, number)


def user_settings(job: DictConfig) -> dict[str, Any]:
    """What whoever launches the job says, and its directory does not decide: ``logger``, ``data_root``, ``trusted``."""
    settings = OmegaConf.to_container(job.settings)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def train_directory(path: Path, settings: Mapping[str, Any], *, in_sweep: bool = False) -> float | None:
    """Train what the run directory describes, from its last checkpoint where it has one.

    Args:
        settings: ``logger`` and ``callbacks``, in place of the sections that are stored there; ``data_root``, into which data may
            be fetched; ``trusted``, packages whose code may run besides ours.
        in_sweep: this process shows the whole sweep, and not each job.
    """
    from mnist_exp.task import train

    if path.is_relative_to(Path.cwd()) and path != Path.cwd():
        path = path.relative_to(Path.cwd())  # as the user would type it
    with RunDirectory.reopen(path) as run:
        if not run.record.versions:
            run.update(**provenance(PACKAGE))
        run.update(process={"host": platform.node(), "pid": os.getpid()})
        run.config = check(
            {**run.config.plain(), **{key: settings[key] for key in ("logger", "callbacks") if key in settings}}
        )
        run.may_download = run.config.data.folder == settings["data_root"]
        run.trusted = settings["trusted"]
        return train(run, in_sweep=in_sweep)


def _fork(*arguments: Any) -> Any:
    """A process that runs ``_run_job``.

    A server that has torch loaded forks it: milliseconds instead of seconds a job, and nothing is shared. A launcher's
    worker may have a start method of its own (loky), which a new process would not know.
    """
    multiprocessing.set_start_method("forkserver", force=True)
    multiprocessing.set_forkserver_preload(["mnist_exp.experiment"])
    process = multiprocessing.Process(target=_run_job, args=arguments)
    # Terminals and schedulers signal every process there is. Neither the server nor a job that does not listen yet may
    # die of it, so they are born with these signals blocked; a StopRequest lets them in. Python's tracker of resources
    # comes first, because starting it ends with unblocking.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return process


def _run_job(path: Path, stop_file: Path, directory: str, settings: Mapping[str, Any]) -> None:
    """What a job's own process does.

    Args:
        directory: where the command was given; a launcher may start its workers elsewhere.
        settings: as for ``train_directory``.
    """
    os.chdir(directory)
    with open_file(path / "output.log", "ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    parent = os.getppid()
    watch = threading.Thread(
        target=_end_when, args=(lambda: stop_file.exists() or os.getppid() != parent,), daemon=True
    )
    watch.start()
    try:
        train_directory(path, settings)
    except (UsageError, RunDirectoryError, RunFailed) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except RunInterrupted as stopped:
        sys.exit(128 + stopped.signal)


def _end_when(condition: Callable[[], bool]) -> None:
    """Ask this process to checkpoint and end, once the sweep stops or whoever started it is gone."""
    while not condition():
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _record_death(path: Path, message: str) -> None:
    try:
        if read_record(path).status not in {Status.WAITING, Status.RUNNING}:
            return  # it said how it ended; the signal found it on its way out
        with RunDirectory.reopen(path) as run:
            run.end(Status.FAILED, ProcessDied(message))
    except RunDirectoryError:
        return  # somebody else continues it already


def _stop_others_after_a_failure(job: DictConfig) -> None:
    if job.fail_fast and read_job_status(Path(job.directory)).status in FAILED:
        ask_to_stop(Path(job.stop_file))
