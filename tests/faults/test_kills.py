"""A run or a sweep that is killed anywhere is finished by one command, with the same bits. ``make soak`` tries every place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faults.kills import NOT_KILLED, RECIPES, lost, whole
from warm_commands import SUPPORTED, WarmCommands

# Kills of each kind, evenly spread; most of those of a search are before its first job. Kills with launchers, whose processes
# take long to start, are in tests/sweeps/test_launchers.py.
KILLS = {
    "run, native backend": 13,
    "run, PyTorch backend": 13,
    "run, every regularizer, native backend": 10,
    "run, every regularizer, PyTorch backend": 10,
    "run, W&B offline": 2,
    "sweep": 7,
    "search with Optuna": 5,
}
pytestmark = pytest.mark.skipif(not SUPPORTED, reason="the processes are forked by a server that only Linux has")


@pytest.mark.parametrize("name", KILLS)
def test_kills_lose_nothing(name: str, warm_commands: WarmCommands, tmp_path: Path) -> None:
    recipe, train = RECIPES[name], warm_commands.bin / "mnist-train"
    kill_at = warm_commands.add("kill-at", Path(__file__).with_name("kill_at.py"))
    expected, changes = whole(recipe, kill_at, train, tmp_path / "whole", os.environ)
    wrong, killed = {}, 0
    end = changes // 3 if "search" in name else changes
    for number in range(2, end, max(1, end // KILLS[name])):
        problem = lost(recipe, number, kill_at, train, tmp_path / str(number), os.environ, expected)
        killed += problem != NOT_KILLED
        if problem not in {None, NOT_KILLED}:
            wrong[number] = problem
    assert not wrong
    assert killed >= KILLS[name] // 2, "the number of changes of a sweep depends on time"
