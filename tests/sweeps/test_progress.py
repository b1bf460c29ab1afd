"""What a sweep prints of its jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from synthetic_runs import write_run

from mnist_exp.runs import Status
from mnist_exp.runs.sweep import JobStatus
from mnist_exp.sweeps.directory import SweepDirectory
from mnist_exp.sweeps.progress import Progress, fitting, print_table

PARTS = ["360 of 1000 done", "1 running (epoch 4)", "8 failed", "32 s left", "highest test 98.97%"]


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (200, "360 of 1000 done, 1 running (epoch 4), 8 failed, 32 s left, highest test 98.97%"),
        (69, "360 of 1000 done, 8 failed, 32 s left, highest test 98.97%"),
        (50, "360 of 1000 done, 8 failed, 32 s left"),
        (10, "360 of 1000 done, 8 failed, 32 s left"),
    ],
)
def test_a_line_that_fits(width: int, line: str) -> None:
    assert fitting(PARTS, width) == line


def test_parts_that_are_not_known() -> None:
    assert fitting(["0 of 3 done", "", "", "", ""], 80) == "0 of 3 done"


def test_an_error_of_many_jobs_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = SweepDirectory(tmp_path / "rates", "mnist-train -m", ["-m"])
    statuses = {}
    for seed in range(9):
        job = sweep.add(f"id{seed}", [f"seed={seed}"], [f"seed={seed}"], "lenet5")
        sweep.jobs[job.directory] = replace(job, arm="lenet5")
        error = "RuntimeError: no memory" if seed % 2 else "Diverged: the loss is nan in epoch 1"
        statuses[job.directory] = JobStatus(Status.FAILED if seed % 2 else Status.DIVERGED, error)
    print_table(sweep, {**statuses, "seed=8": JobStatus(Status.COMPLETED, test_accuracy=0.9, seconds=1.0)})
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "see" in line] == [
        "lenet5 · seed 0, lenet5 · seed 2, lenet5 · seed 4 and 1 more: diverged: the loss is nan in epoch 1; see rates/seed=0/train.log",
        "lenet5 · seed 1, lenet5 · seed 3, lenet5 · seed 5 and 1 more: failed: RuntimeError: no memory; see rates/seed=1/train.log",
    ]
    assert lines[-1].startswith("4 jobs not complete; finish: mnist-train -m sweep.resume=")


def test_the_epoch_of_a_job_that_runs(tmp_path: Path, composed: Callable[..., dict[str, Any]]) -> None:
    sweep = SweepDirectory(tmp_path / "rates", "mnist-train -m", ["-m"])
    job = sweep.add("id", ["seed=1"], ["seed=1"], "lenet5")
    path = write_run(sweep.path / job.directory, composed("trainer.epochs=3"), status="running", epochs=2)
    with FileLock(path / ".lock"):
        assert Progress(sweep, [job]).summary() == "0 of 1 done, 1 running (epoch 3 of 3)"
        rows = (path / "metrics.jsonl").read_text()
        (path / "metrics.jsonl").write_text(rows + rows.splitlines()[0].replace('"epoch": 1', '"epoch": 3') + "\n")
        assert Progress(sweep, [job]).summary() == "0 of 1 done, 1 running (epoch 3 of 3)", "it is being completed"


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_job_that_is_killed_has_one_line(
    recorded: bool,
    seen: bool,
    tmp_path: Path,
    composed: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its launcher records the death a moment later, or never; it was seen running, or not yet."""
    monkeypatch.setattr("mnist_exp.sweeps.progress.POLL_SECONDS", 60)
    sweep = SweepDirectory(tmp_path / "rates", "mnist-train -m", ["-m"])
    job = sweep.add("id", ["seed=1"], ["seed=1"], "lenet5")
    path = write_run(sweep.path / job.directory, composed(), status="running" if seen else "waiting", epochs=1)
    with FileLock(path / ".lock"):
        progress = Progress(sweep, [job])
    with progress:
        record = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps({**record, "status": "running"}))
        progress.refresh()
        if recorded:
            record |= {"status": "failed", "error": "ProcessDied: by SIGKILL"}
            (path / "run.json").write_text(json.dumps(record))
        progress.refresh()
    _, line = capsys.readouterr().out.splitlines()
    assert line.endswith(
        "failed: ProcessDied: by SIGKILL" if recorded else "killed: its process ended without recording why"
    )
