"""Jobs that run at once on a machine share its cores, or there is a warning."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from mnist_exp.compose import BASIC_LAUNCHER
from mnist_exp.sweeps import shares
from mnist_exp.sweeps.shares import Shares, shares_of, warn_of_too_many_threads

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
LOCAL = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"


@pytest.mark.parametrize(
    ("launcher", "cores", "expected"),
    [
        ({"_target_": JOBLIB, "n_jobs": 2}, 6, Shares(2, threads=3)),
        ({"_target_": JOBLIB, "n_jobs": 2}, 2, Shares(2, threads=2)),
        ({"_target_": JOBLIB, "n_jobs": -1}, 6, Shares(6, threads=1)),
        ({"_target_": JOBLIB, "n_jobs": 99}, 6, Shares(99, threads=1)),
        ({"_target_": LOCAL, "cpus_per_task": 2}, 6, Shares(3, capped=True, threads=2)),
        ({"_target_": LOCAL, "cpus_per_task": None, "cpus_per_gpu": None}, 1, Shares(6, capped=True, threads=1)),
        ({"_target_": SLURM, "cpus_per_task": 4, "partition": None}, 6, Shares(threads=4)),
        ({"_target_": "hydra_plugins.theirs.RayLauncher", "ray": {"remote": {"num_cpus": 2}}}, 6, Shares(threads=2)),
        ({"_target_": BASIC_LAUNCHER}, 6, Shares()),
        ({"_target_": "somebody's"}, 6, Shares(threads=2)),
        ({"_target_": "somebody's"}, 1, Shares(threads=1)),
        ({"_target_": "somebody's", "n_jobs": 2}, 6, Shares(2, threads=3)),
    ],
)
def test_threads_of_each_job_on_six_cores(
    launcher: dict[str, object], cores: int, expected: Shares, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OMP_NUM_THREADS limits the threads of a process, not the number of processes."""
    monkeypatch.setattr(shares, "available_cores", lambda: 6)
    monkeypatch.setattr(shares, "cores", lambda: cores)
    assert shares_of(OmegaConf.create(launcher), jobs=3) == expected


@pytest.mark.parametrize(
    ("at_once", "wanted", "warned"),
    [
        (2, [4, 4], "2 jobs at once with trainer.threads=4 each on 6 cores: training may be many times slower than with "
         "trainer.threads=3"),
        (9, [2, None, 2, 1], "4 jobs at once with trainer.threads=2 each on 6 cores: training may be many times slower "
         "than with trainer.threads=1"),
        (2, [3, 3], None),
        (2, [7], None),  # the run says so itself
        (9, [None] * 9, None),
        (2, [], None),
    ],
)  # fmt: skip
def test_more_threads_than_cores_is_a_warning(
    at_once: int,
    wanted: list[int | None],
    warned: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shares, "available_cores", lambda: 6)
    warn_of_too_many_threads(at_once, wanted)
    assert capsys.readouterr().err == (f"mnist-train: {warned}\n" if warned else "")
