"""Sweeps whose command and jobs are processes of their own, some of which are made to fail."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_exp.sweeps.directory import JobRecord, read_sweep

BREAKING = "seed=0,1,2,3,5,6"  # one job that is let alone, and one for every bad end
# Makes the jobs with some seeds end in bad ways, in whatever process they run; that of seed 6 takes the launcher's along
# once another job has begun, that of seed 7 is slow to leave when all is said. Jobs whose seeds WAITING names train on
# after their first epoch only when they are told to stop. With HEALED, none ends in a bad way.
_SITECUSTOMIZE = """
import glob, importlib.machinery, multiprocessing.util, os, signal, sys, time

class Breaking(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        fit = module.fit
        def broken(training, digits, recipe, **options):
            seed = None if "HEALED" in os.environ else recipe.seed
            if seed == 0:
                1 / 0
            if seed == 1:
                sys.exit(3)
            if seed == 5:
                training.optimizer.param_groups[0]["lr"] = 1e30
            if seed == 6 and "WAITING" in os.environ:
                while not glob.glob("sweep/seed=[!6]/metrics.jsonl"):
                    time.sleep(0.02)
            if seed == 6:  # parent of the server that forked this process
                os.kill(int(open(f"/proc/{os.getppid()}/stat").read().split()[3]), signal.SIGKILL)
            if seed in (2, 6):
                os.kill(os.getpid(), signal.SIGKILL)
            if seed == 7:
                multiprocessing.util.Finalize(None, time.sleep, args=(5,), exitpriority=1)
            if str(recipe.seed) in os.environ.get("WAITING", "").split(","):
                options["callbacks"] = [*options["callbacks"], Waiting(options["stop"])]
            fit(training, digits, recipe, **options)
        module.fit = broken
        from mnist_exp.training import Callback

        class Waiting(Callback):
            def __init__(self, stop):
                self.stop = stop

            def on_epoch(self, metrics):
                while metrics.epoch == 1 and not self.stop():
                    time.sleep(0.02)


class Finder:
    @staticmethod
    def find_spec(name, path, target=None):
        if name != "mnist_exp.experiment":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = Breaking(spec.loader.name, spec.loader.path)
        return spec

sys.meta_path.insert(0, Finder)
"""


def breaking(tmp_path: Path) -> str:
    """What PYTHONPATH must be for jobs to break."""
    (tmp_path / "break").mkdir()
    (tmp_path / "break" / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    return str(tmp_path / "break")


def start(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mnist_exp.cli.train", "-m", *arguments],
        cwd=tmp_path,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def rows(path: Path) -> dict[str, JobRecord]:
    return {job.directory: job for job in read_sweep(path / "sweep").jobs}


def assert_each_broken_job_ended_alone(path: Path) -> None:
    """What a sweep of ``BREAKING`` must say where every job has a process of its own."""
    jobs = rows(path)
    assert {name: (job.status, job.error) for name, job in jobs.items()} == {
        "seed=0": ("failed", "ZeroDivisionError: division by zero"),
        "seed=1": ("failed", "SystemExit: 3"),
        "seed=2": ("failed", "ProcessDied: its process was killed by SIGKILL, as Linux does when memory runs out"),
        "seed=3": ("completed", None),
        "seed=5": ("diverged", jobs["seed=5"].error),
        "seed=6": ("killed", "its process ended without recording why"),
    }


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
