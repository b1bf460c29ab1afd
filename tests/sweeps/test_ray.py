"""Sweeps on Ray: on a new cluster, and on one that is running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from sweep_processes import BREAKING, assert_each_broken_job_ended_alone, breaking, rows, start, wait_for
from wandb_files import read_run as read_wandb

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'mnist-exp[ray]'"),
]
ON_RAY = ["hydra/launcher=ray", "hydra.sweep.dir=sweep"]
OF_TWO = "+hydra.launcher.ray.init.num_cpus=2"


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """An environment in which Ray writes nothing into the home directory; the path is short because it contains sockets."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        # Workers have the niceness 15 by default; on a busy machine they would get no processor time.
        settings = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        yield {"RAY_TMPDIR": folder, **settings}


@pytest.fixture
def cluster(environment: dict[str, str]) -> Iterator[None]:
    """A running cluster, which a sweep joins only if its address is given."""
    options = ["--num-cpus=2", "--include-dashboard=false", "--port=0", "--object-store-memory=100000000"]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "start", "--head", "--block", *options],
        cwd="/",
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(Path(environment["RAY_TMPDIR"], "ray", "ray_current_cluster").exists, process)
        yield
    finally:
        process.terminate()
        process.wait(timeout=300)


@pytest.mark.usefixtures("cluster")
def test_a_failed_job_affects_no_other_and_another_cluster_finishes_the_sweep(
    small: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    small[small.index("logger=none")] = "logger.mode=offline"
    small.remove("trainer.threads=1")
    command = [*small, *ON_RAY, OF_TWO, "data.limit=64", "trainer.epochs=1", BREAKING]
    process = start(tmp_path, *command, PYTHONPATH=breaking(tmp_path), **environment)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert_each_broken_job_ended_alone(tmp_path)
    records = {name: json.loads((tmp_path / "sweep" / name / "run.json").read_text()) for name in rows(tmp_path)}
    again = {name for name, record in records.items() if "resumed" in record}
    assert again == {"seed=2"}, "no job was repeated; only the death of this process was recorded by another one"
    assert records["seed=3"]["threads"] == 1

    joined = ["sweep.resume=sweep", ON_RAY[0], "hydra.launcher.ray.init.address=auto"]
    process = start(tmp_path, *joined, **environment)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Connected to Ray cluster" in err
    assert {job.status for job in rows(tmp_path).values()} == {"completed"}
    assert json.loads((tmp_path / "sweep" / "seed=3" / "run.json").read_text()) == records["seed=3"]
    for name in ("seed=0", "seed=3"):
        assert read_wandb(tmp_path / "sweep" / name).group == "sweep"


def test_interrupted_once_and_continued(
    small: list[str], tmp_path: Path, environment: dict[str, str], mnist_train: Callable[..., int]
) -> None:
    small.append("trainer.epochs=3")
    command = [*small, *ON_RAY, OF_TWO, "seed=3,4,8"]
    process = start(tmp_path, *command, PYTHONPATH=breaking(tmp_path), WAITING="3,4,8", **environment)
    wait_for(lambda: sum(1 for _ in tmp_path.glob("sweep/*/metrics.jsonl")) >= 2, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, out + err
    statuses = {name: job.status for name, job in rows(tmp_path).items()}
    assert set(statuses.values()) == {"interrupted", "waiting"}
    name = next(name for name, status in statuses.items() if status == "interrupted")
    assert mnist_train(f"resume=sweep/{name}") == 0
    assert mnist_train(*small, name, "hydra.run.dir=whole") == 0
    with np.load("whole/predictions.npz") as whole, np.load(f"sweep/{name}/predictions.npz") as job:
        np.testing.assert_array_equal(whole["logits"], job["logits"])
