"""A sweep on Weights & Biases: one run for each job with every launcher, and an outage loses nothing."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from omegaconf import OmegaConf
from wandb_files import RunFile, read_run
from wandb_server import WandbServer
from warm_commands import WarmCommands

from mnist_exp.loggers.wandb import WandbLogger
from mnist_exp.runs.reading import read_metrics, read_record
from mnist_exp.runs.sweep import read_sweep

ROOT = Path(__file__).parents[2]
LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
}
TrainProcess = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(small: list[str]) -> list[str]:
    return ["-m", *small, "logger=wandb", "hydra.sweep.dir=widths"]


def accuracies(job: Path) -> list[float]:
    """The test accuracies of a job, from its run directory."""
    rows = read_metrics(job)
    assert len(rows) == 2
    return [row["test_accuracy"] for row in rows]


def logged(history: list[dict[str, Any]]) -> list[float]:
    return [row["test/accuracy"] for row in history if "test/accuracy" in row]


def assert_whole(job: Path) -> RunFile:
    """The only W&B file of a job has the same content as its run directory."""
    assert read_record(job).status == "completed"
    assert (job / "predictions.npz").exists()
    run = read_run(job)
    assert logged(run.history) == accuracies(job)
    assert (run.id, run.group) == (read_record(job).wandb.id, "widths")
    assert run.config["seed"] == read_record(job).seed
    assert run.exit_code == 0
    return run


@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
def test_each_job_is_a_run_of_its_own(
    launcher: list[str], command: list[str], mnist_train_process: TrainProcess, tmp_path: Path
) -> None:
    done = mnist_train_process(*command, *launcher, "logger.mode=offline", "seed=0,1")
    assert done.returncode == 0, done.stderr
    runs = [assert_whole(tmp_path / "widths" / f"seed={seed}") for seed in (0, 1)]
    assert [run.name for run in runs] == ["lenet5 · seed 0", "lenet5 · seed 1"]
    assert runs[0].id != runs[1].id


def test_each_job_arrives_as_a_run_of_its_own(
    command: list[str], mnist_train_process: TrainProcess, wandb_server: WandbServer, tmp_path: Path
) -> None:
    """In processes; tests/loggers/test_wandb.py has the same in one process."""
    done = mnist_train_process(*command, *LAUNCHERS["joblib"], "seed=0,1")
    assert done.returncode == 0, done.stderr
    for seed in (0, 1):
        job = tmp_path / "widths" / f"seed={seed}"
        run = wandb_server.runs.pop(read_record(job).wandb.id)
        assert (run.group, run.name, run.config["seed"], run.exit_code) == ("widths", f"lenet5 · seed {seed}", seed, 0)
        assert logged(run.history) == accuracies(job)
    assert wandb_server.runs == {}


@pytest.mark.parametrize("fate", ["gone", "silent"])
def test_an_outage_loses_nothing_and_delays_little(
    fate: str,
    command: list[str],
    mnist_train: Callable[..., int],
    wandb_server: WandbServer,
    brief_outages: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The server stops in the second of four jobs: one is uploaded, one in part, one waits for the server, one does not."""
    delays: dict[str, float] = {}

    def timed(method: str) -> None:
        original = getattr(WandbLogger, method)

        def measured(self: WandbLogger, event: object) -> None:
            began = time.monotonic()
            original(self, event)
            name = Path(self._directory).name
            delays[name] = delays.get(name, 0.0) + time.monotonic() - began
            if fate == "gone" and wandb_server.silent:
                wandb_server.stop()

        monkeypatch.setattr(WandbLogger, method, measured)

    def counted(self: WandbLogger, deadline: float, start: Any = WandbLogger._start_online) -> str | None:
        nonlocal attempts
        attempts += 1
        return start(self, deadline)

    attempts = 0
    monkeypatch.setattr(WandbLogger, "_start_online", counted)
    for method in ("on_start", "on_epoch", "on_end"):
        timed(method)
    wandb_server.runs_until_silent = 2
    assert mnist_train(*command, "seed=range(4)", brief_outages) == 0
    wandb.teardown()
    assert max(delays.values()) < 60, delays
    assert attempts == 3  # the last job was not made to wait
    jobs = [tmp_path / "widths" / f"seed={seed}" for seed in range(4)]
    assert [read_record(job).wandb.mode for job in jobs] == ["online", "online", "offline", "offline"]
    files = [assert_whole(job) for job in jobs]
    assert len({file.id for file in files}) == 4
    assert {job.status for job in read_sweep(tmp_path / "widths").jobs} == {"completed"}


