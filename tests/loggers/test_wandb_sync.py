"""Runs that were offline are uploaded later, once, however they ended."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import wandb
from filelock import FileLock
from wandb_server import Run, WandbServer
from warm_commands import WarmCommands

from mnist_exp.cli import report
from mnist_exp.loggers import wandb_sync
from mnist_exp.runs.reading import read_metrics, read_record

Sync = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def sync(warm_commands: WarmCommands) -> Sync:
    """``mnist-report --wandb-sync`` in a new process."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [warm_commands.bin / "mnist-report", "--wandb-sync", *(arguments or ["outputs"])]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    return run


@pytest.fixture
def offline(mnist_train: Callable[..., int], small: list[str], wandb_server: WandbServer) -> Callable[..., Path]:
    """Train a run whose W&B files are not uploaded."""

    def run(name: str, *overrides: str) -> Path:
        logger = ["logger=wandb", "logger.mode=offline", *overrides]
        assert mnist_train(*small, *logger, f"hydra.run.dir=outputs/{name}") == 0
        wandb.teardown()
        return Path("outputs") / name

    return run


@pytest.fixture
def failing_sync(capsys: pytest.CaptureFixture[str]) -> Callable[[], tuple[str, str]]:
    """``mnist-report outputs --wandb-sync`` in this process, with exit status 1; returns its output and errors."""

    def run() -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            report.main(["outputs", "--wandb-sync"])
        assert leaving.value.code == 1
        return capsys.readouterr()

    return run


def assert_refused(sync: Sync, server: WandbServer, message: str) -> None:
    """The run ``outputs/a`` is not uploaded; ``message`` is a regular expression."""
    done = sync()
    assert (done.returncode, done.stderr) == (1, "")
    assert re.fullmatch(f"outputs/a: failed: {message}\n", done.stdout)
    assert not server.runs


def wandb_file(run: Path) -> Path:
    (file,) = run.glob("wandb/*run-*/run-*.wandb")
    return file


def test_after_an_outage_the_whole_sweep_is_uploaded(
    sync: Sync, mnist_train: Callable[..., int], small: list[str], wandb_server: WandbServer, brief_outages: str
) -> None:
    wandb_server.runs_until_silent = 2
    assert mnist_train("-m", *small, "logger=wandb", "seed=range(4)", "sweep.name=widths", brief_outages) == 0
    wandb.teardown()
    jobs = [Path("outputs/sweeps/widths") / f"seed={seed}" for seed in range(4)]
    wandb_server.silent = False
    done = sync()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{job}: uploaded" for job in jobs[1:]]  # the first had arrived
    for seed, job in enumerate(jobs):
        run = wandb_server.runs[read_record(job).wandb.id]
        rows = [row for row in run.history if "epoch" in row]
        assert [row["test/accuracy"] for row in rows] == [row["test_accuracy"] for row in read_metrics(job)]
        assert (run.group, run.name, run.project, run.config["seed"]) == (
            "widths",
            f"lenet5 · seed {seed}",
            "mnist-exp",
            seed,
        )
        assert (run.exit_code, run.summary["status"]) == (0, "completed")
    asked = len(wandb_server.operations)
    rows_before = {run.id: dict(run.lines) for run in wandb_server.runs.values()}
    again = sync("outputs/sweeps/widths", str(jobs[1].resolve()))
    assert (again.returncode, again.stdout) == (0, "nothing to upload\n")
    assert len(wandb_server.operations) == asked
    assert {run.id: run.lines for run in wandb_server.runs.values()} == rows_before


def test_one_that_fails_does_not_stop_the_rest(
    sync: Sync, offline: Callable[..., Path], wandb_server: WandbServer
) -> None:
    runs = [offline(name) for name in ("a", "b", "c")]
    wandb_file(runs[0]).write_bytes(b"no W&B file" * 100)
    with FileLock(runs[1] / ".lock"):
        done = sync("outputs", str(runs[2].resolve()))  # c is named twice
    assert done.returncode == 1
    failed, running, uploaded = done.stdout.splitlines()
    assert failed.startswith("outputs/a: failed: Failed to read ")
    assert running == "outputs/b: still running, not uploaded"
    assert uploaded == "outputs/c: uploaded"
    assert list(wandb_server.runs) == [read_record(runs[2]).wandb.id]


ARM = "lenet5 · mnist5k · limit 320 · epochs 2"
LOST = "uploaded, with what W&B's files lack from metrics.jsonl"


def assert_whole(run: Run, directory: Path) -> None:
    """The server has every row of the run directory, once and in order, and its end."""
    rows = [row for row in run.history if "epoch" in row]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["test/loss"] for row in rows] == [row["test_loss"] for row in read_metrics(directory)]
    assert (run.exit_code, run.summary["status"]) == (0, "completed")
    assert run.summary["test/accuracy"] == read_record(directory).final["test_accuracy"]
    assert (run.name, run.config["arm"]) == (f"{ARM} · seed 0", ARM)
    assert run.config["run_directory"] == str(directory.resolve())
    assert "errors" in run.summary


