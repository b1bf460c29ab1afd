"""The arms of a sweep: known by their configuration, and called as in a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import write_run

from mnist_exp.config import Config, check
from mnist_exp.reports.collect import compare
from mnist_exp.runs import Status
from mnist_exp.runs.sweep import JobStatus
from mnist_exp.sweeps.directory import SweepDirectory, job_id
from mnist_exp.sweeps.naming import name_arms, recorded_arms
from mnist_exp.sweeps.progress import print_table

Compose = Callable[..., dict[str, Any]]


class Sweep:
    """A sweep directory to which commands add jobs, each with its complete run."""

    def __init__(self, path: Path, composed: Compose) -> None:
        self.composed = composed
        self.directory = SweepDirectory(path, "mnist-train -m", ["-m"])

    def run(self, fixed: Sequence[str], *jobs: Sequence[str]) -> dict[str, str]:
        """Add jobs; return the recorded arm of each new one, by its label."""
        configs: dict[str, Config] = {}
        trees = {}
        for overrides in jobs:
            name = "mlp" if "model=mlp" in {*fixed, *overrides} else "lenet5"
            tree = self.composed("data=mnist5k", f"name={name}", *fixed, *overrides)
            config = check(tree)
            job = self.directory.add(job_id(config, overrides), overrides, [*fixed, *overrides], config.name)
            configs[job.directory], trees[job.directory] = config, tree
        name_arms(self.directory, configs)
        logged = recorded_arms(self.directory, configs.keys())
        for name, tree in trees.items():
            job = self.directory.jobs[name]
            write_run(self.directory.path / name, tree, seed=configs[name].seed, overrides=job.arguments,
                      arm=logged.get(job.arm, job.arm))  # fmt: skip
        return {self.directory.jobs[name].label: logged.get(job.arm, job.arm)
                for name in configs for job in [self.directory.jobs[name]]}  # fmt: skip

    @property
    def arms(self) -> list[str]:
        return [job.arm for job in self.directory.jobs.values()]


@pytest.fixture
def sweep(tmp_path: Path, composed: Compose) -> Sweep:
    return Sweep(tmp_path / "rates", composed)


RATES = [[f"model={model}", f"optimizer.lr={lr}", "seed=0"] for model in ("lenet5", "mlp") for lr in (0.01, 0.05)]
FOUR = ["lenet5 · lr 0.01", "lenet5 · lr 0.05", "mlp · lr 0.01", "mlp · lr 0.05"]


def test_seeds_that_another_command_line_adds_are_of_the_same_arm(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(sweep.run([], *RATES)) == [f"{arm} · seed 0" for arm in FOUR]
    added = sweep.run(["model=mlp", "optimizer.lr=0.05"], ["seed=1"], ["seed=2"])
    assert added == {"mlp · lr 0.05 · seed 1": FOUR[3], "mlp · lr 0.05 · seed 2": FOUR[3]}
    assert sweep.arms == [*FOUR, FOUR[3], FOUR[3]]
    runs = [sweep.directory.path / name for name in sweep.directory.jobs]
    assert [arm.label for arm in compare(runs).arms] == FOUR, "as in a report"
    done = JobStatus(Status.COMPLETED, test_accuracy=0.9, seconds=1.0)
    print_table(sweep.directory, dict.fromkeys(sweep.directory.jobs, done))
    table = capsys.readouterr().out
    assert [table.count(f" {arm} ") for arm in FOUR] == [1] * 4
    assert "mlp · lr 0.05    │ 3 │ 90.00 ± 0.00 %" in table


def test_a_longer_label_keeps_its_name_on_wandb(sweep: Sweep) -> None:
    assert sweep.run([], *[[f"optimizer.lr={lr}", "seed=0"] for lr in (0.01, 0.05)]).keys() == {
        "lr 0.01 · seed 0",
        "lr 0.05 · seed 0",
    }
    added = sweep.run([], ["model=mlp", "optimizer.lr=0.05", "seed=0"], ["optimizer.lr=0.05", "seed=1"])
    assert added == {"mlp · lr 0.05 · seed 0": "mlp · lr 0.05", "lenet5 · lr 0.05 · seed 1": "lr 0.05"}
    assert sweep.arms == ["lenet5 · lr 0.01", "lenet5 · lr 0.05", "mlp · lr 0.05", "lenet5 · lr 0.05"]


def test_settings_that_change_no_result_are_arms_of_a_sweep_over_them(sweep: Sweep) -> None:
    sweep.run([], *[[f"trainer.threads={n}", f"seed={seed}"] for n in (1, 2) for seed in range(2)])
    assert sweep.arms == ["threads 1", "threads 1", "threads 2", "threads 2"]


def test_a_damaged_run_has_the_name_of_its_directory(sweep: Sweep) -> None:
    sweep.run([], *RATES[:2])
    damaged = sweep.directory.path / next(iter(sweep.directory.jobs))
    (damaged / "config.yaml").write_text("{")
    sweep.run([], ["model=mlp", "optimizer.lr=0.05", "seed=0"])
    assert sweep.arms[0].startswith(damaged.name)
