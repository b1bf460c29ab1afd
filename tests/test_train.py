"""The train command: its files, its bits, and resuming after interruptions."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from warm_commands import WarmCommands

from mnist_exp.evaluate import evaluate_run
from mnist_exp.runs import read_run
from mnist_exp.runs.reading import read_metrics
from mnist_exp.training import load_checkpoint

CPU = torch.device("cpu")


def results(path: Path) -> list[dict[str, float | int]]:
    """The metrics of a run without those that measure time."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in read_metrics(path)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path / "checkpoints" / "last.pt", CPU)["model"]


def assert_same_result(first: Path, second: Path) -> None:
    assert results(first) == results(second)
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    with np.load(first / "predictions.npz") as a, np.load(second / "predictions.npz") as b:
        np.testing.assert_array_equal(a["logits"], b["logits"])


def test_files_of_a_run_directory(
    mnist_train: Callable[..., int], small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*small, "data.val_size=100", "hydra.run.dir=run"]
    assert mnist_train(*overrides) == 0
    run = tmp_path / "run"
    visible = {path.name for path in run.iterdir()} - {".lock"}
    assert visible == {
        *("config.yaml", "overrides.yaml", ".hydra", "run.json", "metrics.jsonl", "checkpoints"),
        *("predictions.npz", "train.log"),
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.pt", "best.pt"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["dropout"] == 0.0, "interpolations are resolved"
    assert yaml.safe_load((run / "overrides.yaml").read_text()) == overrides[:-1]

    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "completed"
    assert record["error"] is None
    assert record["seed"] == 0
    assert record["parameters"] == 61_706
    assert record["threads"] == 1
    assert record["device"] == "cpu"
    assert set(record["seconds"]) == {"import", "data", "train", "eval", "total"}
    assert record["peak_memory_bytes"] > 50e6
    assert record["versions"]["torch"]
    assert {"git", "hardware", "config_hash", "command", "started", "ended"} <= set(record)

    rows = read_metrics(run)
    assert [list(row) for row in rows] == 2 * [
        [
            *("epoch", "images_seen", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate"),
            *("train_seconds", "eval_seconds", "images_per_second", "val_loss", "val_accuracy"),
        ]
    ]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert record["final"] == rows[-1]
    assert record["best"]["val_accuracy"] == max(row["val_accuracy"] for row in rows)

    with np.load(run / "predictions.npz") as predictions:
        logits, labels = predictions["logits"], predictions["labels"]
    assert logits.shape == (1000, 10)
    assert (logits.argmax(axis=1) == labels).mean() == rows[-1]["test_accuracy"]

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run directory: run"
    assert re.split(" {2,}", lines[1].strip()) == [
        *("epoch", "train loss", "acc %", "val loss", "acc %", "test loss", "acc %", "s")
    ]
    assert [line.split()[0] for line in lines[2:4]] == ["1/2", "2/2"]
    log = (run / "train.log").read_text()
    assert "LeNet-5 | Epoch [2/2]: Train Loss " in log
    assert "1/2 " not in log


def test_accuracy_is_that_of_the_epoch_as_it_ran(
    mnist_train: Callable[..., int], small: list[str], tmp_path: Path
) -> None:
    assert mnist_train(*small, "hydra.run.dir=run", "trainer.epochs=1", "optimizer.lr=1e-9") == 0
    (row,) = read_metrics(tmp_path / "run")
    assert row["train_accuracy"] * 320 == pytest.approx(round(row["train_accuracy"] * 320))
    assert row["images_seen"] == 320
    assert 2.2 < row["train_loss"] < 2.4, "an untrained network knows nothing: ln 10 = 2.303"


EVERYTHING = ["regularization=full", "optimizer=muon", "scheduler=one_cycle", "data.val_size=64"]


def test_same_seed_same_bits_in_one_process_and_in_two(
    mnist_train: Callable[..., int], mnist_train_process: Callable[..., Any], small: list[str], tmp_path: Path
) -> None:
    for name in ("first", "second"):
        assert mnist_train(*small, *EVERYTHING, f"hydra.run.dir={name}") == 0
    done = mnist_train_process(*small, *EVERYTHING, "hydra.run.dir=third")
    assert done.returncode == 0, done.stderr
    assert_same_result(tmp_path / "first", tmp_path / "second")
    assert_same_result(tmp_path / "first", tmp_path / "third")


def test_another_seed_is_another_run(mnist_train: Callable[..., int], small: list[str], tmp_path: Path) -> None:
    for seed in (0, 1):
        assert mnist_train(*small, f"seed={seed}", f"hydra.run.dir=seed{seed}") == 0
    assert results(tmp_path / "seed0") != results(tmp_path / "seed1")


def test_two_runs_of_one_second_get_two_directories(
    mnist_train: Callable[..., int], small: list[str], tmp_path: Path
) -> None:
    for _ in range(2):
        assert mnist_train(*small, "trainer.epochs=1", "data.limit=64") == 0
    assert len(list((tmp_path / "outputs").glob("*/lenet5-*"))) == 2


@pytest.mark.parametrize("stop_after", [1, 4, 5, 7])
@pytest.mark.parametrize("recipe", [[], EVERYTHING], ids=["plain", "everything"])
def test_interrupted_and_resumed_equals_uninterrupted(
    stop_after: int,
    recipe: list[str],
    mnist_train: Callable[..., int],
    small: list[str],
    tmp_path: Path,
    stopped_after: Callable[[int], AbstractContextManager[None]],
) -> None:
    """Five steps an epoch (four with validation data): stops fall in mid-epoch, on a boundary and in the second epoch."""
    overrides = [*small, *recipe]
    if recipe:
        assert mnist_train(*small, "data.val_size=64", "seed=5", "hydra.run.dir=teacher") == 0
        overrides.append("regularization.distillation.teachers=[teacher]")
    assert mnist_train(*overrides, "hydra.run.dir=whole") == 0

    with stopped_after(stop_after):
        assert mnist_train(*overrides, "hydra.run.dir=parts") == 143
    parts = tmp_path / "parts"
    assert read_run(parts).status == "interrupted"
    assert mnist_train("resume=parts") == 0
    assert read_run(parts).status == "completed"
    assert_same_result(tmp_path / "whole", parts)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_stops(
    number: signal.Signals, status: int, small: list[str], tmp_path: Path, warm_commands: WarmCommands
) -> None:
    command = [warm_commands.bin / "mnist-train", *small, "trainer.epochs=500", "hydra.run.dir=run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "run"
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(read_metrics(run)) >= 2, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == status
    assert err == ""
    assert out.splitlines()[-1].endswith("; continue: mnist-train resume=run")
    record = read_run(run)
    assert record.status == "interrupted"
    assert record.record.error.startswith("Interrupted: after step ")
    assert (run / "checkpoints" / "last.pt").exists()


def test_killed_run_resumes_to_the_same_bits(mnist_train: Callable[..., int], small: list[str], tmp_path: Path) -> None:
    overrides = [*small, "trainer.epochs=30"]
    assert mnist_train(*overrides, "hydra.run.dir=whole") == 0
    program = """
import os, signal
from mnist_exp.runs import RunDirectory
from mnist_exp.cli.train import main
append = RunDirectory.append_metrics
def append_and_stop(self, row):
    append(self, row)
    if row["epoch"] == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
RunDirectory.append_metrics = append_and_stop
main()
"""
    command = [sys.executable, "-c", program, *overrides, "hydra.run.dir=killed"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    run = tmp_path / "killed"
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "the run ended before it could be killed"
    assert len(read_metrics(run)) == 2
    assert read_run(run).status == "running"
    assert mnist_train("resume=killed") == 2, "a living process holds the lock"
    process.kill()
    process.wait()
    assert read_run(run).status == "killed"
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 31, "half a li')
    assert mnist_train("resume=killed") == 0
    assert_same_result(tmp_path / "whole", run)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_divergence_keeps_the_last_good_checkpoint(
    mnist_train: Callable[..., int], small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train(*small, "hydra.run.dir=good", "trainer.epochs=1") == 0
    explode = ["scheduler=step_decay", "scheduler.every=1", "scheduler.gamma=1e30"]
    assert mnist_train(*small, *explode, "hydra.run.dir=run") == 1
    run = tmp_path / "run"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mnist-train: ")
    assert "run diverged: the training loss or a weight is not finite in epoch 2; lower optimizer.lr" in line
    assert read_run(run).status == "diverged"
    assert len(read_metrics(run)) == 1
    assert load_checkpoint(run / "checkpoints" / "last.pt", CPU)["epoch"] == 1
    assert all(
        torch.equal(a, b) for a, b in zip(weights(run).values(), weights(tmp_path / "good").values(), strict=True)
    )


def test_our_own_failure_is_recorded_with_its_traceback(
    mnist_train: Callable[..., int],
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mnist_exp import experiment

    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(experiment, "fit", broken)
    assert mnist_train(*small, "hydra.run.dir=run") == 1
    run = read_run(tmp_path / "run")
    assert (run.status, run.record.error) == ("failed", "ZeroDivisionError: a bug of ours")
    assert "Traceback (most recent call last)" in (tmp_path / "run" / "train.log").read_text()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("run failed: ZeroDivisionError: a bug of ours; see train.log there")


def test_directory_that_cannot_be_used(
    mnist_train: Callable[..., int], small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train(*small, "hydra.run.dir=done") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "done").rglob("*") if path.is_file()}
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("{}")
    capsys.readouterr()
    for argument, message in [
        ("hydra.run.dir=done", "done already holds a completed run; choose another hydra.run.dir"),
        ("hydra.run.dir=foreign", "foreign holds no run but other files (thesis.tex); choose another hydra.run.dir"),
        ("hydra.run.dir=file", "file is a file; a run needs a directory of its own"),
        (
            "resume=done",
            "done holds a completed run; there is nothing to resume, mnist-eval done evaluates it, mnist-train resume=done "
            "trainer.epochs=4 trains it further",
        ),
        ("resume=foreign", "foreign is not a run directory: it has no run.json"),
        ("resume=other", "other holds a run of another project: run.json has no status and config_hash"),
    ]:
        arguments = [argument] if argument.startswith("resume") else [*small, argument]
        assert mnist_train(*arguments) == 2, argument
        assert capsys.readouterr().err == f"mnist-train: {message}\n"
    after = {path: path.read_bytes() for path in (tmp_path / "done").rglob("*") if path.is_file()}
    assert after == before, "nothing was lost"


def test_selection_best_uses_the_best_epoch_on_validation(
    mnist_train: Callable[..., int], small: list[str], tmp_path: Path
) -> None:
    overrides = [*small, "trainer.epochs=6", "data.val_size=200", "optimizer.lr=0.2", "trainer.selection=best"]
    assert mnist_train(*overrides, "hydra.run.dir=run") == 0
    record, rows = read_run(tmp_path / "run").record, read_metrics(tmp_path / "run")
    best = max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert record.final == best
    with np.load(tmp_path / "run" / "predictions.npz") as predictions:
        accuracy = (predictions["logits"].argmax(axis=1) == predictions["labels"]).mean()
    assert accuracy == best["test_accuracy"]


def test_distilled_run_is_read_without_its_teachers(
    mnist_train: Callable[..., int], small: list[str], tmp_path: Path
) -> None:
    """With weight 1 for the teacher the labels are not used, so here they are wrong."""
    teach = [*small, "data.limit=2000", "optimizer=adamw", "optimizer.lr=0.003"]
    assert mnist_train(*teach, "trainer.epochs=4", "hydra.run.dir=teacher") == 0
    learn = [*teach, "trainer.epochs=4", "seed=1"]
    alone = ["regularization.distillation.weight=1", "regularization.distillation.teachers=[teacher]"]
    assert mnist_train(*learn, *alone, "hydra.run.dir=student") == 0
    assert mnist_train(*learn, "hydra.run.dir=untaught") == 0

    def log_probabilities(run: str) -> np.ndarray[Any, Any]:
        with np.load(tmp_path / run / "predictions.npz") as predictions:
            return torch.tensor(predictions["logits"]).log_softmax(dim=1).numpy()

    teacher, student, untaught = (log_probabilities(run) for run in ("teacher", "student", "untaught"))
    far, near = ((np.exp(teacher) * (teacher - other)).sum(axis=1).mean() for other in (untaught, student))
    assert near < far / 2, "it predicts what its teacher predicts"

    (tmp_path / "teacher").rename(tmp_path / "retired")
    evaluate_run(tmp_path / "student", [])


def test_teachers_that_cannot_teach(
    mnist_train: Callable[..., int], small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert mnist_train(*small, "hydra.run.dir=teacher") == 0
    assert mnist_train(*small, "optimizer.lr=1e30", "hydra.run.dir=diverged") == 1
    capsys.readouterr()
    for directory, more, message in [
        ("nowhere", [], "nowhere is not a directory"),
        ("teacher/run.json", [], "teacher/run.json is inside a run directory; type that one instead: teacher"),
        ("diverged", [], f"{tmp_path}/diverged is diverged; a teacher must be completed"),
        ("teacher", ["data.val_size=64"], f"{tmp_path}/teacher was trained with data.val_size=0; a teacher needs the"),
        (
            "teacher",
            ["data.swap_splits=true"],
            f"{tmp_path}/teacher was trained with data.swap_splits=false; a teacher",
        ),
    ]:
        assert mnist_train(*small, *more, f"regularization.distillation.teachers=[{directory}]") == 2
        assert capsys.readouterr().err.startswith(f"mnist-train: regularization.distillation.teachers: {message}")


def test_a_teacher_saw_the_same_digits_in_any_folder(
    mnist_train: Callable[..., int], idx_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["trainer.epochs=1", "trainer.threads=1", "trainer.device=cpu", "logger=none", "quiet=true"]
    same, other = idx_folder("same"), idx_folder("other", seed=1)
    assert mnist_train(*quick, "data=idx", f"data.root={same}", "hydra.run.dir=teacher") == 0
    same.rename("moved")
    taught = [*quick, "regularization.distillation.teachers=[teacher]"]
    assert mnist_train(*taught, "data=mnist", "data.root=moved") == 0
    capsys.readouterr()
    assert mnist_train(*taught, "data=idx", f"data.root={other}") == 2
    assert "teacher was trained on other digits (digest " in capsys.readouterr().err


def test_early_stopping_ends_and_says_so(mnist_train: Callable[..., int], small: list[str], tmp_path: Path) -> None:
    overrides = [*small, "trainer.epochs=50", "data.val_size=200", "optimizer.lr=1e-9"]
    assert mnist_train(*overrides, "regularization.early_stopping=2", "hydra.run.dir=run") == 0
    rows = read_metrics(tmp_path / "run")
    assert len(rows) < 50
    losses = [row["val_loss"] for row in rows]
    assert losses.index(min(losses)) == len(losses) - 3, "two epochs without a lower loss, then the end"


def test_quiet_prints_the_result_only(
    mnist_train: Callable[..., int], small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train(*small, "quiet=true") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("LeNet-5 | test accuracy ")


def test_layer_table(mnist_train: Callable[..., int], small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert mnist_train(*small, "show_layers=true", "trainer.epochs=1") == 0
    out = capsys.readouterr().out
    assert "61,706" in out
    assert "6x28x28" in out
    assert "117,600" in out


@pytest.mark.parametrize("arguments", [["--help"], ["trainer.epoch=3"], ["trainer.epochs=0"], ["--cfg", "job"]])
def test_torch_is_not_imported_before_the_config_is_checked(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys, atexit\n"
        "heavy = ('torch', 'torchvision', 'wandb', 'numpy', 'rich', 'matplotlib')\n"
        "atexit.register(lambda: print('IMPORTED', [name for name in heavy if name in sys.modules]))\n"
        f"sys.argv = ['mnist-train', *{arguments!r}]\n"
        "from mnist_exp.cli.train import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "IMPORTED []" in done.stdout, done.stderr


def test_no_wandb_without_the_logger(small: list[str], tmp_path: Path) -> None:
    program = (
        f"import sys; sys.argv = ['mnist-train', *{small!r}]\n"
        "from mnist_exp.cli.train import main\n"
        "main()\n"
        "assert 'wandb' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_steps_reuse_memory() -> None:
    """Without it the kernel clears thousands of pages anew in every step."""
    script = """
import resource, torch
from mnist_exp.device import keep_freed_memory
from mnist_exp.models import LeNet5
torch.set_num_threads(1)
keep_freed_memory()
model, images = LeNet5(), torch.zeros(128, 1, 28, 28)
for step in range(40):
    if step == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(images).sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 20)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50
