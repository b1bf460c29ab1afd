"""Commands that start at once in one directory: one runs, the others get one line, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from faults.kills import RUN, SEARCH, SWEEP
from warm_commands import WarmCommands

from mnist_exp.runs import find_runs, read_run

STARTS = 5
REFUSALS = ("is in use by another process", "already holds a completed run")


def at_once(train: Path, arguments: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Exit status and standard error of each of ``STARTS`` commands."""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    started = [subprocess.Popen([train, *arguments], text=True, env=os.environ, **pipes) for _ in range(STARTS)]
    return [(process.returncode, err.splitlines()) for process in started for _, err in [process.communicate()]]


@pytest.mark.parametrize(
    ("arguments", "folder", "runs"),
    [(RUN, "run", 1), (SWEEP, "sweep", 2), (SEARCH, "sweep", 3)],
    ids=["run", "sweep", "search"],
)
def test_one_runs(arguments: Sequence[str], folder: str, runs: int, warm_commands: WarmCommands) -> None:
    ended = at_once(warm_commands.bin / "mnist-train", arguments)
    assert {status for status, _ in ended} <= {0, 2}
    assert sum(status == 0 for status, _ in ended) >= 1  # a sweep that starts late finds its jobs complete
    assert folder == "sweep" or sum(status == 0 for status, _ in ended) == 1
    for status, lines in ended:
        if status:
            (line,) = lines
            assert any(refusal in line for refusal in REFUSALS)
    statuses = [read_run(path).status for path in find_runs(folder)]
    assert len(statuses) == runs, "a search makes no trial twice"
    assert set(statuses) <= {"completed", "pruned"}
