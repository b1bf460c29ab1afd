"""A failed job affects no other, the same command finishes the sweep, and runs are not mixed up."""

from __future__ import annotations

import json
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sweep_processes import breaking, start, wait_for

from mnist_exp import build
from mnist_exp.compose import CONF
from mnist_exp.config import check
from mnist_exp.runs import read_run
from mnist_exp.runs.sweep import read_sweep
from mnist_exp.sweeps.directory import directory_name, job_id

INSTALLED = [str(Path(sys.executable).with_name("mnist-train"))]
QUICK = ["quiet=true", "data.limit=64", "trainer.epochs=1", "hydra.sweep.dir=sweep"]


@pytest.fixture
def sweep(mnist_train: Callable[..., int], small: list[str]) -> Callable[..., int]:
    """``mnist-train -m`` with tiny runs in the directory ``sweep``; returns the exit status."""
    return lambda *arguments: mnist_train("-m", *arguments, *small, *QUICK)


def statuses(path: Path = Path("sweep")) -> dict[str, str]:
    return {job.directory: job.status for job in read_sweep(path).jobs}


def started(path: Path = Path("sweep")) -> dict[str, str]:
    """When each run began: another value means that it was trained again."""
    return {run.parent.name: json.loads(run.read_text())["started"] for run in path.glob("*/run.json")}


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_jobs_are_directly_in_the_sweep_directory(
    sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("seed=range(3)", "model=lenet5,mlp") == 0
    names = {f"model={model},seed={seed}" for model in ("lenet5", "mlp") for seed in range(3)}
    assert {path.parent.name for path in Path("sweep").glob("*/run.json")} == names
    runs = {name: read_run(Path("sweep") / name) for name in names}
    assert {run.status for run in runs.values()} == {"completed"}
    assert runs["model=mlp,seed=2"].record.seed == 2
    assert {run.record.sweep for run in runs.values()} == {"sweep"}
    assert all(run.record.versions for run in runs.values())
    assert {path.name for path in Path("sweep/model=mlp,seed=2/.hydra").iterdir()} == {
        *("config.yaml", "hydra.yaml", "overrides.yaml")
    }
    stored = read_sweep(Path("sweep"))
    assert stored.command.startswith("mnist-train -m 'seed=range(3)' ")
    job = stored.jobs[0]
    assert job.overrides == ("seed=0", "model=lenet5")
    assert job.status == "completed"
    assert job.test_accuracy == runs["model=lenet5,seed=0"].record.final["test_accuracy"]
    out = capsys.readouterr().out
    assert "sweep sweep: 6 jobs\n" in out
    assert re.findall(r"^\[(\d)/6\] \w+ · seed \d: test \d+\.\d\d%, \d+ s$", out, re.MULTILINE) == list("123456")
    assert "epoch" not in out, "of a job, its result is enough"
    accuracies = {name: run.record.final["test_accuracy"] for name, run in runs.items()}
    for model in ("lenet5", "mlp"):
        values = [100 * value for name, value in accuracies.items() if name.startswith(f"model={model},")]
        row = f" {model} +. 3 . {statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} % "
        assert re.search(row, out), row
    assert out.endswith("\ncompare: mnist-report sweep\n")


def test_the_first_sweep_of_a_process_has_a_name(small: list[str], tmp_path: Path) -> None:
    """No preset, name or directory: the model, the date and a token. A process that ran before would hide a mistake."""
    command = [*INSTALLED, "-m", *small, "quiet=true", "data.limit=64", "trainer.epochs=1", "model=mlp", "seed=0,1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (directory,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert re.fullmatch(r"mlp-\d{4}-\d\d-\d\d-[0-9a-f]{6}", directory.name)
    assert list(statuses(directory)) == ["seed=0", "seed=1"]


def test_a_job_of_a_sweep_equals_the_same_run_alone(
    sweep: Callable[..., int], mnist_train: Callable[..., int], small: list[str]
) -> None:
    assert sweep("seed=0,1") == 0
    assert mnist_train(*small, "data.limit=64", "trainer.epochs=1", "seed=1", "hydra.run.dir=alone") == 0
    with np.load("alone/predictions.npz") as alone, np.load("sweep/seed=1/predictions.npz") as job:
        np.testing.assert_array_equal(alone["logits"], job["logits"])
    assert read_run(Path("alone")).record.config_hash == read_run(Path("sweep/seed=1")).record.config_hash
    alone_config, job_config = read_run(Path("alone")).config, read_run(Path("sweep/seed=1")).config
    assert {**job_config.plain(), "quiet": False} == alone_config.plain()


def test_the_same_command_again_does_nothing(sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("seed=0,1") == 0
    before = contents(Path("sweep/seed=0"))
    capsys.readouterr()
    assert sweep("seed=0,1") == 0
    assert contents(Path("sweep/seed=0")) == before
    assert capsys.readouterr().out.startswith("sweep sweep: 2 jobs, 2 of them done already\n")


def test_adding_and_reordering_renumbers_nothing(sweep: Callable[..., int]) -> None:
    assert sweep("seed=1,2") == 0
    before = started()
    assert sweep("seed=3,2,0,1") == 0
    after = started()
    assert set(after) == {"seed=0", "seed=1", "seed=2", "seed=3"}
    assert {name: after[name] for name in before} == before
    assert read_run(Path("sweep/seed=3")).config.seed == 3


def test_other_settings_under_the_same_name_get_their_own_directory(sweep: Callable[..., int]) -> None:
    assert sweep("seed=0,1") == 0
    before = contents(Path("sweep/seed=0"))
    assert sweep("seed=0,1", "optimizer=adam") == 0
    assert contents(Path("sweep/seed=0")) == before
    assert len(statuses()) == 4
    (other,) = [name for name in statuses() if name.startswith("seed=0-")]
    assert read_run(Path("sweep") / other).config.optimizer.target == "torch.optim.Adam"


def test_failures_affect_no_other_job_and_are_run_again(
    sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mnist_exp import experiment

    fit = experiment.fit
    kinds: dict[int, Callable[[], Any]] = {0: lambda: 1 / 0, 1: lambda: sys.exit(3)}

    def broken(training: Any, digits: Any, recipe: Any, **options: Any) -> None:
        kinds.get(recipe.seed, lambda: None)()
        fit(training, digits, recipe, **options)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "fit", broken)
        assert sweep("seed=0,1,2,3") == 1
    assert statuses() == {"seed=0": "failed", "seed=1": "failed", "seed=2": "completed", "seed=3": "completed"}
    errors = {job.directory: job.error for job in read_sweep(Path("sweep")).jobs}
    assert errors["seed=0"] == "ZeroDivisionError: division by zero"
    assert errors["seed=1"] == "SystemExit: 3"
    out = capsys.readouterr().out
    assert "ZeroDivisionError: division by zero" in " ".join(out.split())
    assert "\nlenet5 · seed 0: failed: ZeroDivisionError: division by zero; see sweep/seed=0/train.log\n" in out
    assert out.splitlines()[-1] == "2 jobs not complete; finish: mnist-train -m sweep.resume=sweep"
    before = started()
    assert sweep("seed=0,1,2,3") == 0
    assert set(statuses().values()) == {"completed"}
    assert started()["seed=3"] == before["seed=3"]


def test_a_diverged_job_is_not_run_again(sweep: Callable[..., int]) -> None:
    assert sweep("optimizer.lr=1e30,0.01") == 1
    assert statuses() == {"lr=1e+30": "diverged", "lr=0.01": "completed"}
    before = started()
    assert sweep("optimizer.lr=1e30,0.01") == 1
    assert started() == before, "the same bits would diverge again"


def test_fail_fast_stops_and_can_be_finished(sweep: Callable[..., int]) -> None:
    assert sweep("optimizer.lr=1e30,0.01,0.02", "sweep.fail_fast=true") == 1
    assert statuses() == {"lr=1e+30": "diverged", "lr=0.01": "waiting", "lr=0.02": "waiting"}
    assert sweep("optimizer.lr=1e30,0.01,0.02") == 1
    assert statuses() == {"lr=1e+30": "diverged", "lr=0.01": "completed", "lr=0.02": "completed"}


def test_resume_needs_only_the_directory(
    sweep: Callable[..., int], mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("optimizer.lr=1e30,0.01", "sweep.fail_fast=true") == 1
    assert mnist_train("-m", "sweep.resume=sweep", "sweep.fail_fast=false") == 1
    assert statuses() == {"lr=1e+30": "diverged", "lr=0.01": "completed"}
    assert mnist_train("-m", "sweep.resume=sweep", "optimizer.lr=0.01,0.02") == 1
    assert statuses() == {"lr=1e+30": "diverged", "lr=0.01": "completed", "lr=0.02": "completed"}
    capsys.readouterr()
    assert mnist_train("-m", "sweep.resume=nowhere") == 2
    assert capsys.readouterr().err == "mnist-train: nowhere is not a sweep directory: it has no sweep.json\n"


def test_a_single_job_is_named_as_the_run(sweep: Callable[..., int]) -> None:
    assert sweep("seed=3") == 0
    assert statuses() == {"lenet5": "completed"}


def test_a_mistake_in_any_job_starts_none(sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("trainer.batch_size=32,0") == 2
    assert capsys.readouterr().err == (
        "mnist-train: trainer.batch_size=0 should be greater than or equal to 1 (job trainer.batch_size=0)\n"
    )
    assert not Path("sweep").exists()


def test_the_parts_of_jobs_that_differ_in_their_seed_are_checked_once(
    sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    monkeypatch.setattr(build, "check_parts", lambda config, directory: checked.append(config.trainer.batch_size))
    assert sweep("seed=0,1", "trainer.batch_size=16,32") == 0
    assert checked == [16, 32]


def test_a_directory_of_something_else_is_refused(
    sweep: Callable[..., int], mnist_train: Callable[..., int], small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train(*small, "quiet=true", "hydra.run.dir=sweep") == 0
    capsys.readouterr()
    assert sweep("seed=0,1") == 2
    assert capsys.readouterr().err == (
        f"mnist-train: {Path.cwd() / 'sweep'} holds a run, not a sweep; choose another hydra.sweep.dir\n"
    )


def test_sweeps_over_threads_and_device_have_a_job_for_each_value(
    mnist_train: Callable[..., int], small: list[str]
) -> None:
    assert mnist_train("-m", *small, *QUICK, "trainer.threads=1,2") == 0
    assert {name: read_run(Path("sweep") / name).record.threads for name in statuses()} == {
        "threads=1": 1,
        "threads=2": 2,
    }


class TestNames:
    """Safe for any value, short, and a function of the overrides as a set."""

    @pytest.mark.parametrize(
        ("overrides", "name"),
        [
            (["seed=3"], "seed=3"),
            (["optimizer.lr=0.1", "seed=3"], "lr=0.1,seed=3"),
            (["seed=3", "optimizer.lr=0.1"], "lr=0.1,seed=3"),
            (["model.hidden=[64,32]"], "hidden=64-32-abcdef"),
            (["experiment=study_d/lenet5moon"], "experiment=study_d-lenet5moon-abcdef"),
            (["data.root=/data/../x y"], "root=data-..-x-y-abcdef"),
            (["+model.depth=2"], "depth=2"),
            (["optimizer.lr=0.01859598286075247", "seed=3"], "lr=0.0186,seed=3-abcdef"),
        ],
    )
    def test_examples(self, overrides: list[str], name: str) -> None:
        assert directory_name(overrides, "abcdef012345") == name

    def test_long_values_give_short_distinct_names(self) -> None:
        first = directory_name([f"model.hidden=[{'64,' * 60}64]"], "aaaaaa000000")
        second = directory_name([f"model.hidden=[{'64,' * 60}32]"], "bbbbbb000000")
        assert first != second
        assert len(first) <= 80

    def test_an_identity_is_the_hash_of_the_config(self, composed: Callable[..., dict[str, Any]]) -> None:
        assert job_id(check(composed("seed=1")), ["seed=1"]) == job_id(check(composed("seed=1")), [])
        assert job_id(check(composed("seed=1")), ["seed=1"]) != job_id(check(composed("seed=2")), ["seed=2"])


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration directory before ours, which a test may edit."""
    folder = tmp_path / "mine"
    (folder / "trainer").mkdir(parents=True)
    (folder / "trainer" / "mine.yaml").write_text("defaults: [default]\neval_batch_size: 500\n")
    return folder


def test_editing_conf_changes_no_waiting_job(
    sweep: Callable[..., int], own_conf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mnist_exp import experiment

    fit = experiment.fit

    def edit(*arguments: Any, **options: Any) -> None:
        (own_conf / "trainer" / "mine.yaml").write_text("defaults: [default]\neval_batch_size: 250\n")
        fit(*arguments, **options)

    command = ["--config-dir", str(own_conf), "trainer=mine", "seed=0,1"]
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "fit", edit)
        assert sweep(*command) == 0
    told = (
        "mnist-train: conf/ has changed since 2 jobs of this sweep were composed: trainer.eval_batch_size: 500 -> 250; "
        "the stored configurations are used; for the new ones choose another hydra.sweep.dir\n"
    )
    assert capsys.readouterr().err == told
    for name in ("seed=0", "seed=1"):
        assert read_run(Path("sweep") / name).config.trainer.eval_batch_size == 500
    assert sweep(*command) == 0
    assert capsys.readouterr().err == told
    assert list(statuses()) == ["seed=0", "seed=1"], "they are the same jobs still"


@pytest.mark.parametrize(
    "preset", sorted(path.stem for path in (CONF / "sweep").glob("*.yaml") if path.stem != "search")
)
def test_preset_is_a_sweep_of_its_own_name(
    preset: str, mnist_train: Callable[..., int], small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnist_exp.sweeps import launching

    monkeypatch.setattr(launching, "_run", lambda *arguments: None)
    assert mnist_train("-m", f"sweep={preset}", "logger=none") == 0
    jobs = read_sweep(Path("outputs/sweeps") / preset).jobs
    assert len(jobs) >= 10
    assert len({job.id for job in jobs}) == len(jobs)
    first = (CONF / "sweep" / f"{preset}.yaml").read_text().splitlines()[1]
    assert f"mnist-train -m sweep={preset}" in (CONF / "sweep" / f"{preset}.yaml").read_text(), first


LONG = ["trainer.epochs=3", "hydra.sweep.dir=sweep", "seed=3,4,8", "quiet=true"]


def assert_equals_uninterrupted(name: str, mnist_train: Callable[..., int], small: list[str]) -> None:
    assert mnist_train(*small, "trainer.epochs=3", name, "quiet=true", "hydra.run.dir=whole") == 0
    with np.load("whole/predictions.npz") as whole, np.load(f"sweep/{name}/predictions.npz") as job:
        np.testing.assert_array_equal(whole["logits"], job["logits"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_sweep_is_finished_by_the_same_command(
    number: signal.Signals, small: list[str], tmp_path: Path, mnist_train: Callable[..., int]
) -> None:
    process = start(tmp_path, *small, *LONG, PYTHONPATH=breaking(tmp_path), WAITING="4")
    metrics = tmp_path / "sweep" / "seed=4" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    found = [read_run(tmp_path / "sweep" / f"seed={seed}").status for seed in (3, 4, 8)]
    if number == signal.SIGKILL:
        assert found == ["completed", "killed", "waiting"]
    else:
        assert found == ["completed", "interrupted", "waiting"]
        assert list(statuses().values()) == found
        assert err == ""
        assert out.splitlines()[-1] == "2 jobs not complete; finish: mnist-train -m sweep.resume=sweep"
    assert mnist_train("-m", *small, *LONG) == 0
    assert set(statuses().values()) == {"completed"}
    assert_equals_uninterrupted("seed=4", mnist_train, small)
