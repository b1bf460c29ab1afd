"""Every file in conf/ composes, and every choice trains a few steps on real digits, in this process.

Experiments train as they are typed: each begins with its command, which tests/test_documented_lines.py runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnist_exp.compose import CONF, first_comment
from mnist_exp.config import check
from mnist_exp.runs import read_run

# What these need beyond the defaults, so that a preset is tried as its first comment says.
NEEDS = {"data=idx": ["data.root=digits"], "data=png": ["data.root=digits"]}
CHOICES = sorted(
    file.relative_to(CONF).with_suffix("").as_posix().replace("/", "=", 1)
    for file in CONF.rglob("*.yaml")
    if file.parent != CONF and not {"common", "hydra"} & set(file.relative_to(CONF).parts)
)


@pytest.mark.parametrize("choice", CHOICES)
def test_choice_composes_and_is_valid(choice: str, composed: Callable[..., dict[str, Any]]) -> None:
    check(composed(choice, *NEEDS.get(choice, [])))
    comment = first_comment(CONF / f"{choice.replace('=', '/', 1)}.yaml")
    assert len(comment) > 20, "what it is; --help prints it"
    assert comment.startswith(f"mnist-train {choice}") or not choice.startswith("experiment=")


@pytest.mark.parametrize(
    "choice", [choice for choice in CHOICES if not choice.startswith(("data=", "experiment=", "logger=", "sweep="))]
)
def test_choice_trains(choice: str, mnist_train: Callable[..., int], small: list[str], tmp_path: Path) -> None:
    assert mnist_train(choice, *small, "trainer.epochs=1", "data.limit=192", "hydra.run.dir=run") == 0
    run = read_run(tmp_path / "run")
    assert run.status == "completed"
    assert math.isfinite(run.record.final["test_loss"])


@pytest.mark.parametrize("model", ["lenet5", "mlp"])
def test_everything_at_once_trains(model: str, mnist_train: Callable[..., int], small: list[str]) -> None:
    overrides = ["regularization=full", "optimizer=muon", "scheduler=cosine", "trainer.precision=bfloat16"]
    assert mnist_train(*small, *overrides, f"model={model}", "regularization.gradient_clipping=1.0") == 0


def test_compiled_model_trains_to_the_same_figures(
    mnist_train: Callable[..., int], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through TorchDynamo with the backend that needs no C++ compiler."""
    import torch

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="eager"))
    for name, flag in (("plain", "false"), ("compiled", "true")):
        assert mnist_train(*small, f"trainer.compile={flag}", f"hydra.run.dir={name}") == 0
    plain, compiled = (read_run(tmp_path / name).record.final["test_loss"] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-5)
