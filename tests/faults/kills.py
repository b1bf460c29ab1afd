"""Kill a run or a sweep at its Nth change of a file, finish it by the command that a user would type, and compare."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NOT_KILLED = "not killed"  # the number of changes of a sweep depends on time, so the last ones are not always reached


@dataclass(frozen=True)
class Recipe:
    """A command to kill.

    Attributes:
        arguments: of ``mnist-train``.
        folder: of the run or the sweep.
    """

    arguments: tuple[str, ...]
    folder: str

    @property
    def is_sweep(self) -> bool:
        return "-m" in self.arguments


SMALL = (
    *("data=mnist5k", "data.limit=64", "trainer.epochs=2", "trainer.batch_size=16", "trainer.threads=1"),
    *("trainer.device=cpu", "logger=none", "quiet=true", "name=faults"),
)
RECIPES = {
    "run": Recipe((*SMALL, "model=mlp", "hydra.run.dir=run"), "run"),
    "run, regularized": Recipe((*SMALL, "model=lenet5", "regularization=dropout", "hydra.run.dir=run"), "run"),
    "sweep": Recipe(("-m", *SMALL, "model=mlp", "seed=0,1", "hydra.sweep.dir=sweep"), "sweep"),
}


def execute(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> int:
    """Run a command and return its exit status; its output is added to ``output.txt`` in ``folder``."""
    with (folder / "output.txt").open("ab") as output:
        return subprocess.run(
            command, cwd=folder, stdout=output, stderr=output, env=dict(environment), check=False
        ).returncode


def content(path: Path) -> dict[str, Any]:
    """Results of the runs at and directly below ``path``, by name: status, metrics without times, bytes of the logits."""
    found = {}
    for record in [*path.glob("run.json"), *path.glob("*/run.json")]:
        run = record.parent
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        with np.load(run / "predictions.npz", allow_pickle=False) as arrays:
            logits = arrays["logits"].tobytes()
        status = json.loads(record.read_text())["status"]
        figures = [{key: value for key, value in row.items() if "second" not in key} for row in rows]
        found[run.name] = (status, figures, logits)
    return found


def whole(recipe: Recipe, kill_at: Path, folder: Path, environment: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    """The results of the recipe without a kill, and the number of its changes of files."""
    folder.mkdir()
    status = execute([kill_at, "0", *recipe.arguments], folder, environment)
    assert status == 0, (folder / "output.txt").read_text()
    return content(folder / recipe.folder), int((folder / "changes").read_text())


def lost(
    recipe: Recipe, number: int, kill_at: Path, train: Path, folder: Path, environment: Mapping[str, str], whole: Any
) -> str | None:
    """Kill at change ``number``, finish, and compare; returns the problem, or None."""
    folder.mkdir()
    status = execute([kill_at, str(number), *recipe.arguments], folder, environment)
    if status != -signal.SIGKILL:
        return NOT_KILLED if status == 0 else f"not killed, but ended with {status}"
    began = not recipe.is_sweep and (folder / recipe.folder / "run.json").exists()
    again = [f"resume={recipe.folder}"] if began else list(recipe.arguments)
    status = execute([train, *again], folder, environment)
    output = (folder / "output.txt").read_text()
    if status and not (status == 2 and ("completed run" in output)):
        return f"{' '.join(again[:1])} ended with {status}: {output[-300:]}"
    if content(folder / recipe.folder) != whole:
        return "other results"
    if left := [str(path) for path in folder.rglob(".*.????????????") if path.is_file()]:
        return f"left behind: {left[0]}"
    return None