def test_what_a_killed_process_lost_is_uploaded_once(
    sync: Sync, offline: Callable[..., Path], wandb_server: WandbServer
) -> None:
    cut, empty = offline("cut"), offline("empty")
    wandb_file(cut).write_bytes(wandb_file(cut).read_bytes()[:-50])  # W&B writes the last row when the run ends
    wandb_file(empty).write_bytes(wandb_file(empty).read_bytes()[:7])
    done = sync("outputs")
    assert (done.stdout, done.stderr) == (f"outputs/cut: {LOST}\noutputs/empty: {LOST}\n", "")
    assert done.returncode == 0
    for directory in (cut, empty):
        assert_whole(wandb_server.runs[read_record(directory).wandb.id], directory)
    assert sync("outputs").stdout == "nothing to upload\n"


def test_rows_that_the_server_has_are_not_repeated(
    sync: Sync, mnist_train: Callable[..., int], small: list[str], wandb_server: WandbServer
) -> None:
    """W&B's process of an online run is killed: the server has some rows, the file has none."""
    directory = Path("outputs/a")
    assert mnist_train(*small, "logger=wandb", f"hydra.run.dir={directory}") == 0
    wandb.teardown()
    (run,) = wandb_server.runs.values()
    run.lines, run.summary = {0: run.lines[0]}, json.loads(run.lines[0])
    run.exit_code = None
    file = wandb_file(directory)
    file.with_suffix(".wandb.synced").unlink()
    file.write_bytes(file.read_bytes()[:7])
    assert sync().stdout == f"outputs/a: {LOST}\n"
    assert list(wandb_server.runs) == [run.id]
    assert_whole(run, directory)


def test_a_lost_run_of_another_project_is_not_made_anew(
    sync: Sync, offline: Callable[..., Path], wandb_server: WandbServer
) -> None:
    run = offline("a", "logger.project=theirs", "logger.entity=them")
    wandb_file(run).write_bytes(wandb_file(run).read_bytes()[:7])
    assert_refused(
        sync,
        wandb_server,
        "it is recorded for project 'theirs' of 'them'; if you want it there, type --wandb-project them/theirs",
    )


def test_refused_rows_are_not_reported_as_uploaded(
    sync: Sync, offline: Callable[..., Path], wandb_server: WandbServer
) -> None:
    run = offline("a")
    wandb_server.refuse_rows = True
    done = sync(str(run))
    assert done.returncode == 1
    assert re.fullmatch(r"outputs/a: failed: .*Fatal error while uploading data.*\n", done.stdout)
    wandb_server.refuse_rows = False
    assert sync(str(run)).stdout == "outputs/a: uploaded\n"


