"""Kill each recipe at every change of a file, and print the results: tried, survived, lost for each kind.

python tests/faults/soak.py [EVERY [SECONDS [NAME...]]]

EVERYth change only (1), at most SECONDS for each kind (86400), only the kinds whose name has a NAME in it (all).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from faults.kills import NOT_KILLED, RECIPES, Recipe, lost, whole  # noqa: E402  # needs the line above
from one_node_slurm import one_node_slurm, why_not  # noqa: E402  # also needs it
from warm_commands import WarmCommands  # noqa: E402  # also needs it


def main(every: int, seconds: float, names: Sequence[str]) -> int:
    """Return the number of kills after which something was lost."""
    failures = 0
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as base:
        os.environ["MNIST_EXP_CACHE"] = f"{base}/cache"
        with WarmCommands(Path(base) / "w") as commands:
            kill_at = commands.add("kill-at", HERE / "kill_at.py")
            train = commands.add("mnist-train", Path(sys.executable).with_name("mnist-train"))
            print("kind | tried | survived | lost", flush=True)
            for name, recipe in RECIPES.items():
                if names and not any(part in name for part in names):
                    continue
                if reason := left_out(recipe):
                    print(f"{name} | left out: {reason}", flush=True)
                    continue
                folder = Path(base) / name.replace(", ", "-").replace(" ", "-")
                folder.mkdir()
                with one_node_slurm() if recipe.needs == "slurm" else nullcontext(os.environ) as environment:
                    failures += try_all(name, recipe, every, seconds, kill_at, train, folder, environment)
    return failures


def left_out(recipe: Recipe) -> str | None:
    """Why the recipe cannot be tried here; None if it can."""
    if recipe.needs == "slurm":
        return why_not()
    return None if find_spec(recipe.needs) else f"{recipe.needs} is not installed"


def try_all(
    name: str,
    recipe: Recipe,
    every: int,
    seconds: float,
    kill_at: Path,
    train: Path,
    folder: Path,
    environment: Mapping[str, str],
) -> int:
    """Try a recipe and print its row; returns the number of kills after which something was lost."""
    expected, changes = whole(recipe, kill_at, train, folder / "whole", environment)
    tried, wrong, end = 0, {}, time.monotonic() + seconds
    for number in range(1, changes + 1, every):
        if time.monotonic() > end:
            break
        problem = lost(recipe, number, kill_at, train, folder / str(number), environment, expected)
        tried += problem != NOT_KILLED
        if problem not in {None, NOT_KILLED}:
            wrong[number] = problem
    print(f"{name} | {tried} | {tried - len(wrong)} | {len(wrong)}", flush=True)
    for number, problem in wrong.items():
        print(f"  change {number} of {changes}: {problem}", flush=True)
    return len(wrong)


if __name__ == "__main__":
    given = sys.argv[1:]
    each = int(given[0]) if given else 1
    longest = float(given[1]) if len(given) > 1 else 86400.0
    sys.exit(bool(main(each, longest, given[2:])))
