"""Requested jobs are never merged silently, although their hash ignores some keys."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mnist_exp.config import check
from mnist_exp.hashing import NOT_HASHED, config_hash
from mnist_exp.runs import Status, read_run
from mnist_exp.runs.sweep import JobRecord, read_sweep
from mnist_exp.sweeps.directory import job_id

QUICK = ["trainer.epochs=1", "trainer.threads=1", "trainer.device=cpu", "logger=none", "quiet=true"]
IN = "hydra.sweep.dir=sweep"
# Two values of each key that the hash leaves out; resume, sweep and trust are no part of a job.
SWEPT = {
    "name": "name=a,b",
    "quiet": "quiet=true,false",
    "show_layers": "++show_layers=true,false",
    "logger": "logger.mode=offline,disabled",
    "trainer.device": "trainer.device=cpu,auto",
    "trainer.threads": "+trainer.threads=1,2",
    "trainer.backend": "trainer.backend=auto,torch",
    "trainer.profile": "trainer.profile=true,false",
    "data.root": "data.root=A,B",
}


@pytest.fixture
def stored(mnist_train: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sequence[JobRecord]]:
    """The jobs that a sweep stores, without training them."""
    from mnist_exp.sweeps import launching

    monkeypatch.setattr(launching, "_run", lambda *arguments: None)

    def store(*arguments: str) -> Sequence[JobRecord]:
        assert mnist_train("-m", *arguments, IN) == 0
        return read_sweep(Path("sweep")).jobs

    return store


def test_every_key_that_the_hash_ignores_is_swept_here() -> None:
    assert set(SWEPT) == set(NOT_HASHED) - {"resume", "sweep", "trust"}


@pytest.mark.parametrize("key", SWEPT)
def test_a_sweep_over_a_key_that_the_hash_ignores_has_a_job_for_each_value(
    key: str, stored: Callable[..., Sequence[JobRecord]]
) -> None:
    first = stored(SWEPT[key])
    assert len({job.id for job in first}) == 2
    assert len({job.id.partition("-")[0] for job in first}) == 1
    assert len({job.directory for job in first}) == 2
    assert stored(SWEPT[key]) == tuple(replace(job, status=Status.WAITING) for job in first), (
        "the same command, the same jobs"
    )
    shutil.rmtree("sweep")
    groups = {"logger": "logger=none,wandb"}.get(key)
    assert groups is None or len(stored(groups)) == 2


def test_jobs_that_compute_the_same_are_reported(
    stored: Callable[..., Sequence[JobRecord]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(stored("optimizer.lr=0.1,1e-1,0.2")) == 2
    assert "sweep sweep: 2 jobs compute the same (optimizer.lr=0.1); 1 runs: lr=0.1\n" in capsys.readouterr().out


def test_data_folders_in_configuration_files_distinguish_jobs(
    stored: Callable[..., Sequence[JobRecord]], tmp_path: Path
) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    for site in ("a", "b"):
        (folder / f"{site}.yaml").write_text(f"# @package _global_\ndata: {{root: /data/{site}}}\n")
    command = ["--config-dir", str(tmp_path / "mine"), "experiment=a,b"]
    jobs = stored(*command)
    assert len(jobs) == 2
    assert [job.id for job in stored(*command)] == [job.id for job in jobs]


def test_two_data_sets_are_two_jobs_and_each_trains_on_its_own(
    mnist_train_process: Callable[..., Any], idx_folder: Callable[..., Path]
) -> None:
    for seed, name in enumerate(("A", "B")):
        idx_folder(name, seed=seed)
    done = mnist_train_process("-m", "data=mnist", "data.root=A,B", *QUICK, IN)
    assert done.returncode == 0, done.stderr
    assert "sweep sweep: 2 jobs\n" in done.stdout
    runs = [read_run(Path("sweep") / job.directory) for job in read_sweep(Path("sweep")).jobs]
    assert [Path(run.config.data.folder or "").name for run in runs] == ["A", "B"]
    assert len({run.record.data_digest for run in runs}) == 2
    assert len({run.record.config_hash for run in runs}) == 1


@pytest.mark.parametrize("data", ["data=mnist", "data=idx"])
def test_a_sweep_whose_data_moved_is_finished(
    data: str, mnist_train: Callable[..., int], idx_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    here, command = idx_folder("here"), ["-m", data, "data.root=here", "seed=0,1", *QUICK, IN]
    assert mnist_train(*command) == 0
    shutil.rmtree("sweep/seed=1/checkpoints")
    Path("sweep/seed=1/checkpoints").mkdir()
    record = Path("sweep/seed=1/run.json")
    record.write_text(record.read_text().replace('"completed"', '"interrupted"', 1))
    here.rename("there")
    capsys.readouterr()
    assert mnist_train("-m", "sweep.resume=sweep", "data.root=there") == 0
    assert {job.directory: job.status for job in read_sweep(Path("sweep")).jobs} == {
        "seed=0": "completed",
        "seed=1": "completed",
    }
    assert Path(read_run(Path("sweep/seed=1")).config.data.folder or "").name == "there"
    assert (
        f"sweep sweep: 1 job done already with data in {here}; {here.parent / 'there'} is not read for them, other data "
        "need another hydra.sweep.dir\n" in capsys.readouterr().out
    )


def test_hashes_have_not_changed(composed: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MNIST_DIR", raising=False)
    for overrides, known in [
        ([], "f6f726256a57"),
        (["data=mnist5k"], "acf89310055d"),
        (["model=mlp"], "83c76afeac12"),
        (["data=idx", "data.root=/d"], "0182bb1aa977"),
        (["data=png", "data.root=/d"], "d8e0e0d390c6"),
        (["data.root=/d"], "f6f726256a57"),
        (["regularization=full"], "cc1d1ec90ca3"),
        (["experiment=lenet5_1998"], "d672c8cb1579"),
    ]:
        assert config_hash(check(composed(*overrides))) == known
    assert config_hash(check(composed("init_from=/d"))) != config_hash(check(composed()))
    assert job_id(check(composed()), ["trainer.threads=2"]) == "f6f726256a57-6133"
