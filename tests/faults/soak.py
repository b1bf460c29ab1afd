"""Kill each recipe at every change of a file, and print the results: tried, survived, lost for each kind.

python tests/faults/soak.py [EVERY [SECONDS]]    every EVERYth change only (1), at most SECONDS for each kind (86400)
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from faults.kills import NOT_KILLED, RECIPES, lost, whole  # noqa: E402  # needs the line above
from warm_commands import WarmCommands  # noqa: E402  # also needs it


def main(every: int, seconds: float) -> int:
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
                folder = Path(base) / name.replace(", ", "-")
                folder.mkdir()
                expected, changes = whole(recipe, kill_at, folder / "whole", os.environ)
                tried, wrong, end = 0, {}, time.monotonic() + seconds
                for number in range(1, changes + 1, every):
                    if time.monotonic() > end:
                        break
                    problem = lost(recipe, number, kill_at, train, folder / str(number), os.environ, expected)
                    tried += problem != NOT_KILLED
                    if problem not in {None, NOT_KILLED}:
                        wrong[number] = problem
                failures += len(wrong)
                print(f"{name} | {tried} | {tried - len(wrong)} | {len(wrong)}", flush=True)
                for number, problem in wrong.items():
                    print(f"  change {number} of {changes}: {problem}", flush=True)
    return failures


if __name__ == "__main__":
    given = [float(word) for word in sys.argv[1:]]
    sys.exit(bool(main(int(given[0]) if given else 1, given[1] if len(given) > 1 else 86400.0)))
