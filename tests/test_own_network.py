"""A user's own network works as ours do; after a refusal there is nothing on disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from exit_status import status_of

from mnist_exp.cli import demo, predict, report
from mnist_exp.cli import eval as evaluate
from mnist_exp.runs import read_run

NETWORKS = '''
from torch import nn


class MyNet(nn.Module):
    """Takes dropout."""

    def __init__(self, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width={width}: must be 1 or more")
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 10))

    def forward(self, images):
        return self.layers(images)


class Plain(nn.Module):
    """Takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def forward(self, images):
        return self.linear(images.flatten(1))


class NoNetwork:
    pass
'''
QUICK = ["trainer.epochs=1", "quiet=true"]


@pytest.fixture
def mine(tmp_path: Path, small: list[str]) -> Iterator[list[str]]:
    """A module and a folder of configuration files in the working directory, and overrides of a short run."""
    (tmp_path / "mynets.py").write_text(NETWORKS)
    folder = tmp_path / "myconf" / "model"
    folder.mkdir(parents=True)
    (folder / "mynet.yaml").write_text("_target_: mynets.MyNet\nwidth: 8\n")
    (folder / "plain.yaml").write_text("_target_: mynets.Plain\n")
    (folder / "nothing.yaml").write_text("_target_: mynets.NoNetwork\n")
    (folder / "absent.yaml").write_text("_target_: mynets.Absent\n")
    yield [*small, *QUICK, "--config-dir", "myconf"]
    sys.modules.pop("mynets", None)


def test_trained_evaluated_resumed_and_reported(
    mine: list[str],
    mnist_train: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert mnist_train(*mine, "model=mynet", "regularization=dropout", "hydra.run.dir=run") == 0
    run = read_run(Path("run"))
    assert run.record.parameters == 785 * 8 + 90
    assert status_of(evaluate.main, "run") == 2
    assert "add: --trust mynets" in capsys.readouterr().err
    assert status_of(evaluate.main, "run", "--trust", "mynets") == 0
    assert "as the run recorded it" in capsys.readouterr().out
    assert mnist_train("resume=run", "trainer.epochs=2") == 2
    assert read_run(Path("run")).status == "completed"
    assert mnist_train("resume=run", "trainer.epochs=2", "--trust", "mynets") == 0
    assert [row["epoch"] for row in read_run(Path("run")).metrics] == [1, 2]
    assert status_of(report.main, "run") == 0, "a report runs no code"
    monkeypatch.setattr(demo.Demo, "serve_forever", lambda server: None)
    assert status_of(demo.main, "run", "--port", "0") == 2
    assert status_of(demo.main, "run", "--port", "0", "--trust", "mynets") == 0
    assert status_of(predict.main, "run", "absent.png") == 2
    assert "--trust mynets" in capsys.readouterr().err


def test_swept_and_the_sweep_finished(mine: list[str], mnist_train: Callable[..., int]) -> None:
    assert mnist_train("-m", *mine, "model=mynet,plain", "seed=0,1", "hydra.sweep.dir=sweep") == 0
    jobs = sorted(path.parent for path in Path("sweep").glob("*/run.json"))
    assert [read_run(job).status for job in jobs] == ["completed"] * 4
    record = json.loads((jobs[0] / "run.json").read_text())
    (jobs[0] / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    finish = ["-m", "sweep.resume=sweep", "--config-dir", "myconf"]
    assert mnist_train(*finish) == 0
    assert read_run(jobs[0]).status == "completed"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=plain", "regularization=dropout"], "regularization.dropout=0.5: mynets.Plain has no argument dropout; leave it off"),
        (["model=plain", "regularization=batch_norm"], "regularization.batch_norm=true: mynets.Plain has no argument batch_norm; leave it off"),
        (["model=mynet", "model.width=0"], "model.width=0: must be 1 or more"),
        (["model=mynet", "+model.depth=2"], "model: MyNet.__init__() got an unexpected keyword argument 'depth'"),
        (["model=nothing"], "model._target_=mynets.NoNetwork is no torch.nn.Module but a NoNetwork"),
        (["model=absent"], "model._target_=mynets.Absent does not exist: mynets has no Absent"),
        (["model.kernel_size=0"], "model.kernel_size=0 should be greater than or equal to 1"),
        (["model.activation=rellu"], "model.activation=rellu should be one of relu, tanh, sigmoid, gelu, silu; did you mean relu?"),
        (["regularization.dropout=[0.1]"], "regularization.dropout=[0.1] has 1 values; this model has 3 layers that take one "
         "(linear1, linear2, linear3): give one for each, or a single one"),
        (["model=mlp", "model._target_=mnist_exp.models.mlp.MLP", "regularization.dropout=[0.1]"],
         "regularization.dropout=[0.1] has 1 values; this model has 3 layers that take one (linear1, linear2, linear3): "
         "give one for each, or a single one"),
        (["+optimizer.nesterovv=true"], "optimizer: SGD.__init__() got an unexpected keyword argument 'nesterovv'"),
        (["optimizer._target_=torch.optim.Sgd"], "optimizer._target_=torch.optim.Sgd does not exist: torch.optim has no Sgd"),
        (["data=idx", "data.root=nowhere"], "nowhere"),
        (["trainer.backend=native", "model=lenet5_1998"], "trainer.backend=native cannot be"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_refused_leaves_nothing_on_disk(
    overrides: list[str],
    message: str,
    mine: list[str],
    mnist_train: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = [word for word in mine if word != "data=mnist5k" or "data=idx" not in overrides]
    assert mnist_train(*kept, *overrides, "hydra.run.dir=run") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1, error
    assert not Path("run").exists()


def test_a_refused_job_stops_the_sweep_before_anything_is_stored(
    mine: list[str], mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train("-m", *mine, "model=mynet", "model.width=4,0", "hydra.sweep.dir=sweep") == 2
    assert "model.width=0: must be 1 or more (job model.width=0)" in capsys.readouterr().err
    assert not Path("sweep").exists()


def test_background_is_the_normalised_empty_pixel(composed: Callable[..., dict[str, Any]]) -> None:
    """The 1998 network pads images with the normalised value of an empty pixel."""
    from mnist_exp.components import build_model
    from mnist_exp.config import check

    tree = composed("model=lenet5_1998", "data.mean=0.286", "data.std=0.353")
    pad = build_model(check(tree)).layers.pad
    assert pad.value == pytest.approx(-0.286 / 0.353)
