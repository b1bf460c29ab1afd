"""From run directories to the table of the reproduction: what counts as reproduced, and that nothing is lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import campaign as campaigns
import pytest
import reproduce


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], campaigns.Campaign]:
    """The script's campaign, read from and written to the test's folder."""
    document = reproduce.DOCUMENT.read_text()
    monkeypatch.setattr(campaigns, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(reproduce, "CURVES_CSV", tmp_path / "results" / "curves.csv")
    monkeypatch.setattr(reproduce, "FIGURE", tmp_path / "figures" / "figure.png")
    monkeypatch.setattr(reproduce, "DOCUMENT", tmp_path / "reproduction.md")
    reproduce.DOCUMENT.write_text(document)
    return reproduce.studies


def test_verdicts() -> None:
    claim = reproduce.Claim(61_706, *reproduce.digits("0.99", 0.005))
    assert reproduce.verdict(claim, 61_706, [0.991, 0.992, 0.990]) == "reproduced"
    assert reproduce.verdict(claim, 61_706, [0.970, 0.971, 0.972]) == "**not reproduced**: measured lower"
    assert reproduce.verdict(claim, 61_706, [0.9981, 0.9982, 0.9983]) == "**not reproduced**: measured higher"
    assert reproduce.verdict(claim, 44_426, [0.99, 0.99, 0.99]) == "parameter count is wrong; reproduced"
    assert reproduce.verdict(claim, 61_706, [0.99, 0.98]) == "fewer than three seeds: unable to say"
    assert reproduce.verdict(reproduce.Claim(None), 61_750, [0.99, 0.99]) == "no accuracy claimed"


def test_a_run_becomes_a_row_and_rows_from_elsewhere_stay(
    studies: Callable[[], campaigns.Campaign], mnist_train: Callable[..., int], small: list[str], tmp_path: Path
) -> None:
    elsewhere = {"arm": "experiment=study_e/mlp", "seed": "4", "parameters": "68010", "test_accuracy": "0.975"}
    campaigns.write_csv(studies().csv, [{**elsewhere, "train_seconds": "5.0"}])
    for seed in (0, 1, 2):
        run = ["experiment=study_b/lenet5", *small, f"seed={seed}", f"hydra.run.dir=runs/{seed}"]
        assert mnist_train(*run) == 0
    campaign = studies()
    reproduce.gather_curves(campaign.gather(tmp_path / "runs"))
    assert list(studies().rows) == [
        ("experiment=study_b/lenet5", 0),
        ("experiment=study_b/lenet5", 1),
        ("experiment=study_b/lenet5", 2),
        ("experiment=study_e/mlp", 4),
    ]
    assert len(campaigns.read_csv(reproduce.CURVES_CSV)) == 6
    reproduce.write_document(studies())
    text = reproduce.DOCUMENT.read_text()
    line = next(line for line in text.splitlines() if line.startswith("| `study_b/lenet5` |"))
    assert "| 61,706 | 61,706 | 0.9909 |" in line
    assert "| 3 | **not reproduced**: measured lower |" in line
    assert "| `study_a/lenet5` | | | above 0.98 | not trained yet | 0 | | |" in text
    assert text.count("<!-- table -->") == 1
    assert "has 65,600 + 2,080 + 330 = 68,010." in text, "what people wrote stays"
    assert reproduce.FIGURE.stat().st_size > 10_000
