"""The console on a terminal: a bar while it trains, a table at the end. Piped output is tested with the train command."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from mnist_exp.loggers.console import epoch_heading, epoch_line, epoch_row
from mnist_exp.training import EpochMetrics


def test_epoch_line_in_the_format_of_study_b() -> None:
    metrics = EpochMetrics(1, 60000, 0.2811, 0.9084, 0.0614, 0.9796, 0.01, 8.04, 1.0, 7463.2)
    assert epoch_line(metrics) == ("Train Loss 0.2811, Acc 90.84% | Test Loss 0.0614, Acc 97.96% | 8.0 s")


def test_epoch_rows_fit_a_terminal_of_80_columns() -> None:
    plain = EpochMetrics(1, 60000, 0.2811, 0.9084, 0.0614, 0.9796, 0.01, 8.04, 1.0, 7463.2)
    held_out = replace(plain, epoch=1000, val_loss=123.45678, val_accuracy=1.0, train_seconds=12345.6)
    assert epoch_heading(plain) == "  epoch  train loss   acc %   test loss   acc %       s"
    assert epoch_row(plain, 10) == "   1/10      0.2811   90.84      0.0614   97.96     8.0"
    assert epoch_heading(held_out) == "  epoch  train loss   acc %    val loss   acc %   test loss   acc %       s"
    for row in (epoch_heading(held_out), epoch_row(held_out, 1000)):
        assert len(row) <= 78


def test_a_wider_terminal_gets_more() -> None:
    metrics = EpochMetrics(
        1, 60000, 0.2811, 0.9084, 0.0614, 0.9796, 0.01, 8.04, 1.0, 7463.2, extra={"norm": 2.5, "x" * 80: 1.0}
    )
    assert epoch_heading(metrics, 120) == epoch_heading(metrics) + "  learning rate    images/s        norm"
    assert epoch_row(metrics, 10, 120) == epoch_row(metrics, 10) + "           0.01       7,463         2.5"
    assert epoch_heading(metrics, 85).endswith("  learning rate    images/s")


def test_the_loading_of_pytorch_is_announced_on_a_terminal(
    small: list[str], mnist_train_terminal: Callable[..., tuple[int, str]]
) -> None:
    arguments = [*small, "logger=none", "trainer.epochs=1", "hydra.run.dir=run"]
    status, text = mnist_train_terminal(*arguments, "quiet=false", warm=False)
    assert status == 0
    assert text.startswith("loading PyTorch\r\n")
    status, text = mnist_train_terminal("resume=run", "trainer.epochs=2", "quiet=true", warm=False)
    assert status == 0
    assert "loading" not in text


def test_on_a_terminal(small: list[str], mnist_train_terminal: Callable[..., tuple[int, str]]) -> None:
    overrides = [*small, "data.limit=null", "data.val_size=100", "trainer.epochs=3", "hydra.run.dir=run"]
    status, text = mnist_train_terminal(*overrides)
    assert status == 0
    assert "/11700" in text, "images done of images in all"
    assert "images/s" in text
    assert re.search(r"    3/3 +\d\.\d{4} +\d", text)
    assert text.count("train loss") == 1
    assert "LeNet-5, epoch 3 of 3" in text
    assert "run directory: run" in text