def test_an_outage_in_processes(
    command: list[str], mnist_train_process: TrainProcess, wandb_server: WandbServer, tmp_path: Path
) -> None:
    """Each process finds out for itself, and ends although W&B's service still waits for an answer."""
    wandb_server.runs_until_silent = 2
    done = mnist_train_process(*command, *LAUNCHERS["joblib"], "seed=range(4)", "logger.timeout_seconds=12")
    assert done.returncode == 0, done.stderr
    jobs = [tmp_path / "widths" / f"seed={seed}" for seed in range(4)]
    for job in jobs:
        assert_whole(job)
    assert sorted(read_record(job).wandb.mode for job in jobs) == ["offline", "offline", "online", "online"]


def test_documented_commands(
    small: list[str],
    mnist_train: Callable[..., int],
    wandb_server: WandbServer,
    warm_commands: WarmCommands,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The commands of docs/sweeps.md, with small runs and a test server."""
    lines = re.findall(r"^\$ (.*)", (ROOT / "docs" / "sweeps.md").read_text(), re.MULTILINE)
    assert [line.split()[:2] for line in lines] == [
        ["mnist-report", "outputs"],
        ["mnist-report", "outputs/sweeps/mlp_width"],
        ["python", "scripts/wandb_sweep.py"],
        ["wandb", "sweep"],
        ["wandb", "agent"],
    ]
    assert mnist_train(*small, "logger=wandb", "logger.mode=offline", "hydra.run.dir=outputs/sweeps/mlp_width/a") == 0
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    monkeypatch.setenv("PATH", os.pathsep.join([str(warm_commands.bin), os.environ["PATH"]]))
    said = []
    for line in lines:
        filled = re.sub(r"\bID\b", "sweep0", line.replace("ENTITY", "somebody"))
        done = subprocess.run(filled, shell=True, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout + done.stderr)
        if "scripts/" in line:
            sweep = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
            assert sweep["run_cap"] == 30
            # The same with small runs.
            sweep["command"][1:1] = ["data.val_size=100", *(word for word in small if word != "logger=none")]
            sweep["run_cap"] = 2
            (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert said[:2] == ["outputs/sweeps/mlp_width/a: uploaded\n", "nothing to upload\n"]
    assert f"Run sweep agent with: {filled}\n" in said[3]
    runs = [run for run in wandb_server.runs.values() if run.sweep == "sweep0"]
    assert [run.id for run in runs] == wandb_server.sweeps["sweep0"].run_ids
    assert len(runs) == 2
    for run in runs:
        job = Path("outputs/sweeps/sweep0") / run.id
        assert read_record(job).status == "completed"
        assert read_record(job).wandb.id == run.id
        assert [row[sweep["metric"]["name"]] for row in run.history] == [
            row["val_accuracy"] for row in read_metrics(job)
        ]
        assert (run.project, run.exit_code) == ("mnist-exp", 0)
        for key in sweep["parameters"]:
            told = run.config.pop(key)  # W&B adds what it chose, with the dots in the key
            assert OmegaConf.select(OmegaConf.create(run.config), key) == told
    chosen = [run.config["optimizer"]["lr"] for run in runs]
    assert chosen[0] != chosen[1]

    before = (job / "run.json").read_bytes()
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep0")
    monkeypatch.setenv("WANDB_RUN_ID", runs[-1].id)
    assert mnist_train(*(word for word in sweep["command"][1:] if word != "${args_no_hyphens}")) == 2
    assert (job / "run.json").read_bytes() == before
