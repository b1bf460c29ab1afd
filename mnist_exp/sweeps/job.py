"""One job of a sweep: the functions that launchers call.

A job gets the path of its run directory, which holds everything else it needs. The result is written there too, so that
it does not depend on what the launcher returns.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import select
import signal
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
from mnist_exp.errors import RunFailed, RunInterrupted, UsageError, WrappedError
from mnist_exp.runs import RunDirectory, RunDirectoryError
from mnist_exp.runs.files import open_file
from mnist_exp.runs.provenance import provenance
from mnist_exp.runs.reading import read_record
from mnist_exp.runs.record import FAILED, SETTLED, Status
from mnist_exp.runs.sweep import read_job_status
from mnist_exp.signals import StopRequest
from mnist_exp.sweeps.directory import ask_to_stop

POLL_SECONDS = 0.5
# Longer than an optimizer step and a checkpoint take. A job that has not stopped by then is killed; it can be resumed from
# its last epoch.
PATIENCE_SECONDS = 60.0


class ProcessDied(Exception):
    """A job's process ended without recording why."""


def train_here(job: DictConfig) -> None:
    """Hydra's task in the process of the sweep: train the run in ``job.directory``.

    A failure is recorded there, and the sweep goes on. A signal stops it, and a disk on which nothing can be recorded.

    Raises:
        WrappedError: with an OSError, because the run directory cannot be written.
    """
    path, stop_file = Path(job.directory), Path(job.stop_file)
    if stop_file.exists():
        return
    try:
        train_directory(path, user_settings(job), in_sweep=True)
    except (UsageError, RunDirectoryError, RunFailed):
        pass  # run.json has it
    except OSError as error:
        raise WrappedError(error) from error
    except BaseException as error:
        if read_job_status(path).status == Status.INTERRUPTED:
            ask_to_stop(stop_file, error.signal if isinstance(error, RunInterrupted) else int(signal.SIGINT))
        # Otherwise user code called sys.exit or raised something else: the other jobs go on.
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
    """Train the run in ``job.directory`` in a separate process, which gets SIGTERM when ``stop`` returns True.

    If the process dies without recording the end of its run, the failure is recorded here.
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
        _record_death(path, "its process ended before training began; see output.log there")
    _stop_others_after_a_failure(job)


_JOBS: list[str] = []  # directories of the jobs that this process trains now
_COMMAND_GONE = threading.Event()  # set when the process of the command has ended
_WATCHER = "watch the command"  # name of a thread


def _end_with_command(host: str, command: int) -> None:
    """End this worker process of a launcher when the process of the command has ended, after its job has written a
    checkpoint. The fork server ends with the worker.

    Args:
        host: name of the machine on which the command runs; on other machines the cluster ends the workers.
        command: process id of the command.
    """
    if command == os.getpid() or host != platform.node() or any(t.name == _WATCHER for t in threading.enumerate()):
        return

    def watch() -> None:
        while _is_alive(command):
            time.sleep(POLL_SECONDS)
        _COMMAND_GONE.set()
        while _JOBS:
            time.sleep(POLL_SECONDS)
        os._exit(1)  # sys.exit would end this thread only

    threading.Thread(target=watch, name=_WATCHER, daemon=True).start()


def _is_alive(process: int) -> bool:
    """Whether the process with this id is alive; a zombie is not."""
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
        return True  # it belongs to another user, or there are no file descriptors left
    return True


class StopAll(StopRequest):
    """A stop request that is passed on to all jobs of the sweep by ``.stop``."""

    def __init__(self, stop_file: Path) -> None:
        super().__init__()
        self._stop_file = stop_file

    def _note(self, number: int, frame: FrameType | None) -> None:
        super()._note(number, frame)
        ask_to_stop(self._stop_file, number)


def user_settings(job: DictConfig) -> dict[str, Any]:
    """The settings of a job that its directory must not decide, from the command: see ``train_directory``."""
    settings = OmegaConf.to_container(job.settings)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def train_directory(path: Path, settings: Mapping[str, Any], *, in_sweep: bool = False) -> float | None:
    """Train the run in this directory, from its last checkpoint if it has one.

    Args:
        settings: ``logger`` and ``callbacks`` replace these sections of the stored configuration; ``data_root`` is the
            folder into which data may be downloaded; ``trusted`` are the packages, besides this one, whose code may run.
        in_sweep: this process shows the progress of the sweep instead of that of each job.

    Returns:
        the validation accuracy, a fraction; None without validation data.

    Raises:
        UsageError, RunDirectoryError: the run cannot be trained.
        RunFailed, RunInterrupted: it ended without a result.
    """
    from mnist_exp.task import train

    if path.is_relative_to(Path.cwd()) and path != Path.cwd():
        path = path.relative_to(Path.cwd())  # shorter in messages
    with RunDirectory.reopen(path) as run:
        first = {} if run.record.versions else provenance(PACKAGE)
        run.update(**first, process={"host": platform.node(), "pid": os.getpid()})
        run.config = check(
            {**run.config.plain(), **{key: settings[key] for key in ("logger", "callbacks") if key in settings}}
        )
        run.may_download = run.config.data.folder == settings["data_root"]
        run.trusted = settings["trusted"]
        return train(run, in_sweep=in_sweep)


def _fork(*arguments: Any) -> Any:
    """Start a process that runs ``_run_job``.

    A server that has imported torch forks it, which takes milliseconds instead of seconds, and jobs share no state. The
    start method is set here because a launcher's worker may have another (loky), which a new process does not have.
    """
    multiprocessing.set_start_method("forkserver", force=True)
    multiprocessing.set_forkserver_preload(["mnist_exp.sweeps.preload"])
    process = multiprocessing.Process(target=_run_job, args=arguments)
    # Terminals and schedulers send signals to every process. The server, and a job that has no handler yet, must not die
    # of one, so they start with these signals blocked; StopRequest unblocks them. Python's resource tracker is started
    # first because that unblocks them.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return process


def _run_job(path: Path, stop_file: Path, directory: str, settings: Mapping[str, Any]) -> None:
    """Train the run in ``path``; the main function of a job's process.

    Args:
        stop_file: the run stops when this file exists.
        directory: working directory of the command; that of the launcher's workers may differ.
        settings: see ``train_directory``.
    """
    os.chdir(directory)
    with open_file(path / "output.log", "ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    parent = os.getppid()
    watch = threading.Thread(
        target=_stop_when, args=(lambda: stop_file.exists() or os.getppid() != parent,), daemon=True
    )
    watch.start()
    try:
        train_directory(path, settings)
    except (UsageError, RunDirectoryError, RunFailed) as error:
        print(error)  # into output.log; the status is in run.json
    except RunInterrupted:
        pass  # run.json has it


def _stop_when(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` is True, then send SIGTERM to this process, so that it writes a checkpoint and ends."""
    while not condition():
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _record_death(path: Path, message: str) -> None:
    try:
        if read_record(path).status not in {Status.WAITING, Status.RUNNING}:
            return  # the signal came after it had recorded its end
        with RunDirectory.reopen(path) as run:
            run.end(Status.FAILED, ProcessDied(message))
    except RunDirectoryError:
        return  # another process has resumed it


def _stop_others_after_a_failure(job: DictConfig) -> None:
    if job.fail_fast and read_job_status(Path(job.directory)).status in FAILED:
        ask_to_stop(Path(job.stop_file))
