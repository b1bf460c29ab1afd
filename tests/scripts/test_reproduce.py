"""From run directories to the table of the reproduction: what counts as reproduced, and that nothing is lost on the way."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce.py"


@pytest.fixture
def reproduce(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script as a module that writes below the test's folder."""
    spec = importlib.util.spec_from_file_location("reproduce", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "reproduce", module)
    spec.loader.exec_module(module)
    document = (module.ROOT / "docs" / "reproduction.md").read_text()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "reproduction.md").write_text(document)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RUNS_CSV", tmp_path / "docs" / "results" / "reproduction.csv")
    monkeypatch.setattr(module, "CURVES_CSV", tmp_path / "docs" / "results" / "curves.csv")
    monkeypatch.setattr(module, "FIGURE", tmp_path / "docs" / "pictures" / "figure.png")
    return module


def test_verdicts(reproduce: ModuleType) -> None:
    claim = reproduce.Claim(61_706, *reproduce.digits("0.99", 0.005))
    assert reproduce.verdict(claim, 61_706, [0.991, 0.992, 0.990]) == "reproduced"
    assert reproduce.verdict(claim, 61_706, [0.970, 0.971, 0.972]) == "**not reproduced**: measured lower"
    assert reproduce.verdict(claim, 61_706, [0.9981, 0.9982, 0.9983]) == "**not reproduced**: measured higher"
    assert reproduce.verdict(claim, 44_426, [0.99, 0.99, 0.99]) == "parameter count is wrong; reproduced"
    assert reproduce.verdict(claim, 61_706, [0.99, 0.98]) == "fewer than three seeds: unable to say"
    assert reproduce.verdict(reproduce.Claim(None), 61_750, [0.99, 0.99]) == "no accuracy claimed"


def test_a_run_becomes_a_row_and_rows_from_elsewhere_stay(
    reproduce: ModuleType, mnist_train: Callable[..., int], small: list[str], tmp_path: Path
) -> None:
    elsewhere = dict.fromkeys(reproduce.COLUMNS, "0.5")
    elsewhere |= {"preset": "study_e/mlp", "seed": "4", "parameters": "68010"}
    reproduce.write_csv(reproduce.RUNS_CSV, [elsewhere])
    for seed in (0, 1, 2):
        run = ["experiment=study_b/lenet5", *small, f"seed={seed}", f"hydra.run.dir=runs/study_b/lenet5/{seed}"]
        assert mnist_train(*run) == 0
    (tmp_path / "runs" / "study_b" / "lenet5" / "0" / "run.json").stat()
    reproduce.gather(tmp_path / "runs")
    rows = reproduce.read_csv(reproduce.RUNS_CSV)
    assert [(row["preset"], row["seed"]) for row in rows] == [
        ("study_b/lenet5", "0"),
        ("study_b/lenet5", "1"),
        ("study_b/lenet5", "2"),
        ("study_e/mlp", "4"),
    ]
    assert tuple(rows[0]) == reproduce.COLUMNS
    assert len(reproduce.read_csv(reproduce.CURVES_CSV)) == 6
    reproduce.write_document()
    text = (tmp_path / "docs" / "reproduction.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| `study_b/lenet5` |"))
    assert "| 61,706 | 61,706 | 0.9909 |" in line
    assert "| 3 | **not reproduced**: measured lower |" in line
    assert "| `study_a/lenet5` | | | above 0.98 | not trained yet | 0 | | |" in text
    assert text.count("<!-- table -->") == 1
    assert "has 65,600 + 2,080 + 330 = 68,010." in text, "what people wrote stays"
    assert reproduce.FIGURE.stat().st_size > 10_000


def test_a_complete_run_is_not_trained_again(
    reproduce: ModuleType,
    mnist_train: Callable[..., int],
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert mnist_train(*small, "hydra.run.dir=runs/study_a/mlp/0") == 0
    commands: list[list[str]] = []
    monkeypatch.setattr(reproduce.subprocess, "run", lambda command, check: commands.append(command))
    for seed in (0, 1):
        reproduce.train("study_a/mlp", seed, tmp_path / "runs")
    (command,) = commands
    assert "experiment=study_a/mlp" in command
    assert "seed=1" in command
