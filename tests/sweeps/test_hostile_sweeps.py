"""Another person's sweep can be finished, but it cannot decide where and how jobs run, or name other folders."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist_exp.runs import read_run
from mnist_exp.sweeps.resuming import is_own, left_to_user

QUICK = ["quiet=true", "data.limit=64", "trainer.epochs=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sweep is, once it is made."""
    return tmp_path_factory.mktemp("made") / "sweep"


@pytest.fixture
def stored(made: Path, mnist_train: Callable[..., int], small: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of two waiting jobs, made once for all tests, and copied."""
    from mnist_exp.sweeps import launching

    if not made.exists():
        with monkeypatch.context() as patch:
            patch.setattr(launching, "_run", lambda *arguments: None)
            patch.chdir(made.parent)
            assert mnist_train("-m", *small, *QUICK, "seed=0,1", "hydra.sweep.dir=sweep") == 0
    shutil.copytree(made, "sweep")
    return Path("sweep")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    sweep = json.loads((path / "sweep.json").read_text())
    change(sweep)
    (path / "sweep.json").write_text(json.dumps(sweep))


def statuses(path: Path) -> list[str]:
    return [read_run(run.parent).status for run in sorted(path.glob("*/run.json"))]


@pytest.mark.parametrize(
    "argument",
    [
        "+hydra.callbacks.x={_target_: pathlib.Path.touch, self: owned}",
        "hydra.sweeper.params.seed={_target_: pathlib.Path.touch, _args_: [owned]}",
        "+hydra.sweeper.params.seed._target_=pathlib.Path.touch",
        "hydra.sweeper.n_trials={_target_: pathlib.Path.touch, _args_: [owned]}",
        "hydra.job.env_set.LD_PRELOAD=x.so",
        "hydra.launcher._target_=pathlib.Path.touch",
        "hydra/launcher=submitit_local",
        "hydra.searchpath=[file:///tmp/theirs]",
        "--config-dir=theirs",
        "--config-name=theirs",
        "data.root=${oc.env:SECRET}",
        r"data.root=$\{oc.env:SECRET\}",
        "experiment=../../theirs",
        "experiment=/tmp/theirs",
        "experiment=choice(../theirs,null)",
        "model@hydra.callbacks.x=mlp",
        "~regularization",
        "resume=elsewhere",
        "+elsewhere=1",
    ],
)
def test_arguments_that_are_not_taken_over_must_be_typed(
    argument: str, stored: Path, mnist_train: Callable[..., int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("SECRET", "hunter2")
    edit(stored, lambda sweep: sweep["arguments"].append(argument))
    before = (stored / "multirun.yaml").stat().st_mtime_ns
    capsys.readouterr()
    assert mnist_train("-m", "sweep.resume=sweep") == 2
    out, err = capsys.readouterr()
    word = shlex.quote(argument)
    assert (out, err) == (
        "",
        f"mnist-train: sweep/sweep.json contains {word}, which sweep.resume does not take over; if you trust it, "
        f"type it: mnist-train -m sweep.resume=sweep {word}\n",
    )
    assert statuses(stored) == ["waiting", "waiting"]
    assert (stored / "multirun.yaml").stat().st_mtime_ns == before
    assert not Path("owned").exists()


def test_a_target_in_our_own_keys_is_refused(
    stored: Path, mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for word in ("+model.x={_target_: pathlib.Path.touch, self: owned}", "model._target_=pathlib.Path.touch"):
        edit(stored, lambda sweep, word=word: sweep["arguments"].append(word))  # type: ignore[misc]
        capsys.readouterr()
        assert mnist_train("-m", "sweep.resume=sweep") == 2
        assert "which sweep.resume does not take over" in capsys.readouterr().err
        assert not Path("owned").exists()


def test_a_typed_launcher_replaces_the_stored_one(
    stored: Path, mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    edit(stored, lambda sweep: sweep["arguments"].extend(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]))
    assert mnist_train("-m", "sweep.resume=sweep", "hydra/launcher=basic") == 0
    assert statuses(stored) == ["completed", "completed"]


def test_the_destination_of_runs_is_not_taken_over(
    stored: Path, mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = ["logger=wandb", "logger.mode=offline", "logger.project=theirs", "logger.upload_files=true"]
    edit(stored, lambda sweep: sweep["arguments"].extend(theirs))
    for run in stored.glob("*/config.yaml"):
        tree = yaml.safe_load(run.read_text())
        logger = {"_target_": "mnist_exp.loggers.wandb.WandbLogger", "_partial_": True, "project": "theirs"}
        more = {
            "entity": "them",
            "mode": "online",
            "tags": [],
            "group": None,
            "upload_files": True,
            "timeout_seconds": 1,
        }
        run.write_text(yaml.safe_dump({**tree, "logger": {**logger, **more}}))
    capsys.readouterr()
    assert mnist_train("-m", "sweep.resume=sweep", "seed=0") == 0
    assert capsys.readouterr().err == "".join(
        f"mnist-train: {word} is not taken over from sweep; if you want it, type it, too\n" for word in theirs[2:]
    )
    assert statuses(stored) == ["completed", "completed"]
    for run in stored.glob("seed=*"):
        recorded = read_run(run).record.wandb
        assert (recorded.project, recorded.entity, recorded.mode) == ("mnist-exp", None, "offline")


@pytest.mark.parametrize(
    "name", ["../part", "/tmp/part", "", ".", "..", "a/b", "a\\b", ".hydra", "c:x", "a\nb", 5, None]
)
def test_job_directories_outside_the_sweep_are_refused(
    name: Any, stored: Path, mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (stored / "seed=1").rename("part")
    edit(stored, lambda sweep: sweep["jobs"][1].update(directory=name))
    capsys.readouterr()
    assert mnist_train("-m", "sweep.resume=sweep") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mnist-train: sweep/sweep.json: jobs.1.directory=")
    assert read_run(Path("part")).status == "waiting"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arguments": [5]}, ": arguments.0=5 should be a valid string"),
        ({"arguments": "x"}, ": arguments=x should be a valid array"),
        ({"jobs": 5}, ": jobs=5 should be a valid array"),
        ({"jobs": [5]}, ": jobs.0=5 should be an object"),
        ({"jobs": [{}]}, ": jobs.0.directory is missing (and 4 more)"),
        ({"command": None}, ": command=null should be a valid string"),
        ({"config_hash_version": "2"}, ': config_hash_version="2" should be a valid integer'),
        ([], " cannot be read: it should be a JSON object"),
    ],
)
def test_a_wrong_type_in_sweep_json_is_refused(
    change: Any, message: str, stored: Path, mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((stored / "sweep.json").read_text())
    (stored / "sweep.json").write_text(json.dumps({**content, **change} if isinstance(change, dict) else change))
    capsys.readouterr()
    assert mnist_train("-m", "sweep.resume=sweep") == 2
    assert capsys.readouterr().err == f"mnist-train: sweep/sweep.json{message}\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "lost"}, "status=lost should be waiting, running, "),
        ({"test_accuracy": "0.9"}, 'test_accuracy="0.9" should be a valid number'),
        ({"seconds": float("nan")}, "seconds=nan should be a finite number"),
        ({"overrides": "seed=1"}, "overrides=seed=1 should be a valid array"),
    ],
)
def test_a_wrong_type_in_a_job_is_refused(
    change: dict[str, Any], message: str, stored: Path, mnist_train: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    edit(stored, lambda sweep: sweep["jobs"][1].update(change))
    capsys.readouterr()
    assert mnist_train("-m", "sweep.resume=sweep") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mnist-train: sweep/sweep.json: jobs.1.{message}")


@pytest.mark.parametrize("name", ["sweep.json", "multirun.yaml", ".lock", ".stop", "study.db", "seed=1", ".submitit"])
def test_links_in_a_sweep_are_refused(
    name: str, stored: Path, mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("outside").mkdir()
    target = Path("outside") / name.lstrip(".")
    if (stored / name).exists():
        (stored / name).rename(target)
    else:
        target.write_text("mine\n")
    (stored / name).symlink_to(target.absolute())
    before = {file: file.read_bytes() for file in Path("outside").rglob("*") if file.is_file()}
    capsys.readouterr()
    assert mnist_train("-m", "sweep.resume=sweep") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name} is a link" in line
    assert {file: file.read_bytes() for file in Path("outside").rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("kind", ["link", "interpolation", "target"])
def test_a_hostile_job_is_refused_before_any_job_starts(
    kind: str, stored: Path, mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    job = stored / "seed=1"
    tree = yaml.safe_load((job / "config.yaml").read_text())
    Path("outside").write_text("mine\n")
    if kind == "link":
        (job / "train.log").unlink()
        (job / "train.log").symlink_to(Path("outside").absolute())
    elif kind == "interpolation":
        (job / "config.yaml").write_text(yaml.safe_dump({**tree, "name": "${oc.env:HOME}"}))
    else:
        (job / "config.yaml").write_text(yaml.safe_dump({**tree, "model": {"_target_": "os.system", "command": "ls"}}))
    capsys.readouterr()
    assert mnist_train("-m", "sweep.resume=sweep") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert Path("outside").read_text() == "mine\n"
    assert read_run(stored / "seed=0").status == "waiting"


@pytest.mark.parametrize("argument", [
    "seed=0,1", "model=lenet5,mlp", "model=choice(lenet5, mlp)", "experiment=study_d/lenet5moon", "+model.depth=2",
    "model.hidden=[64],[32]", "optimizer.lr=1e30,0.01", "sweep=search", "sweep.fail_fast=true", "logger=none",
    "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.params.optimizer.lr=tag(log,interval(1e-4,1e-1))",
    "regularization.distillation.teachers=[a,b]",
])  # fmt: skip
def test_overrides_of_our_own_keys_are_data(argument: str) -> None:
    assert is_own(argument)
    assert left_to_user(["-m", argument]) == []


def test_flags_keep_their_values() -> None:
    words = ["--config-dir", "mine", "-m", "seed=1", "hydra/launcher=joblib", "hydra.sweep.dir=x"]
    assert left_to_user(words) == ["--config-dir", "mine", "hydra/launcher=joblib"]
