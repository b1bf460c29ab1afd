"""Evaluation needs the run directory and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exit_status import status_of
from PIL import Image

from mnist_exp.cli import eval as evaluate
from mnist_exp.runs import read_run
from mnist_exp.training import load_checkpoint


@pytest.fixture
def run(trained: Callable[..., Path], small: list[str]) -> Path:
    """A completed run with averaged weights, moved to another folder."""
    return trained("moved", *small, "regularization=ema", "trainer.epochs=4")


def test_evaluation_equals_the_record_bit_for_bit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(evaluate.main, str(run), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    final = read_run(run).record.final
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


def test_other_data_are_prepared_as_for_training(
    mnist_train: Callable[..., int], small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train(*small, "data.image_size=32", "model.padding=0", "data.mean=0.2", "hydra.run.dir=run") == 0
    capsys.readouterr()
    assert status_of(evaluate.main, "run", "data=mnist5k", "data.swap_splits=true", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 4000
    assert result["matches_record"] is None


def test_without_a_choice_overrides_apply_to_the_data_of_the_run(
    mnist_train: Callable[..., int], small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every key of the section, of a run whose data are not the default ones."""
    assert mnist_train(*small, "data.val_size=500", "data.mean=0.2", "hydra.run.dir=run") == 0
    capsys.readouterr()

    def result_of(*overrides: str) -> dict[str, Any]:
        assert status_of(evaluate.main, "run", *overrides, "--json") == 0
        return dict(json.loads(capsys.readouterr().out))

    own = result_of()
    assert (own["data"], own["images"], own["matches_record"]) == ("test digits of mnist5k", 1000, True)
    swapped = result_of("data.swap_splits=true")
    assert (swapped["data"], swapped["images"]) == ("training digits of mnist5k", 4000)
    assert (swapped["same_data"], swapped["matches_record"]) == (True, None)
    for override in ("data.mean=0.1307", "data.std=0.5"):
        assert result_of(override)["test_loss"] != own["test_loss"]
    for same in ("data.image_size=28", "++data.mean=0.2", "data=mnist5k"):
        assert result_of(same) == own
    idle = "it selects training digits; an evaluation uses all test digits"
    for override, message in [
        ("data.image_size=32", "data.image_size=32: the network takes images of 28 pixels; leave it out"),
        ("data.val_size=0", f"data.val_size=0: {idle}"),
        ("data.split_seed=1", f"data.split_seed=1: {idle}"),
        ("data.limit=10", f"data.limit=10: {idle}"),
        ("data.root=x", "data.root is not a key of the stored configuration"),
        ("data.download=MNIST", "data.download is not a key of the stored configuration"),
        ("data.swap_split=true", "data.swap_split is not a key of the stored configuration; did you mean swap_splits?"),
        ("data.std=0", "data.std=0 should be greater than 0"),
        ("data.swap_splits=true,false", "data.swap_splits=true,false names several values; one is needed here"),
        ("~data.limit", "~data.limit: nothing can be deleted here, only set"),
        ("data._target_=os.system", "data._target_=os.system is not allowed; it may name mnist_exp.*, torch.nn.*, "
         "torch.optim.*, torchvision.transforms.* only. If you trust the code of os on this machine, add: --trust os (from Python: "
         'trust=["os"])'),
    ]:  # fmt: skip
        assert status_of(evaluate.main, "run", override) == 2, override
        assert capsys.readouterr().err == f"mnist-eval: {message}\n"


def test_folder_and_name_of_the_data(
    mnist_train: Callable[..., int], idx_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    here, other = idx_folder("here"), idx_folder("other", seed=1)
    quick = ["trainer.epochs=1", "trainer.threads=1", "trainer.device=cpu", "logger=none", "quiet=true"]
    assert mnist_train(*quick, "data=idx", "data.root=here", "hydra.run.dir=run") == 0
    capsys.readouterr()
    assert status_of(evaluate.main, "run") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("40 images, as the run recorded it")
    assert out[1].startswith(f"data: test digits of idx_folder in {here}, digest ")
    assert out[-1] == "written: run/evaluation.json, run/worst_digits.png"
    for override in ("data.root=other", "data.root=./other"):
        assert status_of(evaluate.main, "run", override) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[1].startswith(f"data: test digits of idx_folder in {other}, digest ")
        assert out[2] == "These are not the digits that the run was trained and tested on."
    here.rename(tmp_path / "gone")
    assert status_of(evaluate.main, "run") == 2
    assert capsys.readouterr().err == (
        f"mnist-eval: {here}: does not exist; if the data are elsewhere: mnist-eval run data.root=FOLDER\n"
    )
    assert status_of(evaluate.main, "run", "data.root=gone") == 0
    assert "as the run recorded it" in capsys.readouterr().out


def test_a_result_that_cannot_be_written_is_printed(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First in a read-only directory or on a full disk; then in a folder of --output."""

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    Path("file").touch()
    with monkeypatch.context() as patch:
        patch.setattr("mnist_exp.evaluate.write_atomically", refuse)
        assert status_of(evaluate.main, str(run)) == 0
    captured = capsys.readouterr()
    assert "1,000 images, as the run recorded it" in captured.out
    assert captured.err == f"mnist-eval: {run}: the result is not written there: No space left on device\n"
    command = [sys.executable, "-m", "mnist_exp.cli.eval", str(run), "--json", "--output", "file"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout)["images"] == 1000
    assert done.stderr == "mnist-eval: file: the result is not written there: File exists\n"


def test_for_a_path_inside_a_run_the_run_is_suggested(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnist_exp.cli import demo, predict, report

    monkeypatch.chdir(run.parent)
    for inside in ("moved/checkpoints/last.pt", "moved/run.json", "moved/checkpoints/missing.pt", "moved/checkpoints"):
        message = f"{inside} is inside a run directory; type that one instead: moved\n"
        assert status_of(evaluate.main, inside) == 2
        assert capsys.readouterr().err == f"mnist-eval: {message}"
        assert status_of(predict.main, inside, "image.png") == 2
        assert capsys.readouterr().err == f"mnist-predict: {message}"
    for main, name in ((report.main, "mnist-report"), (demo.main, "mnist-demo")):
        assert status_of(main, "moved/checkpoints/last.pt") == 2
        assert capsys.readouterr().err == (
            f"{name}: moved/checkpoints/last.pt is inside a run directory; type that one instead: moved\n"
        )
    monkeypatch.chdir(run / "checkpoints")
    assert status_of(evaluate.main, "last.pt") == 2
    assert capsys.readouterr().err == "mnist-eval: last.pt is inside a run directory; type that one instead: ..\n"


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
    assert line == "mnist-eval: damaged/checkpoints/last.pt cannot be read: File is not a zip file"


def test_a_strangers_checkpoint_cannot_run_code(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (Path("owned"),)

    torch.save({"model": Hostile()}, run / "checkpoints" / "last.pt")
    assert status_of(evaluate.main, str(run)) == 2
    assert not Path("owned").exists()
