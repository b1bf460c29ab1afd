"""``trainer.backend``: what does the work, what is recorded of it, and what is kept when a run goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_exp import device, evaluate
from mnist_exp.runs import read_run


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without one; git and the like are not there either."""
    from mnist_exp.native import build as native_build

    monkeypatch.setenv("PATH", str(tmp_path))
    native_build._load.cache_clear()
    device._warn_once.cache_clear()


def unfinished(path: Path, **changes: Any) -> None:
    """Make a completed run look as if it had been interrupted after its last epoch."""
    record = json.loads((path / "run.json").read_text())
    record |= {"status": "interrupted", **changes}
    (path / "run.json").write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def test_native_is_the_default_and_is_recorded_but_not_hashed(
    mnist_train: Callable[..., int], small: list[str]
) -> None:
    for name, override in (("auto", []), ("native", ["trainer.backend=native"]), ("torch", ["trainer.backend=torch"])):
        assert mnist_train(*small, *override, f"hydra.run.dir={name}") == 0
    runs = {name: read_run(Path(name)) for name in ("auto", "native", "torch")}
    assert {name: run.record.backend for name, run in runs.items()} == {
        "auto": "native",
        "native": "native",
        "torch": "torch",
    }
    assert len({run.record.config_hash for run in runs.values()}) == 1
    assert Path("auto/predictions.npz").read_bytes() == Path("native/predictions.npz").read_bytes()
    states = [torch.load(f"{name}/checkpoints/last.pt", weights_only=True)["model"] for name in ("native", "torch")]
    assert states[0].keys() == states[1].keys()
    assert any(not torch.equal(ours, states[1][name]) for name, ours in states[0].items())
    for ours, reference in zip(states[0].values(), states[1].values(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)
    for name in ("auto", "torch"):
        assert evaluate.evaluate_run(Path(name), [])[0]["matches_record"] is True


def test_an_average_of_weights_and_a_teacher_are_native_too(mnist_train: Callable[..., int], small: list[str]) -> None:
    assert mnist_train(*small, "hydra.run.dir=teacher", "regularization=full") == 0
    assert mnist_train(*small, "hydra.run.dir=pupil", "regularization.distillation.teachers=[teacher]") == 0
    for name in ("teacher", "pupil"):
        assert evaluate.evaluate_run(Path(name), [])[0]["matches_record"] is True


def test_a_run_goes_on_as_it_began(
    mnist_train: Callable[..., int],
    small: list[str],
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    assert mnist_train(*small, "hydra.run.dir=ours") == 0
    assert mnist_train(*small, "hydra.run.dir=theirs", "trainer.backend=torch") == 0
    shutil.copytree("theirs", "old")
    unfinished(Path("theirs"))
    unfinished(Path("old"), backend=None)  # of a version that did not record it
    unfinished(Path("ours"))
    for name in ("theirs", "old"):
        assert mnist_train(f"resume={name}") == 0
        assert read_run(Path(name)).record.backend == "torch"
    request.getfixturevalue("no_compiler")
    capsys.readouterr()
    assert mnist_train("resume=ours") == 2
    assert capsys.readouterr().err == (
        "mnist-train: this run began with native kernels, which cannot be had here: "
        "no C compiler (cc, gcc, clang) is installed\n"
    )
    result, _ = evaluate.evaluate_run(Path("ours"), [])  # to rounding, so it is not called a mismatch
    assert result["matches_record"] is None


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["trainer.compile=true"],
            "contradicts trainer.compile=true; use trainer.compile=false or trainer.backend=auto",
        ),
        (["trainer.precision=bfloat16"], "contradicts trainer.precision=bfloat16; use trainer.precision=float32"),
        (["trainer.device=cuda"], "contradicts trainer.device=cuda; use trainer.device=cpu or trainer.backend=auto"),
        (["model=lenet5_1998"], "cannot be: there are no kernels for LeNet5_1998; use trainer.backend=torch"),
    ],
)
def test_native_where_it_cannot_be_is_a_mistake(
    overrides: list[str],
    line: str,
    mnist_train: Callable[..., int],
    small: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert mnist_train(*small, *overrides, "trainer.backend=native") == 2
    (error,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("mnist-train: ")]
    assert error.startswith("mnist-train: trainer.backend=native ")
    assert line in error


def test_without_a_compiler_pytorch_is_used_and_one_line_says_so(
    small: list[str], mnist_train_process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = mnist_train_process("-m", *small, "seed=0,1", "hydra.sweep.dir=sweep", env=environment)
    assert done.returncode == 0, done.stderr
    line = "mnist-train: PyTorch instead of native kernels, which cannot be had here: no C compiler"
    assert done.stderr.count(line) == 1
    refused = mnist_train_process(*small, "trainer.backend=native", "hydra.run.dir=run", env=environment)
    assert refused.returncode == 2
    assert refused.stderr == (
        "mnist-train: trainer.backend=native cannot be: no C compiler (cc, gcc, clang) is installed; "
        "use trainer.backend=torch\n"
    )