def test_a_run_in_parts_is_one_run(
    sync: Sync,
    mnist_train: Callable[..., int],
    small: list[str],
    wandb_server: WandbServer,
    brief_outages: str,
    stopped_after: Callable[[int], AbstractContextManager[None]],
) -> None:
    """Interrupted online, finished while the server did not answer."""
    with stopped_after(7):  # in the second epoch
        assert mnist_train(*small, "logger=wandb", brief_outages, "hydra.run.dir=outputs/a") == 143
    wandb_server.silent = True
    assert mnist_train("resume=outputs/a") == 0
    wandb.teardown()
    wandb_server.silent = False
    assert sync().stdout == "outputs/a: uploaded\n"
    (run,) = wandb_server.runs.values()
    assert [row["epoch"] for row in run.history if "epoch" in row] == [1, 2]
    assert run.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["nowhere"], {}, "nowhere does not exist; name run directories, folders of them, or a pattern"),
        (["outputs"], {"WANDB_API_KEY": ""}, "no API key is configured; type wandb login"),
        (
            ["outputs"],
            {"WANDB_API_KEY": "short"},
            "the API key cannot be used: WANDB_API_KEY invalid: API key must have",
        ),
    ],
)
def test_a_mistake_is_one_line(
    sync: Sync,
    arguments: list[str],
    environment: dict[str, str],
    said: str,
    offline: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offline("a")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = sync(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mnist-report: {said}")


def test_a_server_that_does_not_answer_is_one_line(
    offline: Callable[..., Path],
    wandb_server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    failing_sync: Callable[[], tuple[str, str]],
) -> None:
    offline("a")
    wandb_server.silent = True
    monkeypatch.setattr(wandb_sync, "SECONDS_A_RUN", 1)
    assert failing_sync() == ("", f"mnist-report: {os.environ['WANDB_BASE_URL']} does not answer\n")


def test_a_server_that_is_lost_during_the_upload_stops_it(
    sync: Sync,
    offline: Callable[..., Path],
    wandb_server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    failing_sync: Callable[[], tuple[str, str]],
) -> None:
    """In this process: the time limit of a run starts when the server is lost."""
    offline("a")
    offline("b")
    wandb_server.runs_until_silent = 1
    communicate = subprocess.Popen.communicate

    def communicate_once_lost(process: subprocess.Popen[str], **options: Any) -> Any:
        while not wandb_server.silent:
            assert process.poll() is None
            time.sleep(0.02)
        return communicate(process, **options)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "communicate", communicate_once_lost)
        patch.setattr(wandb_sync, "SECONDS_A_RUN", 3)
        out, err = failing_sync()
    assert out == "outputs/a: failed: not done after 3 s\n"
    assert err == f"mnist-report: {wandb_server.url} does not answer\n"
    wandb_server.silent = False
    assert sync().stdout == "outputs/a: uploaded\noutputs/b: uploaded\n"
    assert [len(run.history) for run in wandb_server.runs.values()] == [2, 2]


def test_another_project_must_be_typed(sync: Sync, offline: Callable[..., Path], wandb_server: WandbServer) -> None:
    offline("a", "logger.project=theirs", "logger.entity=them")
    there = "it is recorded for project 'theirs' of 'them'; if you want it there, type --wandb-project them/theirs"
    assert_refused(sync, wandb_server, there)
    assert sync("outputs", "--wandb-project", "them/theirs").stdout == "outputs/a: uploaded\n"
    assert [run.project for run in wandb_server.runs.values()] == ["theirs"]


def test_files_are_not_sent_without_the_flag(
    sync: Sync, offline: Callable[..., Path], wandb_server: WandbServer
) -> None:
    offline("a", "logger.upload_files=true")
    message = "files of the run are to be uploaded, too; if you want that, type --wandb-files"
    assert_refused(sync, wandb_server, message)


@pytest.mark.parametrize("kind", ["link", "folder", "settings"])
def test_links_and_settings_that_wandb_would_follow_are_refused(
    sync: Sync, kind: str, offline: Callable[..., Path], wandb_server: WandbServer
) -> None:
    run = offline("a")
    Path("key").write_text("private")
    if kind == "settings":
        (run / "wandb" / "settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    elif kind == "link":
        (picture,) = run.glob("wandb/*run-*/files/media/images/confusion_matrix*.png")
        picture.unlink()
        picture.symlink_to(Path("key").absolute())
    else:
        (run / "wandb" / "offline-run-1-x").symlink_to(Path.cwd())
    assert_refused(sync, wandb_server, ".* (is a link|would change where W&B).*")


def framed(*entries: dict[str, Any]) -> bytes:
    """A W&B file with these records."""
    from google.protobuf.json_format import ParseDict
    from wandb.proto import wandb_internal_pb2

    data = b":W&B\x00\x00\x00"[:7]
    for entry in entries:
        body = ParseDict(entry, wandb_internal_pb2.Record()).SerializeToString()  # type: ignore[attr-defined]
        data += bytes(4) + len(body).to_bytes(2, "little") + b"\x01" + body
    return data


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"run": {"project": "theirs"}}, "it is recorded for project 'theirs'"),
        ({"run": {"project": "mnist-exp", "entity": "them"}}, "it is recorded for project 'mnist-exp' of 'them'"),
        ({"artifact": {"project": "theirs", "entity": "them"}}, "it is recorded for project 'theirs' of 'them'"),
        ({"files": {"files": [{"path": "../../key"}]}}, "asks for the file '../../key'"),
        ({"files": {"files": [{"path": "/etc/passwd"}]}}, "asks for the file '/etc/passwd'"),
        ({"tbrecord": {"log_dir": "/etc"}}, "it has a record that no run of this project writes: tbrecord"),
        ({"alert": {"title": "x"}}, "it has a record that no run of this project writes: alert"),
        ({"artifact": {"project": "mnist-exp", "manifest": {"contents": [{"local_path": "/etc/passwd"}]}}},
         "asks for the file '/etc/passwd', which is not a copy"),
        ({"artifact": {"project": "mnist-exp", "manifest": {"manifest_file_path": "/etc/passwd"}}}, "is outside it"),
    ],
)  # fmt: skip
def test_records_that_a_file_may_contain(record: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = tmp_path / "run-a.wandb"
    file.write_bytes(framed({"run": {"project": "mnist-exp"}}, record))
    with pytest.raises(ValueError, match=re.escape(said)):
        wandb_sync.check_records(file, "mnist-exp", None, files=True)
    file.write_bytes(framed({"run": {"project": "mnist-exp"}}, {"files": {"files": [{"path": "media/a.png"}]}}))
    wandb_sync.check_records(file, "mnist-exp", None, files=False)
    file.write_bytes(b":W&B...nonsense that is no record at all")
    with pytest.raises(ValueError, match="Failed to read"):
        wandb_sync.check_records(file, "mnist-exp", None, files=False)
