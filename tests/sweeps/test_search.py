"""Search: validation data decide; the study is in the sweep directory and can be continued."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

optuna = pytest.importorskip("optuna", reason="needs mnist-exp[optuna]")

from mnist_exp.runs.record import SearchTrial  # noqa: E402  # after importorskip
from mnist_exp.runs.sweep import read_sweep  # noqa: E402  # after importorskip

SEARCH = [
    *("hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(0.001,0.1))", "model.activation=choice(relu,tanh)"),
    *("data.val_size=100", "quiet=true", "hydra.sweep.dir=sweep"),
]


@pytest.fixture
def search(mnist_train: Callable[..., int], small: list[str]) -> Callable[..., int]:
    return lambda *arguments: mnist_train("-m", *small, *SEARCH, *arguments)


def trials(study: int = -1) -> list[Any]:
    name = optuna.study.get_all_study_names("sqlite:///sweep/study.db")[study]
    return list(optuna.load_study(study_name=name, storage="sqlite:///sweep/study.db").trials)


def test_a_study_has_n_trials_and_can_be_extended(
    search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert search("hydra.sweeper.n_trials=3") == 0
    first = trials()
    assert len(first) == 3
    assert all(0.001 <= trial.params["optimizer.lr"] <= 0.1 for trial in first)
    jobs = read_sweep(Path("sweep")).jobs
    assert [job.val_accuracy for job in jobs] == [trial.value for trial in first]
    assert {job.test_accuracy for job in jobs} == {None}, "who tunes must not see the test set"
    assert not any("evaluate_test" in job.directory for job in jobs)
    out = capsys.readouterr().out
    assert [line.partition("]")[0] for line in out.splitlines()[:4]] == ["search: 3 trials", "[1/3", "[2/3", "[3/3"]
    assert search("hydra.sweeper.n_trials=3") == 0
    assert len(trials()) == 3, "it is complete"
    out = capsys.readouterr().out
    assert "search: nothing to do, finished trials: 3; ask for more: hydra.sweeper.n_trials=6\n" in out
    assert out.endswith("compare: mnist-report sweep\n"), "and the table of all jobs"
    assert search("hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=2") == 0
    out = capsys.readouterr().out
    assert out.startswith("search: 5 trials, 3 of them done already\n[4/5]"), "counted over all launches"
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
    assert len(read_sweep(Path("sweep")).jobs) == 3


def test_bad_runs_are_pruned(search: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    more = ["trainer.epochs=4", "optimizer.lr=0.1,0.000001", "model.activation=relu", "seed=range(6)"]
    assert search("hydra.sweeper.n_trials=8", "hydra.sweeper.startup_trials=2", *more) == 0
    statuses = {job.directory: job for job in read_sweep(Path("sweep")).jobs}
    pruned = [job for job in statuses.values() if job.status == "pruned"]
    assert pruned
    assert all(job.error.startswith("Pruned: val_accuracy 0.") for job in pruned)
    assert {trial.state.name for trial in trials()} == {"COMPLETE", "PRUNED"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.sweeper.metric=test_accuracy", "hydra.sweeper.metric=test_accuracy is refused: the test set chooses "
         "nothing; choose from val_accuracy, val_loss"),
        ("data.val_size=0", "a search needs validation data; hold some out: data.val_size=5000"),
        ("hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials=0 should be greater than or equal to 1"),
        ("hydra.sweeper.n_jobs=two", "hydra.sweeper.n_jobs=two should be a valid integer"),
        ("hydra.sweeper.seed=-1", "hydra.sweeper.seed=-1 should be greater than or equal to 0"),
        ("hydra.sweeper.prune=maybe", "hydra.sweeper.prune=maybe should be a valid boolean"),
        ("trainer.batch_size=interval(1.5,8)", "trainer.batch_size=interval(1.5,8): trainer.batch_size takes integers; "
         "write interval(1,8)"),
        ("optimizer.lr=tag(log,interval(0,1))", "optimizer.lr=tag(log,interval(0,1)): the bounds must be positive for a "
         "logarithmic scale"),
        ("optimizer.lr=interval(1,0.5)", "optimizer.lr=interval(1,0.5): the bounds are in the wrong order"),
        ("seed=interval(-9,-9)", "seed=-9 should be greater than or equal to 0 (job optimizer.lr=0."),
    ],
)  # fmt: skip
def test_an_invalid_search_is_a_one_line_error_and_leaves_nothing(
    override: str, message: str, search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(override) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mnist-train: {message}")
    assert not Path("sweep").exists()


INTEGERS = ["model.activation=relu", "optimizer.lr=0.01", "trainer.epochs=1", "hydra.sweeper.n_trials=2"]


def test_integer_bounds_of_an_integer_key_give_integers(search: Callable[..., int]) -> None:
    more = ["trainer.batch_size=interval(16,128)", "optimizer.lr=interval(1,2)", "model.hidden=[8,8]"]
    assert search(*INTEGERS, *more) == 0
    for trial in trials():
        assert isinstance(trial.params["trainer.batch_size"], int)
        assert isinstance(trial.params["optimizer.lr"], float)


@pytest.mark.parametrize(
    ("key", "integer"),
    [
        ("trainer.batch_size", True),
        ("trainer.threads", True),  # null there: the schema knows
        ("model.depth", True),  # null there: the constructor's annotation knows
        ("seed", True),
        ("scheduler.every", True),  # the schema does not know what a scheduler takes; the value does
        ("optimizer.lr", False),
        ("regularization.dropout", False),
        ("regularization.mixup", False),
        ("regularization.augmentation.strength", False),
        ("model.dropout", False),
        ("my.own", False),
    ],
)
def test_which_keys_are_integers(key: str, integer: bool, composed: Callable[..., dict[str, Any]]) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from mnist_exp.sweeps.search import space_of

    config = OmegaConf.create(composed("scheduler=step_decay", "model=mlp"))
    space = space_of(OverridesParser.create().parse_overrides([f"+{key}=interval(1,2)"]), config)
    assert isinstance(space[f"+{key}"], optuna.distributions.IntDistribution) == integer


def test_a_refused_trial_is_not_proposed_again(search: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    spaces = ["seed=interval(0,9)", "seed=interval(-9,-1)", "seed=interval(0,9)"]
    assert [search(*INTEGERS, f"hydra.sweeper.n_trials={n}", space) for n, space in enumerate(spaces, 1)] == [0, 2, 0]
    assert "search: 0 of 1 earlier trials lie in the changed search space" in capsys.readouterr().out
    assert [trial.state.name for trial in trials(0)] == ["COMPLETE"] * 3
    assert len(optuna.study.get_all_study_names("sqlite:///sweep/study.db")) == 1, "the refused trial is deleted"

    assert search(*INTEGERS, "hydra.sweeper.n_trials=5", "seed=interval(0,9)", "model.kernel_size=choice(98,99)") == 2
    assert search(*INTEGERS, "hydra.sweeper.n_trials=4", "seed=interval(0,9)") == 0
    assert len(read_sweep(Path("sweep")).jobs) == len({trial.params["seed"] for trial in trials(0)})


def test_a_mistake_in_a_fixed_override_loses_no_interrupted_trial(
    search: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnist_exp import signals

    calls = 0

    def stopped(self: signals.StopRequest) -> bool:
        nonlocal calls
        calls += 1
        self.signal = signal.SIGTERM if calls >= 5 else None  # in the first epoch
        return self.signal is not None

    with monkeypatch.context() as patch:
        patch.setattr(signals.StopRequest, "__call__", stopped)
        assert search("hydra.sweeper.n_trials=1") == 143
    assert [trial.state.name for trial in trials()] == ["RUNNING"]
    assert search("hydra.sweeper.n_trials=1", "trainer.epochs=0") == 2
    assert [trial.state.name for trial in trials()] == ["RUNNING"]
    assert search("hydra.sweeper.n_trials=1") == 0
    assert [trial.state.name for trial in trials()] == ["COMPLETE"]


def test_a_changed_space_takes_over_the_trials_inside_it(
    search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    batches = "trainer.batch_size=choice(32,64,128)"
    assert search(*INTEGERS, batches, "hydra.sweeper.n_trials=4") == 0
    known = [trial.params["trainer.batch_size"] for trial in trials()]
    kept = [value for value in dict.fromkeys(known) if value != "32"]
    capsys.readouterr()
    assert search(*INTEGERS, "trainer.batch_size=choice(64,128,256)", f"hydra.sweeper.n_trials={len(kept) + 1}") == 0
    said = f"search: {len(kept)} of {len(set(known))} earlier trials lie in the changed search space\n"
    assert (said in capsys.readouterr().out) == (len(kept) != len(set(known)))
    assert [trial.params["trainer.batch_size"] for trial in trials()][:-1] == kept
    assert search(*INTEGERS, batches, "hydra.sweeper.n_trials=4") == 0
    assert [trial.params["trainer.batch_size"] for trial in trials(0)] == known


def test_the_study_is_in_the_sweep_directory_of_any_name(small: list[str], tmp_path: Path) -> None:
    name = "lr?1 {a} #%41 [x]"
    more = ["trainer.epochs=1", "hydra.sweeper.n_trials=1", f"hydra.sweep.dir='{name}'", "sweep.name=second"]
    command = [shutil.which("mnist-train") or "mnist-train", "-m", *small, *SEARCH[:-1], *more]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    (job,) = read_sweep(tmp_path / name).jobs
    assert (tmp_path / name / "study.db").stat().st_size > 0
    told = json.loads((tmp_path / name / job.directory / "run.json").read_text())["search"]
    assert "storage" not in told
    assert set(told) == {"trial", "study", "startup_trials"}


def test_a_search_goes_on_after_its_directory_was_moved(search: Callable[..., int], tmp_path: Path) -> None:
    assert search("hydra.sweeper.n_trials=1") == 0
    shutil.move(tmp_path / "sweep", tmp_path / "moved")
    assert search("hydra.sweeper.n_trials=2", "hydra.sweep.dir=moved") == 0
    assert not (tmp_path / "sweep").exists()
    assert len(read_sweep(tmp_path / "moved").jobs) == 2


def test_a_run_without_its_study_is_trained_to_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from mnist_exp.pruning import OptunaPruning

    told = {"storage": "sqlite:////long/gone/study.db", "trial": 1, "study": "val_accuracy", "startup_trials": 5}
    OptunaPruning(SearchTrial.model_validate(told), tmp_path)
    assert "study.db does not contain this run, which is therefore not pruned" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_the_preset_searches_its_four_keys(mnist_train: Callable[..., int], small: list[str]) -> None:
    more = ["data.val_size=100", "quiet=true", "hydra.sweeper.n_trials=1", "trainer.epochs=1"]
    assert mnist_train("-m", "sweep=search", *small, *more) == 0
    (job,) = read_sweep(Path("outputs/sweeps/search")).jobs
    assert {override.partition("=")[0] for override in job.overrides} == {
        *("optimizer.lr", "regularization.weight_decay", "regularization.dropout"),
        "regularization.augmentation.strength",
    }


def test_a_deleted_key_stays_deleted(search: Callable[..., int]) -> None:
    more = ["trainer.epochs=1", "hydra.sweeper.n_trials=1", "~regularization.augmentation.strength"]
    assert search(*more) == 0
    (job,) = read_sweep(Path("sweep")).jobs
    assert "strength" not in (Path("sweep") / job.directory / "config.yaml").read_text()
