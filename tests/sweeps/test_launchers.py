"""Sweeps with launchers that use other processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sweep_processes import breaking, processes_in, rows, start, wait_for
from warm_commands import WarmCommands

from mnist_exp.runs import read_run
from mnist_exp.runs.provenance import available_cores
from mnist_exp.sweeps import slurm

LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
}
pytestmark = pytest.mark.slow
each_launcher = pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)


OWN_LAUNCHER = '''
"""A user's launcher: two threads, each with a process for its job."""
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job
from hydra.plugins.launcher import Launcher
from omegaconf import open_dict


def run(task, config, context, state):
    Singleton.set_state(state)
    run_job(hydra_context=context, task_function=task, config=config, job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir")


class TwoThreads(Launcher):
    def __init__(self, greeting):
        self.greeting = greeting

    def setup(self, *, hydra_context, task_function, config):
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides, initial_job_idx):
        print(self.greeting, len(job_overrides), flush=True)

        def one(number, overrides):
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = number
            call = cloudpickle.dumps((run, self.task, config, self.context, Singleton.get_state()))
            program = "import pickle, sys; run, *rest = pickle.load(sys.stdin.buffer); run(*rest)"
            subprocess.run([sys.executable, "-c", program], input=call, check=True)
            return JobReturn()

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, range(len(job_overrides)), job_overrides))
'''


def test_a_users_launcher(small: list[str], tmp_path: Path) -> None:
    """Only its class is known, so its jobs share the cores as if all of them ran at once."""
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "own_launcher.py").write_text(OWN_LAUNCHER)
    (tmp_path / "myconf" / "hydra" / "launcher").mkdir(parents=True)
    (tmp_path / "myconf" / "hydra" / "launcher" / "own.yaml").write_text(
        "_target_: hydra_plugins.own_launcher.TwoThreads\ngreeting: hello\n"
    )
    shared = [override for override in small if not override.startswith("trainer.threads")]
    command = ["--config-dir", "myconf", *shared, "hydra/launcher=own", "seed=0,1,2", "hydra.sweep.dir=sweep"]
    process = start(tmp_path, *command, PYTHONPATH=str(tmp_path))
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert "hello 3" in out
    assert {job.status for job in rows(tmp_path).values()} == {"completed"}
    threads = {read_run(tmp_path / "sweep" / f"seed={seed}").record.threads for seed in range(3)}
    assert threads == {max(1, available_cores() // 3)}


@each_launcher
def test_a_failed_job_affects_no_other(
    launcher: list[str], small: list[str], tmp_path: Path, warm_commands: WarmCommands
) -> None:
    small.remove("trainer.threads=1")
    command = [*small, *launcher, "data.limit=64", "trainer.epochs=1", "seed=range(4)", "hydra.sweep.dir=sweep"]
    python = warm_commands.bin / "python"
    # Without the number of threads its processes are ordinary ones.
    environment = {"OMP_NUM_THREADS": ""} if "joblib" in launcher[0] else {}
    process = start(tmp_path, *command, python=python, PYTHONPATH=breaking(tmp_path), **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    jobs = rows(tmp_path)
    assert {name: job.status for name, job in jobs.items()} == {
        **dict.fromkeys(["seed=0", "seed=1", "seed=2"], "failed"),
        "seed=3": "completed",
    }
    assert jobs["seed=0"].error == "ZeroDivisionError: division by zero"
    assert jobs["seed=1"].error == "SystemExit: 3"
    assert jobs["seed=2"].error == (
        "ProcessDied: its process was killed by SIGKILL, as Linux does when memory runs out"
    )
    assert "; see sweep/seed=2/train.log\n" in out
    record = read_run(tmp_path / "sweep" / "seed=3").record
    assert record.threads == (max(1, available_cores() // 2) if "joblib" in launcher[0] else 1), "they share the cores"
    assert record.process["pid"] != process.pid
    assert "\n    1/1 " in (tmp_path / "sweep" / "seed=3" / "output.log").read_text()
    before = (tmp_path / "sweep" / "seed=3" / "run.json").read_bytes()
    process = start(tmp_path, *command, python=python)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert {job.status for job in rows(tmp_path).values()} == {"completed"}
    assert (tmp_path / "sweep" / "seed=3" / "run.json").read_bytes() == before


def test_a_worker_that_dies_affects_no_other_job(small: list[str], tmp_path: Path) -> None:
    """joblib kills all workers when one dies."""
    command = [*small, *LAUNCHERS["joblib"], "trainer.epochs=3", "seed=6,3", "hydra.sweep.dir=sweep"]
    process = start(tmp_path, *command, PYTHONPATH=breaking(tmp_path), WAITING="3")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1, out
    assert {name: job.status for name, job in rows(tmp_path).items()} == {"seed=6": "killed", "seed=3": "completed"}


@pytest.mark.parametrize(
    ("launcher", "whole_group"),
    [(LAUNCHERS["joblib"], True), (LAUNCHERS["submitit_local"], False)],
    ids=["joblib, terminal", "submitit_local, parent"],
)
def test_interrupted_once_and_finished(
    whole_group: bool,
    launcher: list[str],
    small: list[str],
    tmp_path: Path,
    mnist_train: Callable[..., int],
    warm_commands: WarmCommands,
) -> None:
    """Ctrl-C on a terminal reaches every process; ``kill -INT`` only the first one."""
    command = [*small, *launcher, "trainer.epochs=3", "seed=3,4,8", "hydra.sweep.dir=sweep"]
    warm = warm_commands.bin / "python"
    python = sys.executable if whole_group else warm
    process = start(tmp_path, *command, python=python, PYTHONPATH=breaking(tmp_path), WAITING="3,4,8")
    wait_for(lambda: sum(1 for _ in tmp_path.glob("sweep/*/metrics.jsonl")) >= 2, process)
    if whole_group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 130, out
    statuses = {name: job.status for name, job in rows(tmp_path).items()}
    assert "interrupted" in statuses.values()
    assert set(statuses.values()) <= {"interrupted", "waiting"}
    told = " ".join(out.splitlines()[-1].split()[-2 - len(launcher) :])
    assert told == " ".join(["-m", "sweep.resume=sweep", *launcher])
    again = subprocess.run(
        [warm, "-m", "mnist_exp.cli.train", *told.split()],
        cwd=tmp_path,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert {job.status for job in rows(tmp_path).values()} == {"completed"}
    name = next(name for name, status in statuses.items() if status == "interrupted")
    assert mnist_train(*small, "trainer.epochs=3", name, "hydra.run.dir=whole") == 0
    with np.load("whole/predictions.npz") as whole, np.load(f"sweep/{name}/predictions.npz") as job:
        np.testing.assert_array_equal(whole["logits"], job["logits"])


def test_a_signal_after_a_job_has_ended_changes_nothing(small: list[str], tmp_path: Path) -> None:
    """A job gets SIGINT from the terminal and another signal from its launcher, perhaps while it is ending."""
    command = [*small, *LAUNCHERS["joblib"], "trainer.epochs=3", "seed=7,8", "hydra.sweep.dir=sweep"]
    process = start(tmp_path, *command, PYTHONPATH=breaking(tmp_path), WAITING="7,8")
    wait_for(lambda: sum(1 for _ in tmp_path.glob("sweep/*/metrics.jsonl")) == 2, process)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 130, out
    assert {job.status for job in rows(tmp_path).values()} == {"interrupted"}


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([None, "JobState=RUNNING", None, "JobState=RUNNING", ""], ["show", "show", "requeue", "show", "requeue"]),
        ([None, "JobState=RUNNING", None, "JobState=PENDING"], ["show", "show", "requeue", "show"]),
        (["JobState=COMPLETING"], ["show"]),
    ],
)
def test_commands_to_a_busy_slurm_are_repeated(
    answers: list[str | None], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def ask(*command: str) -> str | None:
        said.append("show" if "show" in command else command[1])
        return answers[len(said) - 1]

    monkeypatch.setattr(slurm, "_output_of", ask)
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0)
    slurm._requeue_if_running("7")
    assert said == asked


def test_jobs_of_slurm_that_end_at_once_are_not_waited_for_forever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """submitit waits for the result of a job that died."""
    died, submitted = threading.Event(), time.monotonic()
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(slurm, "ASK_SECONDS", 1)
    monkeypatch.setattr(slurm, "disable_sacct", lambda: None)
    monkeypatch.setattr(slurm, "_is_queued", lambda name: 0.1 < time.monotonic() - submitted < 0.4)
    waiting = threading.Thread(
        target=slurm.launch_on_slurm, args=(lambda: died.wait(60), "sweep", tmp_path / "stop"), daemon=True
    )
    waiting.start()
    waiting.join(20)
    ended = not waiting.is_alive()
    died.set()
    waiting.join(20)
    assert ended


def test_without_slurm_there_is_a_one_line_error(
    small: list[str],
    tmp_path: Path,
    mnist_train: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert mnist_train("-m", *small, "hydra/launcher=submitit_slurm", "seed=0,1", "hydra.sweep.dir=sweep") == 2
    assert capsys.readouterr().err == (
        "mnist-train: the launcher started no job (they are stored, and the same command starts them): RuntimeError: Could "
        'not detect "srun", are you indeed on a slurm cluster?\n'
    )


def test_the_whole_sweep_on_a_terminal(small: list[str], mnist_train_terminal: Callable[..., tuple[int, str]]) -> None:
    """A progress bar while jobs run in other processes; a line for each job and the table stay on the screen."""
    sweep = ["-m", *small, "trainer.epochs=60", *LAUNCHERS["joblib"], "seed=0,1,2", "hydra.sweep.dir=sweep"]
    status, text = mnist_train_terminal(*sweep)
    assert status == 0
    assert re.search("━.* 0 of 3 done, . running", text)
    assert re.search("━.* [12] of 3 done, .* left, highest test ", text)
    assert len(re.findall(r"\[./3\] lenet5 · seed .: test ", text)) == 3
    assert "Sweep sweep" in text


@pytest.mark.skipif(sys.platform != "linux", reason="the processes of a session are read from /proc")
@each_launcher
def test_no_process_outlives_a_killed_command(
    launcher: list[str], small: list[str], tmp_path: Path, warm_commands: WarmCommands
) -> None:
    command = [*small, *launcher, "data.limit=64", "trainer.epochs=3", "seed=3,4", "hydra.sweep.dir=sweep"]
    python = warm_commands.bin / "python"
    process = start(tmp_path, *command, python=python, PYTHONPATH=breaking(tmp_path), WAITING="3,4")
    wait_for(lambda: len(list(tmp_path.glob("sweep/*/metrics.jsonl"))) == 2, process)
    assert len(processes_in(tmp_path)) >= 4
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 120
    while left := processes_in(tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    for seed in (3, 4):
        assert read_run(tmp_path / "sweep" / f"seed={seed}").status == "interrupted"
