"""Without functions of POSIX systems runs work, or a line explains why not.

A stand-in for Windows: the modules and functions that it lacks are taken away before anything of ours is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_exp.runs.sweep import read_sweep

START = """
import multiprocessing, os, signal, sys

for name in ("resource", "pty"):
    sys.modules[name] = None
for module, names in {
    os: ("fork", "sched_getaffinity", "getpgid", "killpg"),
    signal: ("pthread_sigmask", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGALRM", "setitimer"),
}.items():
    for name in names:
        delattr(module, name)
multiprocessing.get_all_start_methods = lambda: ["spawn"]
from pathlib import Path

read_text = Path.read_text


def read_text_without_proc(path, *arguments, **options):
    if str(path).startswith("/proc/"):
        raise FileNotFoundError(path)
    return read_text(path, *arguments, **options)


Path.read_text = read_text_without_proc

from mnist_exp.cli.train import main
main()
"""


def train(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_a_run(small: list[str]) -> None:
    small.remove("logger=none")
    result = train(*small, "logger.mode=offline", "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    record = json.loads(Path("run", "run.json").read_text())
    assert record["status"] == "completed"
    assert record["peak_memory_bytes"] is None
    assert record["hardware"]["cores"] == 1
    assert list(Path("run", "wandb").glob("offline-run-*"))


def test_a_sweep(small: list[str]) -> None:
    result = train("-m", *small, "trainer.epochs=1", "seed=0,1", "hydra.sweep.dir=sweep")
    assert result.returncode == 0, result.stderr
    assert {job.status for job in read_sweep(Path("sweep")).jobs} == {"completed"}


def test_jobs_in_processes_of_their_own(small: list[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs mnist-exp[joblib]")
    result = train("-m", *small, "hydra/launcher=joblib", "seed=0,1", "hydra.sweep.dir=sweep")
    assert result.returncode == 2
    assert result.stderr == (
        "mnist-train: JoblibLauncher gives each job a forked process, which Windows does not have; leave hydra/launcher "
        "out, and jobs run one after the other\n"
    )
