"""Jobs of one process that train on the same data read them once; other data replace them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_exp import components
from mnist_exp.runs import read_run

SMALL = ["data=mnist5k", "model=mlp", "model.hidden=[8]", "trainer.epochs=1", "logger=none", "quiet=true"]


def test_read_once_for_each_data_set(mnist_train: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    real = components.instantiate

    def instantiate(section: dict[str, object]) -> object:
        if "split_seed" in section:
            read.append(section["limit"])
        return real(section)

    monkeypatch.setattr(components, "instantiate", instantiate)
    assert mnist_train("-m", *SMALL, "data.limit=32,64", "seed=0,1,2", "hydra.sweep.dir=sweep") == 0
    assert read == [32, 64]
    runs = [read_run(path) for path in sorted(Path("sweep").glob("*=*"))]
    assert [run.metrics[0]["images_seen"] for run in runs] == [32, 32, 32, 64, 64, 64]
    assert mnist_train(*SMALL, "data.limit=64", "hydra.run.dir=alone") == 0
    assert read == [32, 64, 64], "data are not kept after the sweep"
    assert read_run("alone").metrics[0]["test_loss"] == read_run("sweep/limit=64,seed=0").metrics[0]["test_loss"]
