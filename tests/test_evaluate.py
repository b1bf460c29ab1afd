"""Evaluation needs the run directory and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_exp import evaluate
from mnist_exp.runs import read_run
from mnist_exp.training import load_checkpoint


@pytest.fixture
def run(trained: Callable[..., Path], small: list[str]) -> Path:
    """A finished run whose result is an average of weights, at a place where it was not trained."""
    return trained("moved", *small, "regularization=ema", "trainer.epochs=4")


def status_of(main: Callable[[list[str]], None], *arguments: str) -> int:
    try:
        main(list(arguments))
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def test_evaluation_equals_the_record_bit_for_bit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(evaluate.main, str(run), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    final = read_run(run).record["final"]
    assert (result["test_loss"], result["test_accuracy"]) == (final["test_loss"], final["test_accuracy"])
    assert result["matches_record"] is True
    assert result["epoch"] == 4
    assert json.loads((run / "evaluation.json").read_text()) == result

    confusion = np.array(result["confusion"])
    with np.load(run / "predictions.npz") as predictions:
        logits, labels = predictions["logits"], predictions["labels"]
    expected = np.zeros((10, 10), dtype=int)
    np.add.at(expected, (labels, logits.argmax(axis=1)), 1)
    np.testing.assert_array_equal(confusion, expected)
    np.testing.assert_allclose(result["per_class_accuracy"], confusion.diagonal() / confusion.sum(axis=1))

    with Image.open(run / "worst_digits.png") as picture:
        assert picture.width > 600
        assert len(set(picture.convert("L").tobytes())) > 20, "there is something to see"


def test_tables_for_people(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(evaluate.main, str(run), "--output", "elsewhere") == 0
    out = capsys.readouterr().out
    assert "1,000 images, as the run recorded it" in out
    assert "Confusion matrix: rows are labels, columns predictions" in out
    assert {path.name for path in Path("elsewhere").iterdir()} == {"evaluation.json", "worst_digits.png"}
    assert not (run / "evaluation.json").exists()


def test_other_data_is_prepared_as_the_network_knows_it(
    mnist_train: Callable[..., int], small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train(*small, "data.image_size=32", "model.padding=0", "data.mean=0.2", "hydra.run.dir=run") == 0
    capsys.readouterr()
    assert status_of(evaluate.main, "run", "data=mnist5k", "data.swap_splits=true", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 4000
    assert result["matches_record"] is None


def test_a_changed_result_is_noticed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "last.pt"
    state = load_checkpoint(path, torch.device("cpu"))
    state["ema"]["model"]["classifier.linear3.bias"] += torch.linspace(-3, 3, 10)
    torch.save(state, path)
    assert status_of(evaluate.main, str(run)) == 0
    assert "which DIFFERS from what the run recorded" in capsys.readouterr().out


def test_mistakes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, "unfinished")
    Path("unfinished/checkpoints/last.pt").unlink()
    shutil.copytree(run, "damaged")
    Path("damaged/checkpoints/last.pt").write_bytes(b"no checkpoint")
    Path("empty").mkdir()
    for arguments, message in [
        (["nowhere"], "nowhere is not a directory"),
        (["empty"], "empty is not a run directory: it has no run.json"),
        ([str(run), "trainer.epochs=3"], "trainer.epochs=3: an evaluation can change data only, such as data=mnist5k or data.root=FOLDER"),
        ([str(run), "data=mnist6k"], "data=mnist6k is not a choice; choose from fashion_mnist, idx, kmnist, mnist, mnist5k, png; did you mean mnist5k?"),
        (["unfinished"], "unfinished has no checkpoints/last.pt yet; its status is completed"),
    ]:  # fmt: skip
        assert status_of(evaluate.main, *arguments) == 2
        assert capsys.readouterr().err == f"mnist-eval: {message}\n"
    assert status_of(evaluate.main, "damaged") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mnist-eval: damaged/checkpoints/last.pt cannot be read: ")


def test_a_strangers_checkpoint_cannot_run_code(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (Path("owned"),)

    torch.save({"model": Hostile()}, run / "checkpoints" / "last.pt")
    assert status_of(evaluate.main, str(run)) == 2
    assert not Path("owned").exists()
