"""The comparison as a W&B Report, with a test server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import wandb
from synthetic_runs import write_run
from wandb_server import WandbServer

from mnist_exp.cli import report
from mnist_exp.loggers.wandb import WandbLogger
from mnist_exp.reports import wandb_report
from mnist_exp.reports.build import build
from mnist_exp.reports.collect import compare

SETTINGS = [
    "data=mnist5k",
    "data.limit=320",
    "trainer.epochs=2",
    "trainer.threads=1",
    "trainer.device=cpu",
    "quiet=true",
]


@pytest.fixture(autouse=True)
def _no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(WandbLogger, "_no_answer", None)
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def runs(tmp_path: Path, composed: Callable[..., dict[str, Any]]) -> Path:
    for name, lr in (("slow", 0.01), ("fast", 0.1)):
        for seed in range(2):
            identity = {"id": f"{name}{seed}", "mode": "online", "project": "digits", "entity": "somebody",
                        "group": None, "arm": f"{name} · lr {lr}", "url": f"https://wandb.example/somebody/digits/runs/{name}{seed}"}  # fmt: skip
            tree = composed(f"name={name}", "data=mnist5k", f"optimizer.lr={lr}")
            write_run(tmp_path / "runs" / f"{name}-{seed}", tree, seed=seed, accuracy=0.9 + lr / 2, wandb=identity)
    write_run(tmp_path / "runs" / "unlogged", composed("name=unlogged", "data=mnist5k", "optimizer.lr=1"))
    return tmp_path / "runs"


def blocks_of(spec: dict[str, Any]) -> tuple[list[str], list[dict[str, Any]], list[dict[str, Any]]]:
    """Types of all panels, run sets and Markdown of a specification."""
    grids = [block for block in spec["blocks"] if block["type"] == "panel-grid"]
    panels = [p["viewType"] for g in grids for p in g["metadata"]["panelBankSectionConfig"]["panels"]]
    sets = [runset for grid in grids for runset in grid["metadata"]["runSets"]]
    return panels, sets, [block for block in spec["blocks"] if block["type"] == "markdown-block"]


def assert_no_empty_block(spec: dict[str, Any]) -> None:
    """Every heading has a content below it, every grid has runs and panels, and every text has words."""
    first, *blocks, last = spec["blocks"]
    assert first == last == {"type": "paragraph", "children": [{"text": ""}]}, "wandb_workspaces puts them around all"
    kinds = [block["type"] for block in blocks]
    assert ("heading", "heading") not in set(pairwise(kinds))
    assert kinds[-1] != "heading"
    for block in blocks:
        if block["type"] == "panel-grid":
            assert block["metadata"]["runSets"]
            assert block["metadata"]["panelBankSectionConfig"]["panels"]
        else:
            assert block.get("content", "").strip() or "".join(part["text"] for part in block["children"]).strip()


def test_dry_run_needs_no_network(runs: Path) -> None:
    report.main([str(runs), "--wandb-dry-run", "--output", "out"])
    written = json.loads(Path("out/wandb_report.json").read_text())
    assert (written["entityName"], written["projectName"]) == ("somebody", "digits")
    assert written["displayName"] == "fast against slow against unlogged: Comparison of 5 runs in 3 arms"
    panels, sets, texts = blocks_of(written["spec"])
    assert panels == [
        *["Run History Line Plot"] * 4,
        *["Bar Chart"] * 3,
        *("Parallel Coordinates Plot", "Parameter Importance", "Run Comparer", "Media Browser"),
    ]
    # Lines are grouped, coloured and named by the arm.
    assert {tuple(key["name"] for key in runset["grouping"]) for runset in sets[:4]} == {("arm.value",)}
    grids = [block["metadata"] for block in written["spec"]["blocks"] if block["type"] == "panel-grid"]
    assert list(grids[0]["customRunColors"]) == [
        *(f"{sets[0]['id']}-config:arm.value:fast · lr 0.1", f"{sets[1]['id']}-config:arm.value:slow · lr 0.01"),
    ]
    assert_no_empty_block(written["spec"])
    assert [runset["name"] for runset in sets] == ["fast", "slow", "fast", "slow", "all runs"]
    # Of each panel: what the legend of its lines or bars shows.
    legends = [panel["config"]["groupBy"] for grid in grids[:2] for panel in grid["panelBankSectionConfig"]["panels"]]
    assert legends == ["arm.value"] * 7
    (condition,) = sets[0]["filters"]["filters"]
    assert (condition["key"], condition["op"], condition["value"]) == (
        {"section": "run", "name": "name"}, "IN", ["fast0", "fast1"],
    )  # fmt: skip
    said = "\n".join(block["content"] for block in texts)
    assert "| fast | 2 | 95.00 % |" in said
    assert "[seed 1](https://wandb.example/somebody/digits/runs/fast1)" in said
    assert "1 of 5 runs were not logged to W&B: they are in the tables only" in said


def test_validation_comes_with_its_curves(tmp_path: Path, composed: Callable[..., dict[str, Any]]) -> None:
    for seed, arm in ((0, "a"), (1, "b")):  # typed in two ways: their names do not make one line
        identity = {"id": f"v{seed}", "mode": "online", "project": "digits", "entity": "somebody", "arm": arm}
        path = write_run(
            tmp_path / "runs" / str(seed), composed("data=mnist5k"), seed=seed, wandb=identity, sweep="depths"
        )
        rows = [
            {**json.loads(line), "val_loss": 0.5, "val_accuracy": 0.8}
            for line in (path / "metrics.jsonl").read_text().splitlines()
        ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = wandb_report.specification(build(compare([tmp_path / "runs" / "0", tmp_path / "runs" / "1"])))
    assert made["displayName"] == "depths: Report on 2 runs that differ in their seed"
    panels, sets, _ = blocks_of(made["spec"])
    assert panels == [*["Run History Line Plot"] * 6, *["Bar Chart"] * 4, "Run Comparer", "Media Browser"]
    assert {"validation loss", "validation accuracy"} <= {
        panel["config"]["chartTitle"]
        for block in made["spec"]["blocks"] if block["type"] == "panel-grid"
        for panel in block["metadata"]["panelBankSectionConfig"]["panels"] if "chartTitle" in panel["config"]
    }  # fmt: skip
    assert sets[0]["grouping"][0]["name"] == "trainer.value.epochs"
    assert_no_empty_block(made["spec"])
    headings = [
        "".join(part["text"] for part in b["children"]) for b in made["spec"]["blocks"] if b["type"] == "heading"
    ]
    assert headings == ["Arms", "Curves", "Results", "Settings and errors of single runs", "Runs"]


def test_runs_without_the_name_of_their_arm(tmp_path: Path, composed: Callable[..., dict[str, Any]]) -> None:
    """Those of an earlier version: the legend shows the setting that tells the arms apart."""
    for lr in (0.01, 0.1):
        tree, identity = (
            composed("data=mnist5k", f"optimizer.lr={lr}"),
            {"id": f"w{lr}", "mode": "online", "project": "p"},
        )
        write_run(tmp_path / "runs" / str(lr), tree, wandb=identity)
    made = wandb_report.specification(build(compare([tmp_path / "runs" / "0.01", tmp_path / "runs" / "0.1"])))
    _, sets, _ = blocks_of(made["spec"])
    assert [runset["grouping"][0]["name"] for runset in sets[:2]] == ["optimizer.value.lr"] * 2
    grids = [block["metadata"] for block in made["spec"]["blocks"] if block["type"] == "panel-grid"]
    assert [key.partition(":")[2] for key in grids[0]["customRunColors"]] == [
        "optimizer.value.lr:0.01",
        "optimizer.value.lr:0.1",
    ]


def test_published_beside_runs_that_were_logged(
    mnist_train: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From training to the report: the same server gets both."""
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for seed in range(2):
            assert mnist_train(*SETTINGS, f"seed={seed}", f"hydra.run.dir=runs/{seed}") == 0
        report.main(["runs", "--wandb", "--output", "out"])
        (saved,) = server.reports
        panels, sets, texts = blocks_of(json.loads(saved["spec"]))
        assert (saved["entityName"], saved["projectName"]) == ("somebody", "mnist-exp")
        assert len(panels) == 9  # of one arm
        assert sorted(sets[0]["filters"]["filters"][0]["value"]) == sorted(server.runs)
        assert sets[0]["project"]["name"] == "mnist-exp"
        links = "\n".join(block["content"] for block in texts)
        assert all(f"{server.url}/somebody/mnist-exp/runs/{run}" in links for run in server.runs)
        assert "W&B report: " in capsys.readouterr().out
        for run in server.runs.values():  # every run shows its errors, too
            assert {"confusion_matrix", "worst_digits", "errors"} <= run.history[-1].keys()
            (table,) = [name for name in run.files if name.startswith("media/html/errors")]
            assert run.files[table].count(b"<tr>") > 1
            media = [name for name in run.files if name.startswith("media/images/") and name.endswith(".png")]
            assert len(media) == 2
            assert all(run.files[name].startswith(b"\x89PNG") for name in media)


