"""A run whose ``config.yaml`` was edited is not continued: it would be recorded as complete with other settings than it had."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mnist_exp.runs import RunDirectory, RunDirectoryError

SHORT = ["data=mnist5k", "data.limit=64", "model=mlp", "model.hidden=[8]", "trainer.epochs=2", "logger=none"]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("\nseed: 0", "\nseed: 1", "seed=1, was 0"),
        ("epochs: 2", "epochs: 3", "trainer.epochs=3, was 2"),
        ("lr: 0.01", "lr: 0.02", "optimizer.lr=0.02, was 0.01"),
    ],
)
def test_refused(
    old: str,
    new: str,
    named: str,
    mnist_train: Callable[..., int],
    stopped_after: Callable[[int], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with stopped_after(1):
        mnist_train(*SHORT, "hydra.run.dir=run")
    file = Path("run/config.yaml")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert mnist_train("resume=run") == 2
    assert f"run/config.yaml was edited after the run began ({named}); put it back, or" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    file.write_text(text)
    assert mnist_train("resume=run") == 0


def test_settings_that_do_not_count(
    mnist_train: Callable[..., int], stopped_after: Callable[[int], AbstractContextManager[None]]
) -> None:
    with stopped_after(1):
        mnist_train(*SHORT, "hydra.run.dir=run")
    file = Path("run/config.yaml")
    file.write_text(file.read_text().replace("quiet: false", "quiet: true"))
    assert mnist_train("resume=run") == 0


def test_without_hydras_copy(
    mnist_train: Callable[..., int], stopped_after: Callable[[int], AbstractContextManager[None]]
) -> None:
    with stopped_after(1):
        mnist_train(*SHORT, "hydra.run.dir=run")
    Path("run/.hydra/config.yaml").unlink()
    file = Path("run/config.yaml")
    file.write_text(file.read_text().replace("\nseed: 0", "\nseed: 1"))
    with pytest.raises(
        RunDirectoryError, match="was edited after the run began; put it back, or start a new run: mnist-train"
    ):
        RunDirectory.reopen(Path("run"))
