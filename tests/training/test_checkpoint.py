"""Checkpoints: what is damaged is not believed, and the one before takes its place."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_exp import signals
from mnist_exp.runs import RunDirectoryError, read_run
from mnist_exp.runs.reading import read_metrics
from mnist_exp.training import drop_previous, load_checkpoint, load_last_whole, save_checkpoint

CPU = torch.device("cpu")
STATE = {"model": {"weight": torch.arange(300.0).reshape(3, 100)}, "epoch": 3, "ema": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return tmp_path / "run" / "checkpoints" / "last.pt"


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_is_noticed(path: Path) -> None:
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 400):
        path.write_bytes(flipped(content, bit))
        with pytest.raises(RunDirectoryError, match=r"last\.pt cannot be read: "):
            load_checkpoint(path, CPU)


@pytest.mark.parametrize("length", [0, 1, 100, 1000, -1])
def test_a_truncated_file_is_noticed(length: int, path: Path) -> None:
    save_checkpoint(path, STATE)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(RunDirectoryError, match=r"last\.pt cannot be read: "):
        load_checkpoint(path, CPU)


def test_plain_torch_reads_it(path: Path) -> None:
    save_checkpoint(path, STATE)
    assert torch.equal(torch.load(path, weights_only=True)["model"]["weight"], STATE["model"]["weight"])  # type: ignore[index]
    assert zipfile.ZipFile(path).testzip() is None


def test_those_of_earlier_versions_are_read_by_their_checksums(path: Path) -> None:
    buffer = BytesIO()
    torch.save(STATE, buffer)
    path.write_bytes(buffer.getvalue())
    assert load_checkpoint(path, CPU)["epoch"] == 3
    weights = buffer.getvalue().index(STATE["model"]["weight"].numpy().tobytes())  # type: ignore[index]
    path.write_bytes(flipped(buffer.getvalue(), 8 * weights + 5))
    with pytest.raises(RunDirectoryError, match="its checksum is another one"):
        load_checkpoint(path, CPU)


@pytest.mark.parametrize("held", [[1, 2], torch.zeros(3), "text"])
def test_something_else_than_a_checkpoint(held: Any, path: Path) -> None:
    save_checkpoint(path, held)
    with pytest.raises(RunDirectoryError, match="is no checkpoint: it holds a "):
        load_checkpoint(path, CPU)


def test_the_one_before_takes_the_place_of_a_damaged_one(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for epoch in (1, 2, 3):
        save_checkpoint(path, {**STATE, "epoch": epoch})
    assert load_last_whole(path, CPU)["epoch"] == 3
    assert caplog.messages == []
    path.write_bytes(flipped(path.read_bytes(), 4000))
    assert load_last_whole(path, CPU)["epoch"] == 2
    (message,) = caplog.messages
    assert message.endswith("; going on from the checkpoint before it, last.previous.pt")
    with pytest.raises(RunDirectoryError):
        drop_previous(path, CPU)
    assert (path.parent / "last.previous.pt").exists(), "it may be all that is left"
    save_checkpoint(path, {**STATE, "epoch": 4})
    drop_previous(path, CPU)
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


def stop_in(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the run of this process stop as if a signal came in this epoch."""

    def stop(self: signals.StopRequest) -> bool:
        metrics = Path("run/metrics.jsonl")
        if metrics.exists() and len(metrics.read_text().splitlines()) == epoch - 1:
            self.signal = 15
            return True
        return False

    monkeypatch.setattr(signals.StopRequest, "__call__", stop)


@pytest.fixture
def interrupted(
    mnist_train: Callable[..., int],
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:
    """A run of three epochs that stopped in its third, in ``run``; returns its overrides."""
    overrides = [*small, "trainer.epochs=3", "model=mlp", "model.hidden=[8]"]
    with monkeypatch.context() as patch:
        stop_in(3, patch)
        assert mnist_train(*overrides, "hydra.run.dir=run") == 143
    capsys.readouterr()
    return overrides


def test_a_run_with_a_damaged_checkpoint_ends_with_the_same_bits(
    interrupted: list[str], mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    last = Path("run/checkpoints/last.pt")
    last.write_bytes(flipped(last.read_bytes(), 9000))
    assert mnist_train("resume=run") == 0
    assert "going on from the checkpoint before it, last.previous.pt" in capsys.readouterr().out
    assert mnist_train(*interrupted, "hydra.run.dir=whole") == 0
    with np.load("run/predictions.npz") as resumed, np.load("whole/predictions.npz") as whole:
        np.testing.assert_array_equal(resumed["logits"], whole["logits"])
    assert [row["test_loss"] for row in read_metrics(Path("run"))] == [
        row["test_loss"] for row in read_metrics(Path("whole"))
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [], "it has 0 of epoch 1"),
        (lambda lines: lines[:1], "it has 0 of epoch 2"),
        (lambda lines: [lines[0], *lines], "it has 2 of epoch 1"),
        (lambda lines: lines[::-1], "they are in another order"),
    ],
)
def test_metrics_that_do_not_fit_the_checkpoint(
    change: Callable[[list[str]], list[str]],
    said: str,
    interrupted: list[str],
    mnist_train: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = Path("run/metrics.jsonl")
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(change(lines)))
    before = read_run("run").record
    assert mnist_train("resume=run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert line.startswith("mnist-train: run/metrics.jsonl should have a line of each of the 2 epochs")
    assert line.endswith("; restore the file, or train again: " + before.command or "")
    assert read_run("run").record == before
    metrics.write_text("".join(lines))
    assert mnist_train("resume=run") == 0
