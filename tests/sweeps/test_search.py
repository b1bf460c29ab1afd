"""Search: validation data decide, the study lies in the sweep directory and goes on where it stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

optuna = pytest.importorskip("optuna", reason="needs mnist-exp[optuna]")

from mnist_exp.sweeps.directory import read_sweep  # noqa: E402

SEARCH = [
    *("hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(0.001,0.1))", "model.activation=choice(relu,tanh)"),
    *("data.val_size=100", "quiet=true", "hydra.sweep.dir=sweep"),
]


@pytest.fixture
def search(mnist_train: Callable[..., int], small: list[str]) -> Callable[..., int]:
    return lambda *arguments: mnist_train("-m", *small, *SEARCH, *arguments)


def trials() -> list[Any]:
    (name,) = optuna.study.get_all_study_names("sqlite:///sweep/study.db")
    study = optuna.load_study(study_name=name, storage="sqlite:///sweep/study.db")
    return list(study.trials)


def test_a_study_is_as_long_as_asked_and_can_be_made_longer(search: Callable[..., int]) -> None:
    assert search("hydra.sweeper.n_trials=3") == 0
    first = trials()
    assert len(first) == 3
    assert all(0.001 <= trial.params["optimizer.lr"] <= 0.1 for trial in first)
    jobs = read_sweep(Path("sweep"))["jobs"]
    assert [job["val_accuracy"] for job in jobs] == [trial.value for trial in first]
    assert search("hydra.sweeper.n_trials=3") == 0
    assert len(trials()) == 3, "it is complete"
    assert search("hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=2") == 0
    later = trials()
    assert [trial.params for trial in later[:3]] == [trial.params for trial in first]
    assert len({trial.params["optimizer.lr"] for trial in later}) == 5, "nothing is proposed twice"


def test_a_trial_that_was_interrupted_is_continued(search: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    from mnist_exp import signals

    calls = 0

    def stop_at(self: signals.StopRequest) -> bool:
        nonlocal calls
        calls += 1
        self.signal = signal.SIGTERM if calls >= 15 else None  # in the second trial
        return self.signal is not None

    with monkeypatch.context() as patch:
        patch.setattr(signals.StopRequest, "__call__", stop_at)
        assert search("hydra.sweeper.n_trials=3") == 143
    asked = [trial.params for trial in trials()]
    assert [trial.state.name for trial in trials()] == ["COMPLETE", "RUNNING"]
    assert search("hydra.sweeper.n_trials=3") == 0
    assert [trial.state.name for trial in trials()] == ["COMPLETE"] * 3
    assert [trial.params for trial in trials()][:2] == asked
    assert len(read_sweep(Path("sweep"))["jobs"]) == 3


def test_hopeless_runs_are_pruned(search: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    more = ["trainer.epochs=4", "optimizer.lr=0.1,0.000001", "model.activation=relu", "seed=range(6)"]
    assert search("hydra.sweeper.n_trials=8", "hydra.sweeper.startup_trials=2", *more) == 0
    standings = {job["directory"]: job for job in read_sweep(Path("sweep"))["jobs"]}
    pruned = [job for job in standings.values() if job["status"] == "pruned"]
    assert pruned
    assert all(job["error"].startswith("Pruned: val_accuracy 0.") for job in pruned)
    assert {trial.state.name for trial in trials()} == {"COMPLETE", "PRUNED"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.sweeper.metric=test_accuracy", "hydra.sweeper.metric=test_accuracy is refused: the test set chooses "
         "nothing; choose from val_accuracy, val_loss"),
        ("data.val_size=0", "a search needs validation data; hold some out: data.val_size=5000"),
    ],
)  # fmt: skip
def test_the_test_set_decides_nothing(
    override: str, message: str, search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(override) == 2
    assert capsys.readouterr().err == f"mnist-train: {message}\n"
    assert not Path("sweep").exists()


def test_the_preset_searches_all_four(mnist_train: Callable[..., int], small: list[str]) -> None:
    more = ["data.val_size=100", "quiet=true", "hydra.sweeper.n_trials=1", "trainer.epochs=1"]
    assert mnist_train("-m", "sweep=search", *small, *more) == 0
    (job,) = read_sweep(Path("outputs/sweeps/search"))["jobs"]
    assert {override.partition("=")[0] for override in job["overrides"]} == {
        *("optimizer.lr", "regularization.weight_decay", "regularization.dropout"),
        "regularization.augmentation.strength",
    }
