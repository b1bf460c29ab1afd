"""Files that killed processes leave in a run directory are removed or reused by the next process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mnist_exp.runs import read_run
from mnist_exp.training import loop


def test_a_run_killed_before_its_record_is_begun_again(mnist_train: Callable[..., int], small: list[str]) -> None:
    run = Path("run")
    (run / "checkpoints").mkdir(parents=True)
    for name in (".lock", "config.yaml", "train.log", ".overrides.yaml.0123456789ab"):
        (run / name).write_text("")
    assert mnist_train(*small, "data.limit=64", "trainer.epochs=1", "model=mlp", "hydra.run.dir=run") == 0
    assert read_run(run).status == "completed"
    assert not [file for file in run.rglob(".*.????????????") if file.is_file()]


@pytest.mark.parametrize("name", ["notes.txt", "config.yaml"])
def test_files_of_the_user_are_still_refused(name: str, mnist_train: Callable[..., int], small: list[str]) -> None:
    Path("run").mkdir()
    Path("run", name).write_text("mine")
    assert mnist_train(*small, "hydra.run.dir=run") == 2
    assert Path("run", name).read_text() == "mine"


def test_a_clock_that_does_not_advance(
    mnist_train: Callable[..., int], small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: 5.0))
    assert mnist_train(*small, "data.limit=64", "trainer.epochs=1", "model=mlp", "hydra.run.dir=run") == 0
    assert read_run(Path("run")).status == "completed"
