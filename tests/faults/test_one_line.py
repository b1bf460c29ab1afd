"""Faults of files, names, disks and terminals: one line and exit status 2, or 1 with a record; nothing is lost."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from exit_status import status_of
from hydra.errors import MissingConfigException
from synthetic_runs import write_run

from mnist_exp.cli import demo, predict, report
from mnist_exp.cli import eval as evaluate
from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.runs import RunDirectoryError, read_run
from mnist_exp.runs.reading import read_config
from mnist_exp.sweeps import progress

UNDECODABLE = os.fsdecode(b"a\xffb") if sys.platform == "linux" else "a\udcffb"
TINY = ["model=mlp", "model.hidden=[8]", "data.limit=64", "trainer.epochs=2", "quiet=true"]
CONFIGS: dict[str, Callable[[bytes], bytes]] = {
    "not UTF-8": lambda text: text + b"x: \xff\n",
    "impossible date": lambda text: text + b"x: 2024-02-31\n",
    "impossible time": lambda text: text + b"x: !!timestamp noon\n",
    "impossible truth": lambda text: text + b"x: !!bool perhaps\n",
    "impossible number": lambda text: text + b"x: !!int many\n",
    "number in base 60": lambda text: text.replace(b"seed: 0", b"seed: 1" + b":59" * 3000),
    "number of 5,000 digits": lambda text: text.replace(b"seed: 0", b"seed: " + b"1" * 5000),
    "deep, open": lambda text: text + b"x: " + b"[" * 100_000,
    "deep": lambda text: text + b"x: " + b"[" * 4000 + b"]" * 4000,
    "deep blocks": lambda text: text + b"x:\n" + b"- " * 4000 + b"a\n",
    "NUL": lambda text: text + b"\0",
    "NUL in a string": lambda text: text.replace(b"name: mlp", b'name: "m\\0p"'),
    "half a character": lambda text: text.replace(b"name: mlp", b'name: "\\uD800"'),
    "empty": lambda text: b"",
    "a list": lambda text: b"- a\n",
}
SECTIONS = ["data", "model", "optimizer", "scheduler", "regularization", "trainer", "seed", "name", "quiet"]


@pytest.fixture
def run(tmp_path: Path, composed: Callable[..., dict[str, Any]]) -> Path:
    return write_run(tmp_path / "runs" / "mlp", composed("data=mnist5k", "model=mlp", "name=mlp"), images=40)


@pytest.fixture
def tiny(small: list[str]) -> list[str]:
    return [*small, *TINY]


@pytest.mark.parametrize("fault", CONFIGS)
def test_a_damaged_configuration(fault: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "config.yaml"
    file.write_bytes(CONFIGS[fault](file.read_bytes()))
    with pytest.raises(RunDirectoryError) as refusal:
        read_config(run)
    assert str(refusal.value).startswith(str(file))
    assert len(str(refusal.value).splitlines()) == 1
    assert status_of(evaluate.main, str(run)) == 2
    assert capsys.readouterr().err == f"mnist-eval: {refusal.value}\n"


@pytest.mark.parametrize("section", SECTIONS)
def test_a_configuration_without_a_section(section: str, run: Path) -> None:
    file = run / "config.yaml"
    tree = yaml.safe_load(file.read_bytes())
    del tree[section]
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(RunDirectoryError, match=r"is missing|is not the configuration of a run"):
        read_config(run)


class FullDisk:
    """From its Nth call on, ``os.fsync`` reports a full disk."""

    def __init__(self, last: int) -> None:
        self.left, self.real = last, os.fsync

    def __call__(self, file: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.real(file)


@pytest.mark.parametrize("last", range(10))
def test_a_disk_that_is_full_during_a_run(
    last: int,
    tiny: list[str],
    mnist_train: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk := FullDisk(last))
        status = mnist_train(*tiny, "hydra.run.dir=run")
    assert disk.left < 0, "the run writes ten times"
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line
    recorded = Path("run", "run.json").exists()
    assert status == 2 or (status == 1 and recorded)
    again = ["resume=run"] if recorded else [*tiny, "hydra.run.dir=run"]
    assert mnist_train(*again) == 0
    assert read_run("run").status == "completed"


@pytest.mark.parametrize("last", [0, 1, 3, 6, 8, 10, 14])
def test_a_disk_that_is_full_during_a_sweep(
    last: int,
    tiny: list[str],
    mnist_train: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = ["-m", *tiny, "seed=0,1", "hydra.sweep.dir=sweep"]
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.005)  # so that the thread of the progress bar writes, too
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk := FullDisk(last))
        assert mnist_train(*sweep) == 2
    assert disk.left < 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line
    assert mnist_train(*sweep) == 0
    assert {read_run(Path("sweep", f"seed={seed}")).status for seed in (0, 1)} == {"completed"}


def test_a_folder_that_cannot_be_made(
    tiny: list[str],
    mnist_train: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(path: Any, *others: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(os, "mkdir", refuse)
    for command in (
        ["hydra.run.dir=new"],
        ["-m", "seed=0,1", "hydra.sweep.dir=new"],
        ["-m", "hydra/sweeper=optuna", "data.val_size=9", "optimizer.lr=interval(0.1,1)", "hydra.sweep.dir=new"],
    ):
        assert mnist_train(*tiny, *command) == 2
        assert capsys.readouterr().err == "mnist-train: new: Read-only file system\n"


def test_a_study_that_is_no_database(
    tiny: list[str], mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="needs mnist-exp[optuna]")
    Path("sweep").mkdir()
    Path("sweep", "study.db").write_text("no database" * 99)
    search = ["-m", "hydra/sweeper=optuna", "data.val_size=9", "optimizer.lr=interval(0.1,1)", "hydra.sweep.dir=sweep"]
    assert mnist_train(*tiny, *search) == 2
    assert capsys.readouterr().err == "mnist-train: sweep/study.db cannot be used: file is not a database\n"


def test_an_argument_that_is_no_text(
    run: Path, mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    line = r"a\udcffb is no text in UTF-8; rename it"
    for main in (evaluate.main, report.main, demo.main):
        assert status_of(main, UNDECODABLE) == 2
        assert capsys.readouterr().err.endswith(f": {line}\n")
    assert status_of(predict.main, str(run), UNDECODABLE) == 2
    assert capsys.readouterr().err == f"mnist-predict: {line}\n"
    assert mnist_train(f"hydra.run.dir={UNDECODABLE}") == 2
    assert capsys.readouterr().err == f"mnist-train: hydra.run.dir={line}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_a_folder_that_is_no_text(
    run: Path, mnist_train: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = run.with_name(UNDECODABLE)
    write_run(strange, yaml.safe_load((run / "config.yaml").read_bytes()), seed=1, images=40)
    assert status_of(report.main, str(run.parent), "--output", "report") == 0
    assert r"a\udcffb: the name is no text; rename it" in Path("report", "report.md").read_text(encoding="utf-8")
    capsys.readouterr()
    monkeypatch.chdir(strange)
    assert mnist_train("seed=1") == 2
    assert r"a\udcffb is no text in UTF-8; rename it" in capsys.readouterr().err
    monkeypatch.setattr(os, "getcwd", lambda: os.stat("/gone"))
    assert mnist_train("seed=1") == 2
    assert capsys.readouterr().err == "mnist-train: the working directory has been deleted; go to another one\n"


@pytest.mark.parametrize("length", [300, 5000])
def test_names_that_are_too_long(
    length: int, run: Path, tiny: list[str], mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    long = "x" * length
    for arguments in (
        [long],
        [f"resume={long}"],
        [f"hydra.run.dir={long}", *tiny],
        [f"init_from={long}", *tiny],
        ["data=idx", f"data.root={long}"],
        ["-m", "seed=0,1", f"hydra.sweep.dir={long}", *tiny],
        ["-m", f"sweep.resume={long}"],
        ["--config-dir", long],
    ):
        assert mnist_train(*arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    for main, words in (
        (evaluate.main, [long]),
        (evaluate.main, [str(run), "data=idx", f"data.root={long}"]),
        (report.main, [long]),
        (report.main, [str(run), "--output", long]),
        (predict.main, [long, "digit.png"]),
        (demo.main, [long]),
    ):
        assert status_of(main, *words) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_output_that_has_only_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with exit_status("mnist-eval"):
        print("Größe ± 1 in a\udcffb")
    assert written.getvalue() == rb"Gr\xf6\xdfe \xb1 1 in a\udcffb" + b"\n"


@pytest.mark.parametrize("command", ["train", "eval", "report", "predict", "demo"])
def test_ctrl_c_while_a_command_is_imported(command: str, run: Path, tmp_path: Path) -> None:
    for module in ("numpy", "torch"):  # one of them is the first slow import of each command
        (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt")
    words = [str(run), "digit.png"] if command == "predict" else [] if command == "train" else [str(run)]
    done = subprocess.run(
        [sys.executable, "-m", f"mnist_exp.cli.{command}", *words],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode in {-signal.SIGINT, 128 + signal.SIGINT}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("git", 5, "git=5 should be an object"), ("continued", 5, "continued=5 should be a valid array")],
)
def test_what_cannot_be_typed_is_not_advised(field: str, value: Any, message: str, run: Path) -> None:
    file = run / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(RunDirectoryError) as refusal:
        read_run(run)
    assert str(refusal.value) == f"{file}: {message}"


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "No such file", "absent.yaml"), MissingConfigException("no choice")]
)
def test_an_error_that_is_not_of_the_output_passes(error: OSError) -> None:
    with pytest.raises(type(error)), printing():
        raise error
