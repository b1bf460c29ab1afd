"""A run or a sweep that is killed anywhere is finished by one command, with the same bits. ``make soak`` tries every place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faults.kills import NOT_KILLED, RECIPES, lost, whole
from warm_commands import SUPPORTED, WarmCommands

PLACES = 4  # of each recipe, besides the early ones


@pytest.mark.skipif(not SUPPORTED, reason="the processes are forked by a server that only Linux has")
@pytest.mark.parametrize("name", ["run", "sweep"])
def test_kills_lose_nothing(name: str, warm_commands: WarmCommands, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    kill_at = warm_commands.add("kill-at", Path(__file__).with_name("kill_at.py"))
    train = warm_commands.bin / "mnist-train"
    expected, changes = whole(recipe, kill_at, tmp_path / "whole", os.environ)
    assert expected
    # Storing what is to be done is where most steps lie that cannot be done again.
    early = range(2, min(changes // 3, 30), 9)
    late = range(changes // 3, changes, max(1, changes // PLACES))
    wrong, killed = {}, 0
    for number in [*early, *late]:
        problem = lost(recipe, number, kill_at, train, tmp_path / str(number), os.environ, expected)
        killed += problem != NOT_KILLED
        if problem not in {None, NOT_KILLED}:
            wrong[number] = problem
    assert not wrong
    assert killed >= PLACES
