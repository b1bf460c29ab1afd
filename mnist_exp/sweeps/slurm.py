"""Slurm, where submitit is not enough: jobs go on after a preemption, and a stopped sweep leaves no job in the queue."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mnist_exp.errors import RunInterrupted
from mnist_exp.runs.record import FAILED, SETTLED
from mnist_exp.runs.sweep import read_job_status
from mnist_exp.signals import StopRequest
from mnist_exp.sweeps.job import PATIENCE_SECONDS, train_in_a_child

POLL_SECONDS = 0.5
ASK_SECONDS = 10.0  # seldom enough for a busy cluster


def train_on_slurm(job: DictConfig) -> None:
    """Hydra's task in a Slurm job. If Slurm stops the job, the run writes a checkpoint, and the job is requeued.

    Raises:
        RunInterrupted: the job goes on later, so submitit must not record it as done.
    """
    requeue_before_time_limit = signal.getsignal(signal.SIGUSR2)  # submitit's; at most max_num_timeout times
    with StopRequest(signal.SIGUSR2) as stop:
        train_in_a_child(job, stop)
    if stop.signal is None or read_job_status(Path(job.directory)).status in SETTLED | FAILED:
        return
    if stop.signal == signal.SIGUSR2 and callable(requeue_before_time_limit):
        requeue_before_time_limit(stop.signal, None)
    _requeue_if_running(HydraConfig.get().job.id)
    raise RunInterrupted(f"requeued after {signal.Signals(stop.signal).name}", stop.signal)


def _requeue_if_running(number: str) -> None:
    """Put this job back into Slurm's queue, unless Slurm has cancelled, ended or requeued it.

    A busy Slurm may not answer, so the commands are repeated for up to ``PATIENCE_SECONDS``.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        state = _output_of("scontrol", "--oneliner", "show", "job", number)
        if state is not None and "JobState=RUNNING" not in state:
            return
        if state is not None and _output_of("scontrol", "requeue", number) is not None:
            return
        time.sleep(POLL_SECONDS)


def job_name(sweep: Path) -> str:
    """The name of the Slurm jobs of the sweep in this directory; other directories have other names."""
    return f"{sweep.name}-{hashlib.sha256(str(sweep).encode()).hexdigest()[:6]}"


def launch_on_slurm(launch: Callable[[], object], name: str, stop_file: Path) -> None:
    """Submit jobs and wait until none of them is in Slurm's queue.

    ``squeue`` is called here because submitit stops waiting at the first job that died, and notices a death up to ten
    minutes late, or never on a cluster without accounting. When the sweep is stopped, queued jobs are cancelled.

    Args:
        launch: submits the jobs and waits for them with submitit.
        name: of the jobs.
        stop_file: the sweep is stopped when this file exists.

    Raises:
        Exception: ``launch`` raised it.
    """
    disable_sacct()
    failures: list[Exception] = []

    def run() -> None:
        try:
            launch()
        except Exception as failure:
            failures.append(failure)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    seen, asked = False, time.monotonic()
    while not stop_file.exists():
        time.sleep(POLL_SECONDS)
        # Until a job was seen, squeue is asked at each turn: all may end within the first seconds, one of them without a result.
        if seen and thread.is_alive() and time.monotonic() - asked < ASK_SECONDS:
            continue
        queued, asked = _is_queued(name), time.monotonic()
        if queued:
            seen = True
        elif queued is False if seen else not thread.is_alive():
            break
    if stop_file.exists():
        _output_of("scancel", f"--name={name}")
        while _is_queued(name):
            time.sleep(POLL_SECONDS)
    if failures:
        raise failures[0]


def disable_sacct() -> None:
    """Keep submitit from running ``sacct``, which fails on a cluster without accounting. It has no setting for that.

    ``SlurmJob.watcher`` is not public; tests/test_private_parts.py fails if it changes.
    """
    from submitit import SlurmJob

    SlurmJob.watcher.update = lambda: None  # type: ignore[method-assign]  # replaces a method


def _is_queued(name: str) -> bool | None:
    """Whether a job of this name is waiting or running in Slurm; None if Slurm does not answer."""
    output = _output_of("squeue", "--noheader", "--me", f"--name={name}")
    return None if output is None else bool(output)


def _output_of(*command: str) -> str | None:
    """The output of a program of Slurm; None if it fails or is not installed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
