"""The console on a terminal: a bar while it trains, a table at the end. Piped output is tested with the train command."""

from __future__ import annotations

from collections.abc import Callable

from mnist_exp.loggers.console import epoch_line
from mnist_exp.training import EpochMetrics


def test_epoch_line_in_the_words_of_study_b() -> None:
    metrics = EpochMetrics(1, 60000, 0.2811, 0.9084, 0.0614, 0.9796, 0.01, 8.04, 1.0, 7463.2)
    assert epoch_line(metrics) == ("Train Loss 0.2811, Acc 90.84% | Test Loss 0.0614, Acc 97.96% | 8.0 s")


def test_on_a_terminal(small: list[str], mnist_train_terminal: Callable[..., tuple[int, str]]) -> None:
    overrides = [*small, "data.limit=null", "data.val_size=100", "trainer.epochs=3", "hydra.run.dir=run"]
    status, text = mnist_train_terminal(*overrides)
    assert status == 0
    assert "/11700" in text, "images done of images in all"
    assert "images/s" in text
    assert "LeNet-5 | Epoch [3/3]" in text
    assert "LeNet-5, epoch 3 of 3" in text
    assert "run directory: run" in text