def test_offline_runs_use_the_entity_of_the_account(
    tmp_path: Path,
    composed: Callable[..., dict[str, Any]],
    mnist_train: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    identity = {"id": "abc", "mode": "offline", "project": "mnist-exp", "entity": None, "group": None, "url": None}
    write_run(tmp_path / "runs" / "a", composed("data=mnist5k"), wandb=identity)
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        assert mnist_train(*SETTINGS, "hydra.run.dir=logged") == 0  # so that the server knows the project
        report.main(["runs", "--wandb", "--output", "out"])
        (saved,) = server.reports
    assert saved["entityName"] == "somebody"
    assert "seed 0 (offline, `abc`)" in saved["spec"]


def test_a_report_is_saved_only_where_the_user_allows_it(
    tmp_path: Path,
    composed: Callable[..., dict[str, Any]],
    mnist_train: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Otherwise another person's runs could send a comparison with the user's own runs to that person."""
    identity = {"id": "abc", "mode": "online", "project": "theirs", "entity": "them", "group": None, "url": None}
    write_run(tmp_path / "runs" / "a", composed("data=mnist5k"), wandb=identity)
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit):
            report.main(["runs", "--wandb", "--output", "out"])
        assert capsys.readouterr().err == (
            "mnist-report: --wandb: the runs are in project theirs of them; if the report is to be saved there, type "
            "--wandb-project them/theirs\n"
        )
        assert not server.reports
        assert mnist_train(*SETTINGS, "logger.project=theirs", "hydra.run.dir=known") == 0  # the server knows it now
        report.main(["runs", "--wandb", "--output", "out", "--wandb-project", "them/theirs"])
        (saved,) = server.reports
    assert (saved["entityName"], saved["projectName"]) == ("them", "theirs")


class TestMistakes:
    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
        with pytest.raises(SystemExit) as leaving:
            report.main([str(argument) for argument in arguments])
        assert leaving.value.code == 2
        return capsys.readouterr().err

    def test_nothing_was_logged(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.refused(capsys, runs / "unlogged", "--wandb-dry-run") == (
            "mnist-report: --wandb: none of these runs was logged to Weights & Biases; train with logger=wandb\n"
        )

    def test_no_key(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.refused(capsys, runs, "--wandb") == (
            "mnist-report: --wandb: no API key is configured; wandb login, or --wandb-dry-run\n"
        )

    def test_refused_key(self, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        with WandbServer(refuse_key=True) as server:
            for name, value in server.environment.items():
                monkeypatch.setenv(name, value)
            said = self.refused(capsys, runs, "--wandb")
        assert said.startswith("mnist-report: --wandb: ")
        assert said.count("\n") == 1

    def test_no_answer(self, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(wandb_report, "SECONDS", 2.0)
        with WandbServer(silent=True) as server:
            for name, value in server.environment.items():
                monkeypatch.setenv(name, value)
            assert self.refused(capsys, runs, "--wandb") == (
                "mnist-report: --wandb: the server did not answer within 2 s; --wandb-dry-run needs none\n"
            )
