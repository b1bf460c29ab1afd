"""TensorBoard: its files read back by TensorBoard, alone and beside Weights & Biases, resumed, and where it is absent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lazily import Lazily
from wandb_files import read_run

from mnist_exp.loggers import tensorboard
from mnist_exp.loggers.tensorboard import TensorBoardLogger
from mnist_exp.runs.reading import read_metrics
from mnist_exp.training.events import EpochMetrics, TrainingEnded, TrainingStarted

Train = Callable[..., int]

reading = Lazily("tensorboard.backend.event_processing.event_accumulator")


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each curve below a run directory."""
    read = reading.EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    return {name: [(point.step, point.value) for point in read.Scalars(name)] for name in read.Tags()["scalars"]}


def log(directory: Path, epochs: range) -> None:
    logger = TensorBoardLogger(directory=directory)
    logger.on_start(TrainingStarted("LeNet-5", 5, epochs.start, 10, 640))
    for epoch in epochs:
        logger.on_epoch(EpochMetrics(epoch, 640 * epoch, 1.0, 0.5, 2.0, 0.5, 0.01, 1.0, 0.5, 640.0, extra={"own": 7.0}))
    logger.on_end(TrainingEnded("completed", None, {}))


def test_epochs_that_are_trained_again_are_logged_once(tmp_path: Path) -> None:
    log(tmp_path, range(1, 4))
    log(tmp_path, range(3, 6))
    assert curves(tmp_path)["own"] == [(epoch, 7.0) for epoch in range(1, 6)]


def test_curves_are_those_of_wandb(tmp_path: Path, mnist_train: Train, small: list[str]) -> None:
    more = ["data.val_size=50", "logger=[wandb,tensorboard]", "logger.mode=offline", "hydra.run.dir=run"]
    small.remove("logger=none")
    assert mnist_train(*small, *more) == 0
    found = curves(tmp_path / "run")
    (row, *_) = read_run(tmp_path / "run").history
    assert set(found) == {name for name in row if not name.startswith("_")} - {"epoch"}
    losses = [row["train_loss"] for row in read_metrics(tmp_path / "run")]
    assert found["train/loss"] == [(epoch, pytest.approx(loss)) for epoch, loss in enumerate(losses, start=1)]


def test_a_resumed_run_goes_on_there_unless_another_logger_is_chosen(
    tmp_path: Path, mnist_train: Train, small: list[str]
) -> None:
    small[small.index("logger=none")] = "logger=tensorboard"
    assert mnist_train(*small, "hydra.run.dir=run") == 0
    assert mnist_train("resume=run", "trainer.epochs=3") == 0
    assert [step for step, _ in curves(tmp_path / "run")["test/loss"]] == [1, 2, 3]
    assert mnist_train("resume=run", "trainer.epochs=4", "logger=none") == 0
    assert [step for step, _ in curves(tmp_path / "run")["test/loss"]] == [1, 2, 3]
    assert mnist_train("resume=run", "trainer.epochs=5", "logger=tensorboard") == 0
    assert [step for step, _ in curves(tmp_path / "run")["test/loss"]] == [1, 2, 3, 5]
    tree: dict[str, Any] = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert tree["callbacks"] == {"tensorboard": {"_target_": "mnist_exp.loggers.tensorboard.TensorBoardLogger"}}
    assert not tree.get("logger")


def test_no_link_is_followed_and_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "outside")
    with caplog.at_level(logging.WARNING):
        log(tmp_path / "run", range(1, 3))
    assert list((tmp_path / "outside").iterdir()) == []
    (message,) = [record.getMessage() for record in caplog.records]
    assert "is a link, and links are not followed" in message
    assert message.endswith("; training is not affected")


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_without_tensorboard_there_is_a_one_line_error(
    sweep: list[str],
    tmp_path: Path,
    mnist_train: Train,
    small: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    small[small.index("logger=none")] = "logger=tensorboard"
    assert mnist_train(*sweep, *small) == 2
    message = "logger=tensorboard needs TensorBoard: pip install 'mnist-exp[tensorboard]'"
    assert capsys.readouterr().err == f"mnist-train: {message}\n"
    assert list(tmp_path.iterdir()) == []
