"""The commands of docs/sweeps.md are commands: each composes, in order, with every job stored; searches train."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "sweeps.md"


def test_documented_commands(
    mnist_train: Callable[..., int], small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnist_exp.sweeps import launching

    run = launching._run
    blocks = re.findall(r"```bash\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 13
    few = ["model.hidden=[8,8],[16,16]", "seed=0"]
    for number, line in enumerate(lines):
        program, *arguments = shlex.split(line.removeprefix("python scripts/slurm.py "))  # tested with Slurm itself
        assert program == "mnist-train"
        searches = "search" in line or "optuna" in line
        monkeypatch.setattr(launching, "_run", run if searches else lambda *arguments: None)
        size = ["data.val_size=500"] if searches else []
        size += few if "sweep=mlp_width" in line and "seed" not in line and number else []  # once whole is enough
        own = [] if "sweep.resume" in line else [*small, "quiet=true", *size]
        assert mnist_train(*arguments, *own) == 0, line
