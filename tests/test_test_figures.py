"""``trainer.evaluate_test``: the test figures that a run leaves out, and everything that reads a run without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic_runs import write_run

from mnist_exp.config import check
from mnist_exp.evaluate import evaluate_run
from mnist_exp.hashing import config_hash
from mnist_exp.reports import markdown
from mnist_exp.reports.build import Report, build
from mnist_exp.reports.collect import compare
from mnist_exp.reports.figures import recorded_splits
from mnist_exp.reports.results import results_csv
from mnist_exp.reports.tables import columns
from mnist_exp.runs import Run, read_run
from mnist_exp.training import load_checkpoint

Compose = Callable[..., dict[str, Any]]


def test_weights_do_not_depend_on_it(
    mnist_train: Callable[..., int], small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*small, "model=mlp", "model.hidden=[8]"]

    def run(choice: str, *more: str) -> tuple[Run, str]:
        path = tmp_path / choice / "".join(more)
        assert mnist_train(*overrides, *more, f"trainer.evaluate_test={choice}", f"hydra.run.dir={path}") == 0
        return read_run(path), capsys.readouterr().out

    every, last, never = (run(choice) for choice in ("every", "last", "never"))
    weights = [
        load_checkpoint(of.path / "checkpoints" / "last.pt", torch.device("cpu"))["model"]
        for of, _ in (every, last, never)
    ]
    assert all(torch.equal(weights[0][key], other[key]) for other in weights[1:] for key in weights[0])
    tested = [["test_accuracy" in row for row in of.metrics] for of, _ in (every, last, never)]
    assert tested == [[True, True], [False, True], [False, False]]
    for of, _ in (every, last):
        assert of.record.final is not None
        assert of.record.final["test_accuracy"] == every[0].metrics[-1]["test_accuracy"]
    assert never[0].record.final is not None
    assert not any("test" in name for name in never[0].record.final)
    assert [(of.path / "predictions.npz").exists() for of, _ in (every, last, never)] == [True, True, False]
    assert last[1].count("train loss") == 2, "another heading where the columns change"
    assert "MLP 784-8-10 | training accuracy" in never[1]
    result, _ = evaluate_run(never[0].path, [])
    assert result["test_accuracy"] == every[0].metrics[-1]["test_accuracy"], "computed on purpose"
    assert result["matches_record"] is None


def test_the_best_epoch_is_tested_when_it_is_known(
    mnist_train: Callable[..., int], small: list[str], tmp_path: Path
) -> None:
    overrides = ["model=mlp", "model.hidden=[8]", "data.val_size=100", "trainer.selection=best", "trainer.epochs=3"]
    results = []
    for choice in ("every", "last"):
        where = f"hydra.run.dir={tmp_path / choice}"
        # With this learning rate the first epoch is the best.
        assert mnist_train(*small, *overrides, "optimizer.lr=1.5", f"trainer.evaluate_test={choice}", where) == 0
        results.append(read_run(tmp_path / choice))
    every, last = results
    assert every.record.final is not None
    assert last.record.final is not None
    assert every.record.final["epoch"] < 3
    assert not any("test_loss" in row for row in last.metrics)
    names = ("epoch", "test_loss", "test_accuracy", "val_accuracy")
    assert [last.record.final[name] for name in names] == [every.record.final[name] for name in names]
    assert evaluate_run(last.path, [])[0]["matches_record"]


def test_the_hash(composed: Compose) -> None:
    tree = composed()
    every = config_hash(check(tree))
    del tree["trainer"]["evaluate_test"]
    assert config_hash(check(tree)) == every, "that of earlier versions"
    assert (
        len({every, *(config_hash(check(composed(f"trainer.evaluate_test={choice}"))) for choice in ("last", "never"))})
        == 3
    )


class TestReports:
    @pytest.fixture
    def report(self, tmp_path: Path, composed: Compose) -> Callable[..., Report]:
        def make(*arms: tuple[str, float | None]) -> Report:
            paths = []
            for place, (choice, val) in enumerate(arms):
                tree = composed(
                    "name=lenet5",
                    "data=mnist5k",
                    f"optimizer.lr={0.01 * (place + 1)}",
                    f"trainer.evaluate_test={choice}",
                )
                for seed in range(2):
                    held_out = None if val is None else val + 0.001 * seed
                    paths.append(write_run(tmp_path / f"{place}-{seed}", tree, seed=seed, val_accuracy=held_out))
            return build(compare(paths))

        return make

    def test_without_any_test_figures(self, report: Callable[..., Report]) -> None:
        made = report(("never", 0.91), ("never", 0.95), ("never", 0.93))
        assert made.answer.title == "Best arm: lr 0.02, 95.05 % validation accuracy"
        assert "95 % interval of the validation accuracy" in made.answer.facts
        assert "trainer.evaluate_test=never" in made.answer.facts
        assert not made.answer.contrasts
        assert [row.arm.label for row in made.rows] == ["lr 0.02", "lr 0.03", "lr 0.01"]
        titles = [column.title for column in columns(made.rows)]
        assert "validation" in titles
        assert not {"test accuracy", "std", "95 % over seeds", "95 % over images", "loss", "best epoch", "ECE"} & set(
            titles
        )
        (note,) = [note for note in made.comparison.notes if "evaluate_test" in note]
        assert note.startswith("6 of 6 completed runs did not evaluate the test set")
        assert not any("predictions.npz" in note for note in made.comparison.notes)
        figures = {figure.name: figure for figure in made.figures}
        assert "setting_optimizer_lr" in figures, "what a search is looked at for"
        assert figures["setting_optimizer_lr"].caption.startswith("Validation accuracy")
        assert recorded_splits(figures["curves_error"]) == ["validation", "training"]
        shown = next(param["value"] for param in figures["curves_error"].spec["params"] if param["name"] == "splits")
        assert shown == ["validation"]
        assert "not compared" in markdown.document(*made.parts)
        header, first, *_ = results_csv(made.comparison).splitlines()
        assert dict(zip(header.split(","), first.split(","), strict=True))["test_accuracy"] == ""

    def test_beside_arms_that_were_tested(self, report: Callable[..., Report]) -> None:
        made = report(("every", 0.91), ("never", 0.95), ("last", 0.93))
        assert made.answer.title == "Best arm: evaluate test never · lr 0.02, 95.05 % validation accuracy"
        (contrast, _) = made.answer.contrasts
        assert contrast.reason == "test set not evaluated: not compared."
        assert [pair.effect for pair in made.pairs] == ["-", "+0.00"]
        assert "test accuracy" in [column.title for column in columns(made.rows)]

    def test_every_and_last_are_one_arm(self, tmp_path: Path, composed: Compose) -> None:
        paths = [
            write_run(tmp_path / choice, composed("data=mnist5k", f"trainer.evaluate_test={choice}"), seed=seed)
            for seed, choice in enumerate(("every", "last"))
        ]
        assert len(compare(paths).arms) == 1

    def test_neither_validation_nor_test(self, report: Callable[..., Report]) -> None:
        made = report(("never", None), ("never", None))
        assert made.answer.title == "Neither validation nor test accuracy is known"
        assert "pairwise" not in {figure.section for figure in made.figures}
        assert "mnist-eval DIR" in markdown.document(*made.parts)
