"""The console on a terminal: a bar while it trains, a table at the end. Piped output is tested with the train command."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from mnist_exp.loggers.console import epoch_line
from mnist_exp.training import EpochMetrics


def test_epoch_line_in_the_words_of_study_b() -> None:
    metrics = EpochMetrics(1, 60000, 0.2811, 0.9084, 0.0614, 0.9796, 0.01, 8.04, 1.0, 7463.2)
    assert epoch_line(metrics) == ("Train Loss 0.2811, Acc 90.84% | Test Loss 0.0614, Acc 97.96% | 8.0 s")


def test_on_a_terminal(small: list[str], tmp_path: Path) -> None:
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"}
    overrides = [*small, "data.limit=null", "data.val_size=100", "trainer.epochs=3", "hydra.run.dir=run"]
    command = [sys.executable, "-m", "mnist_exp.train", *overrides]
    process = subprocess.Popen(command, stdout=child, stderr=child, env=environment, cwd=tmp_path)
    os.close(child)
    screen = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        screen += part
    os.close(parent)
    assert process.wait(timeout=60) == 0
    text = screen.decode()
    assert "/11700" in text, "images done of images in all"
    assert "images/s" in text
    assert "LeNet-5 | Epoch [3/3]" in text
    assert "LeNet-5, epoch 3 of 3" in text
    assert "run directory: run" in text
