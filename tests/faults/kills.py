"""Kill a run or a sweep at its Nth change of a file, finish it by the command that a user would type, and compare."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sweep_processes import processes_in

from mnist_exp.runs.files import TEMPORARY
from mnist_exp.training import load_checkpoint

NOT_KILLED = "not killed"  # the number of changes of a sweep depends on time, so the last ones are not always reached
PATIENCE = 300  # seconds after which a process that still runs counts as left behind
JOBS = 8  # of a sweep whose jobs are killed
# Two time limits of Ray, which cannot be changed, are too short on a busy machine: see docs/sweeps.md.
RAY_DID_NOT_START = "Exception: The current node timed out during startup"
ATTEMPTS = 5  # to start Ray


@dataclass(frozen=True)
class Recipe:
    """A command to kill.

    Attributes:
        arguments: of ``mnist-train``.
        which: ``command`` or ``jobs``: what is killed; see ``kill_at.py``. For ``jobs`` there must be ``JOBS`` seeds.
        first: arguments of a run that must exist before, in the parent folder.
        needs: a module, or ``slurm``, without which the recipe is left out.
        times: number of kills: the second at half as many changes of the command that finishes, the third at a third.
    """

    arguments: tuple[str, ...]
    which: str = "command"
    first: tuple[str, ...] = ()
    needs: str = "hydra"
    times: int = 1

    @property
    def is_sweep(self) -> bool:
        return "-m" in self.arguments

    @property
    def kills(self) -> int:
        """Number of changes at which one try kills: each job has its own."""
        return JOBS if self.which == "jobs" else 1

    @property
    def folder(self) -> str:
        """Of the run or the sweep."""
        return next(word.partition("=")[2] for word in self.arguments if word.startswith("hydra."))


SMALL = (
    *("data=mnist5k", "data.limit=64", "trainer.epochs=2", "trainer.batch_size=16", "trainer.threads=1"),
    *("trainer.device=cpu", "logger=none", "quiet=true", "name=faults"),
)
MLP = (*SMALL, "model=mlp", "model.hidden=[16]")
RUN = ("hydra.run.dir=run", *MLP)
SWEEP = ("-m", "hydra.sweep.dir=sweep", *MLP, "seed=0,1")
TEACHER = ("hydra.run.dir=teacher", *MLP, "data.val_size=100", "trainer.epochs=1")
REGULARIZED = (
    *("hydra.run.dir=run", *SMALL, "data.val_size=100", "model=lenet5", "optimizer=adamw", "trainer.selection=best"),
    *("regularization=full", "regularization.gradient_clipping=1", "regularization.early_stopping=1"),
    *("regularization.decay_all=true", "optimizer.lr=0.05", "trainer.epochs=3"),
    "regularization.distillation.teachers=[../teacher]",
)
SEARCH = (
    *("-m", "hydra.sweep.dir=sweep", *MLP, "data.val_size=100", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3"),
    *("hydra.sweeper.startup_trials=1", "optimizer.lr=tag(log,interval(0.001,0.1))", "model.hidden=[8],[16]"),
)
MORE = (*SWEEP[:-1], f"seed={','.join(str(seed) for seed in range(JOBS))}")
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
SUBMITIT = ("hydra/launcher=submitit_local",)
SLURM = ("hydra/launcher=submitit_slurm",)
RAY = ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2")
RECIPES = {
    "run, native backend": Recipe((*RUN, "trainer.backend=native")),
    "run, PyTorch backend": Recipe((*RUN, "trainer.backend=torch")),
    "run, every regularizer, native backend": Recipe((*REGULARIZED, "trainer.backend=native"), first=TEACHER),
    "run, every regularizer, PyTorch backend": Recipe((*REGULARIZED, "trainer.backend=torch"), first=TEACHER),
    "run, killed twice": Recipe(RUN, times=2),
    "run, every regularizer, killed three times": Recipe(REGULARIZED, first=TEACHER, times=3),
    "run, W&B offline": Recipe((*RUN, "logger=wandb", "logger.mode=offline")),
    "sweep": Recipe(SWEEP),
    "sweep, killed twice": Recipe(SWEEP, times=2),
    "sweep, W&B offline": Recipe((*SWEEP, "logger=wandb", "logger.mode=offline")),
    "search with Optuna": Recipe(SEARCH),
    "sweep, joblib": Recipe((*SWEEP, *JOBLIB)),
    "sweep, joblib, the jobs": Recipe((*MORE, *JOBLIB), "jobs"),
    "sweep, submitit": Recipe((*SWEEP, *SUBMITIT)),
    "sweep, submitit, the jobs": Recipe((*MORE, *SUBMITIT), "jobs"),
    "sweep, Slurm": Recipe((*SWEEP, *SLURM), needs="slurm"),
    "sweep, Slurm, the jobs": Recipe((*MORE, *SLURM), "jobs", needs="slurm"),
    "sweep, Ray": Recipe((*SWEEP, *RAY), needs="ray"),
    "sweep, Ray, the jobs": Recipe((*MORE, *RAY), "jobs", needs="ray"),
}


def execute(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> int:
    """Run a command and return its exit status; its output is added to ``output.txt`` in ``folder``.

    If Ray did not start, the command is repeated, as the user would do.
    """
    path = folder / "output.txt"
    for _ in range(ATTEMPTS):
        with path.open("ab") as output:
            before = output.tell()
            status = subprocess.run(
                command, cwd=folder, stdout=output, stderr=output, env=dict(environment), check=False
            ).returncode
        if RAY_DID_NOT_START.encode() not in path.read_bytes()[before:]:
            break
    return status


def content(path: Path) -> dict[str, Any]:
    """Results of the runs at and directly below ``path``, by name: status, metrics without times, bytes of the final weights;
    and the trials of a search."""
    found: dict[str, Any] = {}
    for record in [*path.glob("run.json"), *path.glob("*/run.json")]:
        run = record.parent
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        status, weights = json.loads(record.read_text())["status"], None
        if status != "pruned":
            checkpoint = load_checkpoint(run / "checkpoints" / "last.pt", torch.device("cpu"))
            weights = {name: tensor.numpy().tobytes() for name, tensor in checkpoint["model"].items()}
        figures = [{key: value for key, value in row.items() if "second" not in key} for row in rows]
        found[run.name] = (status, figures, weights)
    if (path / "study.db").exists():
        database = sqlite3.connect(path / "study.db")
        trials = "select number, state, value from trials left join trial_values using (trial_id) order by number"
        parameters = (
            "select number, param_name, param_value from trials join trial_params using (trial_id) order by 1, 2"
        )
        found["study.db"] = [database.execute(query).fetchall() for query in (trials, parameters)]
        database.close()
    return found


def whole(
    recipe: Recipe, kill_at: Path, train: Path, folder: Path, environment: Mapping[str, str]
) -> tuple[dict[str, Any], int]:
    """The results of the recipe without a kill, and the number of its changes of files."""
    folder.mkdir()
    if recipe.first:
        assert execute([train, *recipe.first], folder.parent, environment) == 0
    status = execute([kill_at, recipe.which, "0", *recipe.arguments], folder, environment)
    assert status == 0, (folder / "output.txt").read_text()
    return content(folder / recipe.folder), int((folder / "changes").read_text())


def lost(
    recipe: Recipe, number: int, kill_at: Path, train: Path, folder: Path, environment: Mapping[str, str], whole: Any
) -> str | None:
    """Kill at change ``number``, finish, and compare; returns the problem, or None. The first job is killed at ``number``."""
    folder.mkdir()
    again = list(recipe.arguments)
    for time_of_kill in range(1, recipe.times + 1):
        at = str(1 + (number - 1) // time_of_kill)
        status = execute([kill_at, recipe.which, at, *again], folder, environment)
        if status == 0 and time_of_kill == 1:
            return NOT_KILLED
        killed = status == (1 if recipe.which == "jobs" else -signal.SIGKILL)
        if not (killed or status == 0 or _refused_as_complete(status, folder)):
            return f"not killed, but ended with {status}: {(folder / 'output.txt').read_text()[-300:]}"
        if left := _still_running(folder):
            return f"still running after the kill: {left[0]}"
        began = not recipe.is_sweep and (folder / recipe.folder / "run.json").exists()
        again = [f"resume={recipe.folder}"] if began else list(recipe.arguments)
    status = execute([train, *again], folder, environment)
    if status and not _refused_as_complete(status, folder):
        return f"{' '.join(again[:1])} ended with {status}: {(folder / 'output.txt').read_text()[-300:]}"
    found = content(folder / recipe.folder)
    if different := [name for name in sorted({*found, *whole}) if found.get(name) != whole.get(name)]:
        return f"other results: {', '.join(different)}"
    if left := [str(path) for path in folder.rglob(".*") if path.is_file() and TEMPORARY.fullmatch(path.name)]:
        return f"left behind: {left[0]}"
    if left := _still_running(folder):
        return f"still running at the end: {left[0]}"
    return None


def _refused_as_complete(status: int, folder: Path) -> bool:
    return status == 2 and "completed run" in (folder / "output.txt").read_text()


def _still_running(folder: Path) -> list[str]:
    """The processes in the folder that do not end by themselves within ``PATIENCE``; those are killed."""
    deadline = time.monotonic() + PATIENCE
    while (left := processes_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return list(left.values())
