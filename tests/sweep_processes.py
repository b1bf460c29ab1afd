"""Sweeps whose command and jobs run in separate processes, some of which are made to fail."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_exp.runs.sweep import JobRecord, read_sweep

BREAKING = "seed=0,2,3,6"  # one job without a failure, and one for each way to end in one
# Makes the jobs with some seeds fail, in any process. Seed 6 also kills the launcher's process once another job has begun.
# Seed 7 takes long to exit after its work is done. Jobs whose seeds are in WAITING wait after their first epoch until they
# get a request to stop. With HEALED, no job fails.
_SITECUSTOMIZE = """
import glob, importlib.machinery, multiprocessing.util, os, signal, sys, time

if "forkserver" not in " ".join(sys.orig_argv):
    os.environ["WORKER"] = str(os.getpid())  # of the launcher

class Breaking(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        self.patch(module)

    def patch(self, module):
        fit = module.fit
        def broken(training, digits, recipe, **options):
            seed = None if "HEALED" in os.environ else recipe.seed
            if seed == 0:
                1 / 0
            if seed == 1:
                sys.exit(3)
            if seed == 6 and "WAITING" in os.environ:
                while not glob.glob("sweep/seed=[!6]/checkpoints/last.pt"):
                    time.sleep(0.02)
            if seed == 6:
                os.kill(int(os.environ["WORKER"]), signal.SIGKILL)
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

if loaded := sys.modules.get("mnist_exp.experiment"):  # in a process of the warm server
    Breaking(loaded.__spec__.name, loaded.__spec__.origin).patch(loaded)
else:
    sys.meta_path.insert(0, Finder)
"""


def breaking(tmp_path: Path) -> str:
    """The value of PYTHONPATH that makes the jobs fail."""
    (tmp_path / "break").mkdir()
    (tmp_path / "break" / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    return str(tmp_path / "break")


def start(
    tmp_path: Path, *arguments: str, python: Path | str = sys.executable, **environment: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, "-m", "mnist_exp.cli.train", "-m", *arguments],
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
    """Check the table of a sweep of ``BREAKING`` in which every job has its own process."""
    jobs = rows(path)
    assert {name: (job.status, job.error) for name, job in jobs.items()} == {
        "seed=0": ("failed", "ZeroDivisionError: division by zero"),
        "seed=2": ("failed", "ProcessDied: its process was killed by SIGKILL, as Linux does when memory runs out"),
        "seed=3": ("completed", None),
        "seed=6": ("killed", "its process ended without recording why"),
    }


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes_in(folder: Path) -> dict[int, str]:
    """Command lines of the other processes whose working directory is ``folder`` or inside it, by process id. Linux only."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            is_other = entry.name.isdigit() and int(entry.name) != os.getpid()
            if is_other and Path(os.readlink(entry / "cwd")).is_relative_to(folder):
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it ended, or belongs to another user
    return found
