"""Campaigns: arms times seeds become sweeps, runs become rows, rows become documents, and nothing is trained twice."""

from __future__ import annotations

import ast
import errno
import importlib
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import campaign as campaigns
import pytest
import records
import regularization
import scaling
from synthetic_runs import write_run

from mnist_exp.cli.ending import exit_status
from mnist_exp.runs.sweep import Until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> campaigns.Campaign:
    monkeypatch.setattr(campaigns, "RESULTS", tmp_path / "results")
    grids = [
        campaigns.Grid("model.hidden", ("[8,8]", "[9]"), ("model=mlp",)),
        campaigns.Grid("model", ("mlp",), first_seed=5),
    ]
    return campaigns.Campaign("tiny", grids)


def test_what_is_missing_is_trained_as_sweeps_and_kept(
    campaign: campaigns.Campaign, small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert campaign.arms == ["model=mlp model.hidden=[8,8]", "model=mlp model.hidden=[9]", "model=mlp"]
    campaign.train(dict.fromkeys(campaign.arms[:2], 2), tmp_path / "runs, lr=0.1 (1)", small)
    assert list(campaign.rows) == [(arm, seed) for arm in campaign.arms[:2] for seed in (0, 1)]
    assert campaign.figures("model=mlp model.hidden=[9]", "parameters") == {0: 7165.0, 1: 7165.0}
    again = campaigns.Campaign("tiny", campaign.grids)
    assert again.rows == campaign.rows, "read back from the file"
    assert "4 jobs" in capfd.readouterr().out
    again.train(dict.fromkeys(campaign.arms, 1), tmp_path / "runs, lr=0.1 (1)", small)
    assert "1 job" in capfd.readouterr().out, "only the arm that had no row"
    assert [key for key in again.rows if key[0] == "model=mlp"] == [("model=mlp", 5)]


def test_a_mistake_ends_the_campaign(
    campaign: campaigns.Campaign, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        campaign.train({"model=mlp": 1}, tmp_path / "runs", ["trainer.epochz=1"])
    assert exit_.value.code == 2
    assert "trainer.epochs" in capfd.readouterr().err


FIGURES = {
    "regularization": "regularization.png",
    "scaling": "scaling.png",
    "records": None,
}


@pytest.mark.parametrize(("name", "figure"), FIGURES.items())
def test_documents_say_what_the_results_say(
    name: str, figure: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script: ModuleType = importlib.import_module(name)
    committed = script.DOCUMENT.read_text(encoding="utf-8")
    monkeypatch.setattr(script, "DOCUMENT", tmp_path / "document.md")
    monkeypatch.setattr(campaigns, "write_csv", lambda path, rows: None)
    monkeypatch.setattr(sys, "argv", [name, "--document", f"--runs={tmp_path}"])
    script.DOCUMENT.write_text(committed, encoding="utf-8")
    if figure is not None:
        monkeypatch.setattr(script, "FIGURE", tmp_path / "figure.png")
    script.main()
    assert script.DOCUMENT.read_text(encoding="utf-8") == committed
    if figure is not None:
        assert (tmp_path / "figure.png").stat().st_size > 10_000
        assert f"figures/{figure}" in committed
        assert (ROOT / "docs" / "figures" / figure).exists()


def test_what_was_tried_on_validation_images(
    mnist_train: Callable[..., int], small: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(records, "TRIED_CSV", tmp_path / "tried.csv")
    shared = [*small, "data.val_size=80", "seed=3"]
    assert mnist_train(*shared, "name=mlp.with_momentum", "hydra.run.dir=runs/1", "optimizer.momentum=0.8") == 0
    assert mnist_train(*small, "name=mlp.chosen_on_test", "hydra.run.dir=runs/2") == 0
    records.gather_tried(tmp_path / "runs")
    (row,) = campaigns.read_csv(tmp_path / "tried.csv")
    assert (row["name"], row["seed"]) == ("mlp.with_momentum", "3")
    assert "data.val_size=80 optimizer.momentum=0.8" in row["overrides"]
    assert "seed" not in row["overrides"]
    *_, line = records.tried("mlp")
    assert re.fullmatch(r"\| with momentum \| 2 \| 1 \| \d+\.\d\d % \| \d\.\d{4} \|", line)


def test_power_law() -> None:
    sizes = [100.0, 1_000.0, 10_000.0, 100_000.0]
    exact = scaling.power_law(sizes, [30 * size**-0.5 for size in sizes])
    assert (exact.exponent, exact.factor, exact.misfit) == pytest.approx((0.5, 30, 1))
    assert exact.interval.high - exact.interval.low == pytest.approx(0, abs=1e-9)
    # A factor of e^(+-1/10) around the line, by hand: slope -0.5 - 0.2 / (5 ln 10), residuals (-1, 3, -3, 1) * 0.04 ... 0.12.
    bent = scaling.power_law(sizes, [30 * size**-0.5 * math.exp(0.1 * (-1) ** k) for k, size in enumerate(sizes)])
    residuals, spread = [0.04, -0.12, 0.12, -0.04], math.log(10) * math.sqrt(5)
    error = math.sqrt(sum(each**2 for each in residuals) / 2) / spread
    assert bent.exponent == pytest.approx(0.5 + 0.2 / (5 * math.log(10)))
    assert bent.misfit == pytest.approx(math.exp(0.12))
    assert bent.interval.high - bent.interval.low == pytest.approx(2 * 4.302653 * error)  # t of 2 degrees of freedom


def test_an_arm_that_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "scaling.py"), "--only", "resnet", "--runs", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "--only resnet fits none of: model=lenet5" in ended.stderr


def test_regularization_is_tuned_and_then_settled(
    small: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(campaigns, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(regularization, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(regularization, "SPACES", {name: regularization.SPACES[name] for name in ("none", "dropout")})
    monkeypatch.setattr(regularization, "TRIALS", 2)
    monkeypatch.setattr(regularization, "UNTIL", Until(points=50, max_seeds=5, first=3, planned=5))
    monkeypatch.setattr(regularization, "FIGURE", tmp_path / "figure.png")
    monkeypatch.setattr(regularization, "DOCUMENT", tmp_path / "document.md")
    tables = "".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in regularization.SCHEDULES)
    regularization.DOCUMENT.write_text(tables)
    short = [*(word for word in small if word != "logger=none"), "trainer.epochs=1", "data.val_size=100"]
    monkeypatch.setattr(
        sys, "argv", ["regularization", "--schedule", "one_cycle", f"--runs={tmp_path / 'runs'}", *short]
    )
    regularization.main()
    document = regularization.DOCUMENT.read_text()
    assert re.search(r"\| none \| lr 0\.\d+ \| \d+\.\d\d % \| 3 \| .* ± ", document)
    assert re.search(r"\| dropout \| lr 0\.\d+, dropout 0\.\d+ \| .* \| 3 \| .* \| settled \|", document)
    trials = campaigns.read_csv(tmp_path / "results" / "regularization_tuned.csv")
    assert [(line["technique"], line["completed"]) for line in trials] == [("none", "2"), ("dropout", "2")]
    runs = campaigns.read_csv(tmp_path / "results" / "regularization_settled.csv")
    assert [line["seed"] for line in runs] == ["10", "11", "12"] * 2
    capfd.readouterr()
    regularization.main()
    assert "job" not in capfd.readouterr().out, "nothing is trained again"


def test_an_open_difference_gets_more_seeds_and_so_does_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(campaigns, "RESULTS", tmp_path / "results")
    campaign = regularization.settling()
    for technique in regularization.SPACES:
        for seed in range(10, 15):
            accuracy = (
                0.9 + 0.001 * seed + {"none": 0, "ema": 0.01 + 0.0001 * (seed % 3)}.get(technique, 0.03 * (seed % 2))
            )
            campaign.rows[regularization.arm("constant", technique), seed] = {"test_accuracy": str(accuracy)}
    numbers = regularization.wanted(campaign, "constant")
    assert {arm for arm, number in numbers.items() if number == 5} == {"experiment=constant/ema"}
    assert set(numbers.values()) == {5, 8}


SCRIPTS = Path(campaigns.__file__).parent


@pytest.fixture
def trained_run(tmp_path: Path, composed: Callable[..., dict[str, Any]]) -> Path:
    run = write_run(tmp_path / "runs" / "one", composed("data=mnist5k", "model=mlp", "name=mlp"), images=40)
    (run / "overrides.yaml").write_text("- model=mlp\n")
    return run


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", b"[]", "holds a run of another project: run.json has no status and config_hash"),
        ("run.json", b'{"status": "completed", "config_hash": "x", "seed": 0}', " cannot be used: "),
        ("overrides.yaml", b"- x=\xff\n", "/overrides.yaml cannot be read: "),
        ("config.yaml", b"x: \xff\n", "/config.yaml cannot be read: "),
    ],
)
def test_a_damaged_run_is_one_line(
    file: str,
    content: bytes,
    message: str,
    trained_run: Path,
    campaign: campaigns.Campaign,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (trained_run / file).write_bytes(content)
    with pytest.raises(SystemExit) as exit_, exit_status("scaling.py"):
        campaign.gather(trained_run.parent)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"scaling.py: {trained_run}")
    assert message in line


def test_a_full_disk_loses_no_results(
    trained_run: Path, campaign: campaigns.Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign.gather(trained_run.parent)
    before = campaign.csv.read_bytes()
    assert before.count(b"\n") == 2

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        campaign.gather(trained_run.parent)
    assert raised.value.filename == str(campaign.csv)
    assert campaign.csv.read_bytes() == before


@pytest.mark.parametrize("name", ["benchmark", "benchmark_report", "benchmark_sweep", "draw", *FIGURES])
def test_scripts_end_as_commands_do(name: str) -> None:
    tree = ast.parse((SCRIPTS / f"{name}.py").read_text(encoding="utf-8"))
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert [ast.unparse(decorator) for decorator in main.decorator_list] == [f"exit_status('{name}.py')", "printing()"]
