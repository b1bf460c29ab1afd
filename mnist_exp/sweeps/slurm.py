"""What jobs on Slurm need beyond submitit: to go on after a preemption, and not to be left behind in the queue."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mnist_exp.runs.record import FAILED, SETTLED
from mnist_exp.signals import StopRequest
from mnist_exp.sweeps.directory import read_job_status
from mnist_exp.sweeps.job import PATIENCE_SECONDS, train_in_a_child

POLL_SECONDS = 0.5
ASK_SECONDS = 10.0  # what a busy cluster does not mind


def train_on_slurm(job: DictConfig) -> None:
    """``train_in_worker`` where Slurm may want the machine back: the run checkpoints, and Slurm starts the same job again.

    Raises:
        SystemExit: the job goes on later, so submitit must not take it for done.
    """
    ahead_of_time_limit = signal.getsignal(signal.SIGUSR2)  # of submitit: requeues it, max_num_timeout times at most
    with StopRequest(signal.SIGUSR2) as stop:
        train_in_a_child(job, stop)
    if stop.signal is None or read_job_status(Path(job.directory)).status in SETTLED | FAILED:
        return
    if stop.signal == signal.SIGUSR2 and callable(ahead_of_time_limit):
        ahead_of_time_limit(stop.signal, None)
    _requeue_unless_stopped(HydraConfig.get().job.id)
    sys.exit(128 + stop.signal)


def _requeue_unless_stopped(number: str) -> None:
    """Have Slurm start this job again later. A Slurm that is busy may not answer at once, so it is asked again.

    A job that Slurm stops itself is not running any more: cancelled, out of time, or back in the queue already.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        state = _ask("scontrol", "--oneliner", "show", "job", number)
        if state is not None and "JobState=RUNNING" not in state:
            return
        if state is not None and _ask("scontrol", "requeue", number) is not None:
            return
        time.sleep(POLL_SECONDS)


def job_name(sweep: Path) -> str:
    """What Slurm calls the jobs of the sweep in this directory, and no others."""
    return f"{sweep.name}-{hashlib.sha256(str(sweep).encode()).hexdigest()[:6]}"


def launch_on_slurm(launch: Callable[[], object], name: str, stop_file: Path) -> None:
    """Submit jobs and wait until Slurm has none of them any more.

    We ask Slurm ourselves: submitit stops waiting at the first job that died, notices that up to ten minutes late, and
    never where Slurm keeps no accounts. When a sweep is stopped, jobs that wait in the queue are cancelled.

    Args:
        launch: submits and waits, as submitit does.
        name: of the jobs.
        stop_file: exists when the sweep is to stop.

    Raises:
        Exception: what ``launch`` raised.
    """
    never_ask_accounts()
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
        if thread.is_alive() and time.monotonic() - asked < ASK_SECONDS:
            continue
        queued, asked = _has(name), time.monotonic()
        if queued:
            seen = True
        elif queued is False if seen else not thread.is_alive():
            break
    if stop_file.exists():
        _ask("scancel", f"--name={name}")
        while _has(name):
            time.sleep(POLL_SECONDS)
    if failures:
        raise failures[0]


def never_ask_accounts() -> None:
    """Keep submitit from running ``sacct``, which fails on a cluster without accounts. It has no setting for that.

    This is the one part of submitit in use that it does not promise to keep; tests/test_private_parts.py fails if it changes.
    """
    from submitit import SlurmJob

    SlurmJob.watcher.update = lambda: None  # type: ignore[method-assign]  # a method is what there is to replace


def _has(name: str) -> bool | None:
    """Whether Slurm has jobs of this name that are not over; None where it does not answer, as a busy one may."""
    answer = _ask("squeue", "--noheader", "--me", f"--name={name}")
    return None if answer is None else bool(answer)


def _ask(*command: str) -> str | None:
    """What a program of Slurm says; None where it fails or is not installed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
