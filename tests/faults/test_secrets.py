"""Values of the environment, such as the API key of W&B, are in no file, no message and nothing that is sent to W&B."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from exit_status import status_of
from wandb_server import WandbServer

from mnist_exp.cli import eval as evaluation
from mnist_exp.cli import report

KEY = "0123456789abcdef0123456789abcdef01234567"
SECRETS = {"WANDB_API_KEY": KEY, "AWS_SECRET_ACCESS_KEY": "hunter2-of-the-cloud", "MY_TOKEN": "hunter2-of-my-own"}
TINY = ["model=mlp", "model.hidden=[8]", "data.limit=64", "trainer.epochs=1"]


def test_no_secret_is_written_printed_or_sent(
    mnist_train: Callable[..., int],
    small: list[str],
    wandb_server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    run = [*small, *TINY, "logger=wandb"]
    assert mnist_train(*run, "logger.upload_files=true", "hydra.run.dir=online") == 0
    assert wandb_server.runs, "the run was sent"
    with monkeypatch.context() as patch:

        def fail(*arguments: object, **options: object) -> None:
            raise RuntimeError("a failure with a traceback")

        patch.setattr("mnist_exp.experiment.fit", fail)
        assert mnist_train(*run, "logger.mode=offline", "hydra.run.dir=failed") == 1
    assert mnist_train("-m", *run, "logger.mode=offline", "seed=0,1", "hydra.sweep.dir=sweep") == 0
    assert status_of(evaluation.main, "online") == 0
    assert status_of(report.main, "online", "failed", "sweep", "--output", "report") == 0
    said = capfd.readouterr()
    files = [file for file in tmp_path.rglob("*") if file.is_file() and not file.is_symlink()]
    assert len(files) > 30
    contents = {str(file): file.read_bytes() for file in files}
    contents |= {f"request {number}": body for number, body in enumerate(wandb_server.bodies)}
    contents |= {"standard output": said.out.encode(), "standard error": said.err.encode()}
    found = {
        (name, where) for name, value in SECRETS.items() for where in contents if value.encode() in contents[where]
    }
    assert not found


@pytest.mark.parametrize("key", [f"{KEY} {KEY}", KEY[:20]])
def test_a_key_that_cannot_be_used_is_not_shown(
    key: str,
    mnist_train: Callable[..., int],
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert mnist_train(*small, *TINY, "logger=wandb", "hydra.run.dir=run") == 0
    said = "".join(capfd.readouterr()) + (tmp_path / "run" / "train.log").read_text()
    assert "the API key cannot be used" in said
    assert key.strip() not in said
    assert KEY[:20] not in said
