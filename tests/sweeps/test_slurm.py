"""Sweeps on Slurm: a real Slurm with one node, which runs during these tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from one_node_slurm import one_node_slurm, why_not
from sweep_processes import BREAKING, assert_each_broken_job_ended_alone, breaking, rows, start, wait_for
from wandb_files import read_run as read_wandb
from warm_commands import WarmCommands

from mnist_exp.runs.reading import read_metrics
from mnist_exp.training import load_checkpoint

REASON = why_not()
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]
ON_SLURM = ["hydra/launcher=submitit_slurm", "hydra.sweep.dir=sweep"]


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """The environment variables for the programs of Slurm."""
    with one_node_slurm() as environment:
        yield {name: environment[name] for name in ("PATH", "SLURM_CONF")}


@pytest.fixture
def ask(environment: dict[str, str]) -> Callable[..., str]:
    """The output of a program of Slurm."""
    return lambda *command: (
        subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True).stdout
    )


def test_a_slurm_that_ends_leaves_nothing() -> None:
    script = "echo $SLURM_CONF; sbatch --wrap 'sleep 60' >&2; sinfo --noheader --format=%D"
    with one_node_slurm() as own:
        done = subprocess.run(["bash", "-c", script], env=own, capture_output=True, text=True, timeout=300, check=True)
    configuration, nodes = done.stdout.splitlines()
    assert nodes == "1", done.stderr
    assert not Path(configuration).parent.exists()
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not any(str(Path(configuration).parent).encode() in command for command in commands)


def test_a_failed_job_affects_no_other_and_preempted_jobs_go_on(
    small: list[str],
    tmp_path: Path,
    environment: dict[str, str],
    ask: Callable[..., str],
    mnist_train: Callable[..., int],
    warm_commands: WarmCommands,
) -> None:
    """The same command finishes the sweep, while Slurm stops three of its jobs."""
    small.remove("trainer.threads=1")
    small += ["trainer.epochs=3", "regularization.dropout=0.2"]
    command = [*small, *ON_SLURM, BREAKING, "hydra.launcher.max_num_timeout=1"]
    python = warm_commands.bin / "python"
    process = start(tmp_path, *command, python=python, PYTHONPATH=breaking(tmp_path), **environment)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert_each_broken_job_ended_alone(tmp_path)

    # Slurm sends a signal before a preemption or the time limit, and then requeues the job.
    takes = {0: ["scancel", "--signal=TERM"], 2: ["scontrol", "requeue"], 6: ["scancel", "--signal=USR2"]}
    parts = {seed: len(record_of(tmp_path, seed).get("resumed", [])) for seed in takes}

    healed = {"PYTHONPATH": str(tmp_path / "break"), "HEALED": "yes", "WAITING": "0,2,6"}
    process = start(tmp_path, *command, python=python, **healed, **environment)
    for index, (seed, take) in enumerate(takes.items()):
        step = ".0" if take[0] == "scancel" else ""  # or it tries again and again while others of the array wait
        wait_for(
            lambda name=f"seed={seed}": rows(tmp_path)[name].status == "running" and begun(tmp_path, name), process
        )
        tasks = dict(line.split() for line in ask("squeue", "--noheader", "--array", "--format=%K %A").splitlines())
        ask(*take, tasks[str(index)] + step)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert {job.status for job in rows(tmp_path).values()} == {"completed"}
    for seed in takes:
        run = f"seed={seed}"
        record = record_of(tmp_path, seed)
        assert record["threads"] == 1
        assert len(record["resumed"]) == parts[seed] + 2, "once by the command, once after the preemption"
        assert mnist_train(*small, "trainer.threads=1", run, f"hydra.run.dir=whole-{seed}") == 0
        assert figures(Path(f"whole-{seed}")) == figures(Path("sweep") / run)
        whole, job = (
            load_checkpoint(path / "checkpoints" / "last.pt", torch.device("cpu"))["model"]
            for path in (Path(f"whole-{seed}"), Path("sweep") / run)
        )
        torch.testing.assert_close(job, whole, rtol=0, atol=0)


def begun(tmp_path: Path, run: str) -> bool:
    metrics = tmp_path / "sweep" / run / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


def record_of(tmp_path: Path, seed: int) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((tmp_path / "sweep" / f"seed={seed}" / "run.json").read_text())
    return record


def figures(run: Path) -> list[dict[str, float | int]]:
    """The values of ``metrics.jsonl``, without the times."""
    return [{key: value for key, value in row.items() if "second" not in key} for row in read_metrics(run)]


def test_interrupted_leaves_nothing_in_the_queue(
    small: list[str], tmp_path: Path, environment: dict[str, str], ask: Callable[..., str]
) -> None:
    small[small.index("logger=none")] = "logger.mode=offline"
    cpus = len(os.sched_getaffinity(0))
    seeds = ",".join(str(seed) for seed in range(10, 12 + cpus))
    command = [*small, *ON_SLURM, "trainer.epochs=3", f"seed={seeds}"]
    process = start(tmp_path, *command, PYTHONPATH=breaking(tmp_path), WAITING=seeds, **environment)
    wait_for(lambda: any(tmp_path.glob("sweep/*/metrics.jsonl")), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, out + err
    assert ask("squeue", "--noheader") == ""
    statuses = {name: job.status for name, job in rows(tmp_path).items()}
    assert set(statuses.values()) == {"interrupted", "waiting"}
    for name in (name for name, status in statuses.items() if status == "interrupted"):
        on_wandb = read_wandb(tmp_path / "sweep" / name)
        assert on_wandb.group == "sweep"
        assert len(on_wandb.history) == len(read_metrics(tmp_path / "sweep" / name))
