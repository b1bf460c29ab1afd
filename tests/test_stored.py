"""Resuming a stored run: allowed and refused settings, moved data, more epochs."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mnist_exp.cli import eval as evaluate
from mnist_exp.config import check
from mnist_exp.errors import UsageError
from mnist_exp.runs import read_run
from mnist_exp.runs.reading import read_metrics
from mnist_exp.stored import OPEN_ENDED, changed, parse, with_existing_folder
from mnist_exp.training import constant, cosine, load_checkpoint, one_cycle, step_decay

Train = Callable[..., int]
TINY = ["data.limit=64", "quiet=true"]


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "train.log"}


def assert_same_run(first: Path, second: Path) -> None:
    rows = [[{k: v for k, v in row.items() if "second" not in k} for row in read_metrics(p)] for p in (first, second)]
    assert rows[0] == rows[1]
    states = [load_checkpoint(path / "checkpoints" / "last.pt", torch.device("cpu")) for path in (first, second)]
    for part in ("model", "ema"):
        one, other = ((state[part] or {}) for state in states)
        one, other = one.get("model", one), other.get("model", other)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    with np.load(first / "predictions.npz") as a, np.load(second / "predictions.npz") as b:
        np.testing.assert_array_equal(a["logits"], b["logits"])
    configs = [read_run(path).config for path in (first, second)]
    assert configs[0] == configs[1]
    assert read_run(first).record.config_hash == read_run(second).record.config_hash


EVERYTHING = ["regularization=full", "optimizer=adamw", "data.val_size=32", "trainer.selection=best"]
STEP = ["scheduler=step_decay", "scheduler.every=1", "scheduler.gamma=0.5"]


@pytest.mark.parametrize("recipe", [[], [*EVERYTHING, *STEP]], ids=["plain", "everything"])
def test_a_continued_run_equals_a_longer_one_bit_for_bit(
    recipe: list[str], mnist_train: Train, small: list[str], tmp_path: Path
) -> None:
    common = [*small, *TINY, *recipe]
    assert mnist_train(*common, "hydra.run.dir=run") == 0
    first = read_run(tmp_path / "run").record
    assert mnist_train("resume=run", "trainer.epochs=3") == 0
    assert mnist_train("resume=run", "trainer.epochs=5") == 0
    assert mnist_train(*common, "trainer.epochs=5", "hydra.run.dir=whole") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    record = read_run(tmp_path / "run").record
    assert [entry["epochs"] for entry in record.continued] == [{"from": 2, "to": 3}, {"from": 3, "to": 5}]
    assert record.continued[0]["config_hash"] == first.config_hash
    assert record.continued[0]["final"] == first.final
    assert record.final == read_run(tmp_path / "whole").record.final | {
        key: record.final[key] for key in ("train_seconds", "eval_seconds", "images_per_second")
    }


def test_schedules_that_do_not_depend_on_the_number_of_epochs() -> None:
    settings: dict[Any, dict[str, Any]] = {
        constant: {},
        step_decay: {"every": 1, "gamma": 0.5},
        cosine: {"final": 0.0},
        one_cycle: {"warmup": 0.3, "start_factor": 0.04, "final_factor": 1e-4, "anneal": "cos"},
    }

    def rates(schedule: Any, epochs: int) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        scheduler = schedule(optimizer, epochs=epochs, steps_per_epoch=4, **settings[schedule])
        found = []
        for _ in range(8):
            optimizer.step()
            found.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
        return found

    same = {
        f"mnist_exp.training.{schedule.__name__}" for schedule in settings if rates(schedule, 2) == rates(schedule, 4)
    }
    assert same == OPEN_ENDED


def test_a_schedule_over_all_epochs_needs_a_new_run(
    mnist_train: Train, small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert mnist_train(*small, *TINY, "scheduler=cosine", "model=mlp", "model.hidden=[8]", "hydra.run.dir=run") == 0
    before = contents(tmp_path / "run")
    capsys.readouterr()
    assert mnist_train("resume=run", "trainer.epochs=3") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "mnist-train: run: with scheduler=cosine every learning rate depends on the number of epochs"
    )
    assert contents(tmp_path / "run") == before
    command = shlex.split(line.rpartition("from the start: ")[2])
    assert command[0] == "mnist-train"
    assert mnist_train(*command[1:], "hydra.run.dir=longer") == 0
    assert len(read_metrics(tmp_path / "longer")) == 3


def test_what_cannot_be_resumed_is_one_line_and_changes_nothing(
    mnist_train: Train, small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert mnist_train(*small, *TINY, "hydra.run.dir=run") == 0
    assert mnist_train(*small, *TINY, "hydra.run.dir=new", "init_from=run") == 0
    stopping = ["data.val_size=64", "optimizer.lr=1e-9", "regularization.early_stopping=1", "trainer.epochs=9"]
    assert mnist_train(*small, *TINY, *stopping, "hydra.run.dir=stopped") == 0
    before = contents(tmp_path)
    capsys.readouterr()
    can = "is not possible with resume, which can change data.root, logger, quiet, show_layers, trainer.epochs, trust only"
    for typed, message in [
        ("resume=run", "run holds a completed run; there is nothing to resume, mnist-eval run evaluates it, mnist-train "
         "resume=run trainer.epochs=4 trains it further"),
        ("++resume=run seed=3", f"seed=3 {can}"),
        ("resume=run ++trainer.device=cpu", f"++trainer.device=cpu {can}"),
        ("resume=run model=mlp", f"model=mlp {can}"),
        ("resume=run hydra.run.dir=x", f"hydra.run.dir=x {can}"),
        ("resume=run hydra.job.chdir=true", f"hydra.job.chdir=true {can}"),
        ("resume=run trainer.epochs=2 quiet=false", "run holds a completed run; there is nothing to resume, mnist-eval run "
         "evaluates it, mnist-train resume=run trainer.epochs=4 trains it further"),
        ("resume=run trainer.epochs=1", "run has 2 epochs already; trainer.epochs=1 is not more"),
        ("resume=run trainer.epochs=0", "trainer.epochs=0 should be greater than or equal to 1"),
        ("resume=stopped trainer.epochs=20", "stopped was ended by early stopping after 2 of 9 epochs; with more epochs it "
         "would end there, too"),
        ("resume=run data.root=x", "data.root is not a key of the stored configuration"),
        ("resume=run logger.mode=offline", "logger.mode=offline: the run has no logger; choose one, too: logger=wandb"),
        ("resume=", "resume= needs a run directory: mnist-train resume=DIR"),
        ("resume=run/checkpoints/last.pt", "run/checkpoints/last.pt is inside a run directory; type that one instead: run"),
        ("resume=run/run.json", "run/run.json is inside a run directory; type that one instead: run"),
        ("resume=run/checkpoints", "run/checkpoints is inside a run directory; type that one instead: run"),
        ("sweep.resume=run", "run holds a run, not a sweep; continue it: mnist-train resume=run"),
        ("++sweep.resume=run", "run holds a run, not a sweep; continue it: mnist-train resume=run"),
        ("-m ++resume=run hydra.sweep.dir=sweep", "resume=run continues one run and goes without -m: mnist-train resume=run; "
         "a sweep is finished with mnist-train -m sweep.resume=DIR"),
    ]:  # fmt: skip
        assert mnist_train(*typed.split()) == 2, typed
        assert capsys.readouterr().err == f"mnist-train: {message}\n", typed
    after = {file: content for file, content in contents(tmp_path).items() if file.name != ".lock"}
    assert after == {file: content for file, content in before.items() if file.name != ".lock"}
    assert read_run(tmp_path / "new").record.init_from["epoch"] == 2


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_whatever_sets_resume_resumes(
    prefix: str, mnist_train: Train, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train(*small, *TINY, "hydra.run.dir=run") == 0
    (tmp_path / "run" / "run.json").write_text(
        json.dumps(json.loads((tmp_path / "run" / "run.json").read_text()) | {"status": "interrupted"})
    )
    assert mnist_train(f"{prefix}resume=run", "logger=none", "show_layers=true", "quiet=false") == 0
    assert read_run(tmp_path / "run").status == "completed"
    assert read_run(tmp_path / "run").config.quiet is False
    assert capsys.readouterr().out.count("Layers, for one image") == 1
    assert not (tmp_path / "outputs").exists(), "no new run"


def test_resume_in_a_configuration_file_is_refused(
    small: list[str], tmp_path: Path, mnist_train: Train, mnist_train_process: Callable[..., Any]
) -> None:
    assert mnist_train(*small, *TINY, "hydra.run.dir=run") == 0
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "again.yaml").write_text("# @package _global_\nresume: run\n")
    done = mnist_train_process("--config-dir", "mine", "experiment=again")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "mnist-train: resume=run is set by a configuration file, so that every run would resume this one; type it: "
        "mnist-train resume=run\n"
    )
    assert not (tmp_path / "outputs").exists()


def test_a_mistaken_resume_is_answered_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('IMPORTED', [name for name in ('torch', 'numpy') if name in sys.modules]))\n"
        "sys.argv = ['mnist-train', '++resume=missing', 'trainer.epochs=3']\n"
        "from mnist_exp.cli.train import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "IMPORTED []\n")
    assert done.stderr == "mnist-train: missing is not a directory\n"
    assert list(tmp_path.iterdir()) == []


def test_a_job_of_a_sweep_is_continued_as_a_copy(
    mnist_train: Train, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train("-m", "seed=0,1", *small, *TINY, "hydra.sweep.dir=sweep") == 0
    capsys.readouterr()
    assert mnist_train("resume=sweep/seed=1", "trainer.epochs=3") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "mnist-train: sweep/seed=1 is a job of a sweep that needs 2 epochs; continue a copy: "
        "cp -r sweep/seed=1 NEW, then mnist-train resume=NEW trainer.epochs=3"
    )
    shutil.copytree("sweep/seed=1", "NEW")
    assert mnist_train("resume=NEW", "trainer.epochs=3") == 0
    assert len(read_metrics(tmp_path / "NEW")) == 3
    assert mnist_train("resume=sweep") == 2
    assert capsys.readouterr().err == (
        "mnist-train: sweep is the directory of a sweep; type one of its runs, such as sweep/seed=0\n"
    )


class TestDataThatMoved:
    def test_mnist_dir_or_data_root_names_the_new_folder(
        self, mnist_train: Train, mnist_train_process: Callable[..., Any], idx_folder: Callable[..., Path], tmp_path: Path,
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        quick = ["trainer.epochs=2", "trainer.threads=1", "logger=none", "quiet=true", "trainer.device=cpu"]
        idx_folder("here")
        idx_folder("other", seed=1)
        monkeypatch.setenv("MNIST_DIR", "here")
        assert mnist_train(*quick, "hydra.run.dir=run", "hydra.job.chdir=true") == 0
        run = tmp_path / "run"
        assert read_run(run).config.data.folder == str(tmp_path / "here"), "stored absolute, whatever the directory"
        digest = read_run(run).record.data_digest
        assert len(digest) == 16

        (tmp_path / "here").rename(tmp_path / "there")
        monkeypatch.setenv("MNIST_DIR", str(tmp_path / "there"))
        assert evaluated(capsys, "run")["matches_record"] is True
        monkeypatch.setenv("MNIST_DIR", str(tmp_path / "other"))
        result = evaluated(capsys, "run")
        assert (result["same_data"], result["matches_record"]) == (False, None)
        result = evaluated(capsys, "run", "data.root=there")
        assert (result["data_digest"], result["matches_record"]) == (digest, True)

        before = contents(run)
        assert mnist_train("resume=run", "trainer.epochs=4", "data.root=other") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == (
            f"mnist-train: MNIST in {tmp_path / 'other'}: other images than the run was trained on (digest "
            f"{result_digest(tmp_path)}, not {digest}); if those are elsewhere: mnist-train resume=run data.root=FOLDER"
        )
        assert contents(run) == before, "nothing was lost"
        done = mnist_train_process("resume=run", "trainer.epochs=4", "data.root=there")
        assert done.returncode == 0, done.stderr
        assert read_run(run).config.data.folder == str(tmp_path / "there")
        assert len(read_metrics(run)) == 4

    def test_a_run_of_an_earlier_version_has_no_digest(
        self, mnist_train: Train, idx_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        idx_folder("here")
        quick = ["trainer.epochs=1", "trainer.threads=1", "logger=none", "quiet=true", "trainer.device=cpu"]
        assert mnist_train(*quick, "data=idx", "data.root=here", "hydra.run.dir=run") == 0
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        del record["data_digest"]
        (tmp_path / "run" / "run.json").write_text(json.dumps(record))
        assert mnist_train("resume=run", "trainer.epochs=2") == 0
        assert "recorded no digest of the data; whether they are the same is not checked" in capsys.readouterr().out
        assert read_run(tmp_path / "run").record.data_digest is None, "what it began with is not known"
        assert evaluated(capsys, "run")["matches_record"] is True

    def test_only_mnist_is_looked_for_in_mnist_dir(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, composed: Callable[..., dict[str, Any]]
    ) -> None:
        tree = composed()
        monkeypatch.setenv("MNIST_DIR", str(tmp_path))
        for data, root in [
            ({"root": "/gone", "download": "MNIST"}, str(tmp_path)),
            ({"root": "/gone", "download": "KMNIST"}, "/gone"),
            ({"root": "/gone", "download": None}, "/gone"),
            ({"root": "/", "download": "MNIST"}, "/"),
            ({"root": None, "download": "MNIST"}, None),
        ]:
            assert with_existing_folder(check({**tree, "data": {**tree["data"], **data}}).data).folder == root
        bundled = check(composed("data=mnist5k")).data
        assert with_existing_folder(bundled) == bundled


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    evaluate.main([*arguments, "--json"])
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def result_digest(folder: Path) -> str:
    """Of the digits in ``other``."""
    from mnist_exp.data import idx_folder

    digest = idx_folder(root=str(folder / "other"), download=None).digest
    assert digest is not None
    return digest


def test_a_run_that_starts_from_weights(
    mnist_train: Train, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train(*small, *TINY, "regularization=ema", "hydra.run.dir=source") == 0
    still = ["optimizer.lr=1e-30", "trainer.epochs=1", "data.limit=128"]
    assert mnist_train(*small, *TINY, *still, "init_from=source", "hydra.run.dir=same") == 0
    with np.load("source/predictions.npz") as a, np.load("same/predictions.npz") as b:
        np.testing.assert_array_equal(a["logits"], b["logits"])
    record, config = read_run(tmp_path / "same").record, read_run(tmp_path / "same").config
    assert config.init_from == record.init_from["directory"] == str(tmp_path / "source")
    assert record.init_from["epoch"] == 2
    capsys.readouterr()
    for directory, more, message in [
        ("source/checkpoints/last.pt", [], "init_from: source/checkpoints/last.pt is inside a run directory; type that one "
         "instead: source"),
        ("source", ["model.hidden=[120,80]"],
         f"init_from={tmp_path / 'source'}: another network: classifier.linear2.weight is (84, 120) there, (80, 120) here"),
    ]:  # fmt: skip
        assert mnist_train(*small, *TINY, *more, f"init_from={directory}", "hydra.run.dir=x") == 2
        assert capsys.readouterr().err == f"mnist-train: {message}\n"


def test_overrides_of_a_stored_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/data")
    tree = {"data": {"root": "${oc.env:SECRET}", "limit": None}, "seed": 0}
    result = changed(tree, parse(["data.limit=5", "++seed=3", "data.root=${oc.env:PLACE}/x"]))
    assert result == {"data": {"root": "/data/x", "limit": 5}, "seed": 3}
    assert changed(tree, parse(["seed=1"]))["data"]["root"] == "${oc.env:SECRET}", "nothing stored is interpreted"
    assert tree["seed"] == 0
    for override, message in [
        ("data.rot=1", "data.rot is not a key of the stored configuration; did you mean root?"),
        ("seed=1,2", "seed=1,2 names several values; one is needed here"),
        ("~seed", "~seed: nothing can be deleted here, only set"),
        ("seed=${nowhere}", "seed=${nowhere}: Interpolation key 'nowhere' not found"),
    ]:
        with pytest.raises(UsageError) as refused:
            changed(tree, parse([override]))
        assert str(refused.value) == message


def test_directories_of_runs_are_stored_absolute(mnist_train: Train, small: list[str], tmp_path: Path) -> None:
    assert mnist_train(*small, *TINY, "hydra.run.dir=teacher") == 0
    learning = ["regularization.distillation.teachers=[teacher]", "init_from=teacher", "hydra.job.chdir=true"]
    assert mnist_train(*small, *TINY, *learning, "hydra.run.dir=student") == 0
    config = yaml.safe_load((tmp_path / "student" / "config.yaml").read_text())
    assert config["regularization"]["distillation"]["teachers"] == [str(tmp_path / "teacher")]
    assert config["init_from"] == str(tmp_path / "teacher")
