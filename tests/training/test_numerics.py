"""Numbers that are not finite, learning rates that are far too high, and batches and splits as small as they can be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_exp.build import Parts, build
from mnist_exp.config import check
from mnist_exp.runs import read_run
from mnist_exp.training import Callback, StepDone, TrainState, fit
from mnist_exp.training.loop import Diverged

OPTIMIZERS = ["sgd", "adam", "adamw", "muon"]
BACKENDS = ["torch", "native"]


@pytest.fixture
def built(composed: Callable[..., dict[str, Any]], small: list[str]) -> Callable[..., Parts]:
    return lambda *overrides: build(check(composed(*small, "data.limit=64", "trainer.batch_size=16", *overrides)))


class PutNan(Callback):
    """Makes one weight of the last layer NaN after the second step of the first epoch."""

    def __init__(self, state: TrainState) -> None:
        self._state = state

    def on_step(self, event: StepDone) -> None:
        if (event.epoch, event.step) == (1, 2):
            *_, bias = self._state.model.parameters()
            with torch.no_grad():
                bias[0] = float("nan")


@pytest.mark.parametrize("where", ["pixel", "weight"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nan_ends_the_run_within_one_epoch(
    optimizer: str, backend: str, where: str, built: Callable[..., Parts]
) -> None:
    parts = built(f"optimizer={optimizer}", f"trainer.backend={backend}", "model=mlp", "model.hidden=[16]")
    callbacks: list[Callback] = []
    if where == "pixel":
        parts.dataset.train.images[7, 0, 14, 14] = float("nan")
    else:
        callbacks = [PutNan(parts.state)]
    saved: list[int] = []
    with pytest.raises(Diverged, match="in epoch 1"):
        fit(
            parts.state,
            parts.dataset,
            parts.train_config,
            callbacks=callbacks,
            save=lambda state, *others: saved.append(state.epoch),
        )
    assert not saved, "no checkpoint has a NaN"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_learning_rate_of_a_million_completes_or_diverges(
    optimizer: str, backend: str, mnist_train: Callable[..., int], small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["model=mlp", "model.hidden=[16]", "data.limit=64", f"optimizer={optimizer}", f"trainer.backend={backend}"]
    status = mnist_train(*small, *run, "optimizer.lr=1e6", "hydra.run.dir=run")
    assert read_run("run").status == ("diverged" if status else "completed")
    assert len(capsys.readouterr().err.splitlines()) == status <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_of_one(backend: str, mnist_train: Callable[..., int], small: list[str]) -> None:
    run = [f"trainer.backend={backend}", "data.limit=5", "trainer.batch_size=1", "trainer.eval_batch_size=1"]
    assert mnist_train(*small, *run, "hydra.run.dir=run") == 0
    assert read_run("run").status == "completed"


def test_a_last_batch_of_one_under_batch_norm(
    mnist_train: Callable[..., int], small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*small, "data.limit=33", "trainer.batch_size=16", "regularization=batch_norm"]
    assert mnist_train(*run, "model=lenet5", "hydra.run.dir=maps") == 0, "statistics of a map are over its pixels, too"
    capsys.readouterr()
    assert mnist_train(*run, "model=mlp", "hydra.run.dir=run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "mnist-train: trainer.batch_size=16 leaves a batch of one of the 33 training images, and batch norm needs two; "
        "type trainer.batch_size=17"
    )
    assert not Path("run").exists()
    assert mnist_train(*run, "model=mlp", "hydra.run.dir=run", "trainer.batch_size=17") == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_is_missing_from_a_split(
    split: str, backend: str, idx_folder: Callable[..., Path], mnist_train: Callable[..., int], small: list[str]
) -> None:
    folder = idx_folder("data")
    labels = folder / f"{'t10k' if split == 'test' else 'train'}-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes().replace(b"\x03", b"\x04"))
    run = ["data=idx", f"data.root={folder}", "data.val_size=10", "data.limit=null", f"trainer.backend={backend}"]
    assert mnist_train(*small, *run, "hydra.run.dir=run") == 0
    assert read_run("run").status == "completed"
