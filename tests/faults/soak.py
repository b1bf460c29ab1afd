"""Kill each recipe at every change of a file, and print the results: tried, survived, lost for each kind.

python tests/faults/soak.py [SKIP [SECONDS [NAME...]]]

At most SECONDS for each kind (86400), only the kinds whose name has a NAME in it (all). The order of the tries is always the
same, and the first ones are spread evenly; SKIP of them are left out (0), because an earlier command tried them. A try kills
at one change, or each of eight jobs at its own change. The folder of a try that lost something is kept; if this command is
stopped, everything is kept.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from faults.kills import NOT_KILLED, RAY_DID_NOT_START, RECIPES, Recipe, lost, whole  # noqa: E402  # the line above lets Python find it
from one_node_slurm import one_node_slurm, why_not  # noqa: E402  # also needs it
from warm_commands import WarmCommands  # noqa: E402  # also needs it

GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 are spread evenly, wherever one stops


def main(skip: int, seconds: float, names: Sequence[str]) -> int:
    """Return the number of kills after which something was lost."""
    failures = 0
    base = Path(tempfile.mkdtemp(prefix="soak-"))
    os.environ.update(OMP_NUM_THREADS="1", MNIST_EXP_CACHE=str(base / "cache"), RAY_TMPDIR=str(base / "r"))
    # Ray gives its workers the niceness 15 by default: on a busy machine they would get no processor time.
    os.environ.update(RAY_worker_niceness="0", ORDINARY_CHILDREN="1")
    commands = WarmCommands(base / "w", "bin", os.getpid())
    kill_at = commands.add("kill-at", HERE / "kill_at.py")
    train = commands.add("mnist-train", Path(sys.executable).with_name("mnist-train"))
    print("kind | tried | survived | lost", flush=True)
    for name, recipe in RECIPES.items():
        if names and not any(part in name for part in names):
            continue
        if reason := left_out(recipe):
            print(f"{name} | left out: {reason}", flush=True)
            continue
        folder = base / name.replace(", ", "-").replace(" ", "-")
        folder.mkdir()
        with one_node_slurm() if recipe.needs == "slurm" else nullcontext(os.environ) as environment:
            failures += try_all(name, recipe, skip, seconds, kill_at, train, folder, environment)
    if not failures:
        shutil.rmtree(base)
    return failures


def left_out(recipe: Recipe) -> str | None:
    """Why the recipe cannot be tried here; None if it can."""
    if recipe.needs == "slurm":
        return why_not()
    return None if find_spec(recipe.needs) else f"{recipe.needs} is not installed"


def try_all(
    name: str,
    recipe: Recipe,
    skip: int,
    seconds: float,
    kill_at: Path,
    train: Path,
    folder: Path,
    environment: Mapping[str, str],
) -> int:
    """Try a recipe, print each loss and the row; returns the number of kills after which something was lost."""
    expected, changes = whole(recipe, kill_at, train, folder / "whole", environment)
    tried, wrong, not_started, end = 0, 0, 0, time.monotonic() + seconds
    for number in sorted(range(1, changes + 1, recipe.kills), key=lambda change: change * GOLDEN % 1)[skip:]:
        if time.monotonic() > end:
            break
        place, of_ray = folder / str(number), Path(environment["RAY_TMPDIR"])
        problem = lost(recipe, number, kill_at, train, place, environment, expected)
        not_started += (place / "output.txt").read_text().count(RAY_DID_NOT_START)
        tried += 0 if problem == NOT_KILLED else min(recipe.kills, changes + 1 - number)
        if problem in {None, NOT_KILLED}:
            shutil.rmtree(place)
            shutil.rmtree(of_ray, ignore_errors=True)
        else:
            wrong += 1
            if of_ray.exists():
                of_ray.rename(place / "ray")
            print(f"  {name}, change {number} of {changes}, kept in {place}: {problem}", flush=True)
    print(f"{name} | {tried} | {tried - wrong} | {wrong}", flush=True)
    if not_started:
        print(f"  commands that were repeated because Ray did not start: {not_started}", flush=True)
    return wrong


if __name__ == "__main__":
    given = sys.argv[1:]
    first = int(given[0]) if given else 0
    longest = float(given[1]) if len(given) > 1 else 86400.0
    sys.exit(bool(main(first, longest, given[2:])))
