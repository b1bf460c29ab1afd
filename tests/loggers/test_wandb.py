"""Weights & Biases: offline runs are read from their files, online runs use a test server."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pty
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import wandb
from wandb_files import RunFile, read_file, read_run
from wandb_server import Run, WandbServer

from mnist_exp.cli import report
from mnist_exp.loggers import wandb as wandb_module
from mnist_exp.loggers.wandb import END, REST, START, WandbLogger
from mnist_exp.runs.reading import read_metrics, read_record
from mnist_exp.training.events import EpochMetrics, TrainingEnded, TrainingStarted

STARTED = TrainingStarted(title="LeNet-5", epochs=3, first_epoch=1, steps_per_epoch=10, images_per_epoch=640)
SUMMARY = {"test_accuracy": 0.75, "seconds": 1.5, "train_seconds": 0.5}
SHOWN = {"test/accuracy": 0.75, "seconds": 1.5}  # in W&B's summary
SECONDS = 60.0  # the time limit of these tests
BRIEF = 0.05  # the share of it that a test waits for a server that does not answer


@pytest.fixture(autouse=True)
def _no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No API key, settings or W&B session from outside the test, and none afterwards."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setattr(WandbLogger, "_no_answer", None)
    wandb.teardown()
    yield
    wandb.teardown()


def use(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def brief_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a server that does not answer when the run starts."""
    monkeypatch.setattr("mnist_exp.loggers.wandb.START", BRIEF)


@pytest.fixture
def brief_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a server that does not answer when the run ends."""
    monkeypatch.setattr("mnist_exp.loggers.wandb.END", BRIEF)


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def metrics(epoch: int, **values: float) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        images_seen=640 * epoch,
        train_loss=1 / epoch,
        train_accuracy=0.5,
        test_loss=2 / epoch,
        test_accuracy=0.25 * epoch,
        learning_rate=0.01,
        train_seconds=1.0,
        eval_seconds=0.5,
        images_per_second=640.0,
        **values,
    )


def logger(directory: Path, **settings: Any) -> WandbLogger:
    arguments = {"label": "lenet5-3", "config": {"optimizer": {"lr": 0.01}, "seed": 3}, "parameters": 61_706}
    return WandbLogger(directory=directory, **{**arguments, "timeout_seconds": SECONDS, **settings})


def train(log: WandbLogger, epochs: range = range(1, 4), status: str = "completed") -> None:
    log.on_start(STARTED)
    for epoch in epochs:
        log.on_epoch(metrics(epoch))
    log.on_end(TrainingEnded(status, None, SUMMARY))


def rows(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in history]


def row(epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "images_seen": 640 * epoch,
        "train/loss": 1 / epoch,
        "train/accuracy": 0.5,
        "test/loss": 2 / epoch,
        "test/accuracy": 0.25 * epoch,
        "learning_rate": 0.01,
        "images_per_second": 640.0,
    }


def only_warning(caplog: pytest.LogCaptureFixture) -> str:
    (message,) = warnings_of(caplog)
    return message


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The messages that a user sees; W&B's own go to its log file only."""
    seen = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in seen if not record.name.startswith("wandb")]


def assert_whole(run: RunFile) -> None:
    assert rows(run.history) == [row(1), row(2), row(3)]
    assert settings(run) == {"optimizer": {"lr": 0.01}, "seed": 3}
    assert run.exit_code == 0


def settings(run: RunFile | Run) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key != "run_directory"}


def uploaded(directory: Path) -> bool:
    """Whether every W&B file below a run directory is marked as uploaded."""
    return all(file.with_suffix(".wandb.synced").exists() for file in directory.glob("wandb/*run-*/run-*.wandb"))


class TestOffline:
    def test_rows_config_and_summary_are_in_the_file(self, tmp_path: Path) -> None:
        log = logger(tmp_path, sweep="widths", tags=["baseline"], project="digits")
        train(log)
        assert not uploaded(tmp_path)
        run = read_run(tmp_path)
        assert_whole(run)
        assert (run.project, run.name, run.group, run.tags) == ("digits", "lenet5-3", "widths", ["baseline"])
        assert run.summary.items() >= {**SHOWN, "status": "completed", "parameters": 61_706}.items()
        assert log.identity == {
            "id": run.id,
            "mode": "offline",
            "project": "digits",
            "entity": None,
            "group": "widths",
            "url": None,
            **{"arm": None, "sweep": None},
        }

    def test_curves_are_drawn_against_the_epoch(self, tmp_path: Path) -> None:
        train(logger(tmp_path))
        validation = {"val/accuracy": "epoch", "val/loss": "epoch"}
        assert read_run(tmp_path).x_axes == {"epoch": "", "*": "epoch", **validation}

    def test_validation_curves_are_there_where_there_is_validation(self, tmp_path: Path) -> None:
        log = logger(tmp_path)
        log.on_start(STARTED)
        for epoch, value in ((1, 0.25), (2, 0.75), (3, 0.5)):
            log.on_epoch(metrics(epoch, val_loss=value, val_accuracy=value))
        log.on_end(TrainingEnded("completed", None, {**SUMMARY, "val_accuracy": 0.5}))
        run = read_run(tmp_path)
        assert rows(run.history)[0] == row(1) | {"val/loss": 0.25, "val/accuracy": 0.25}
        # One spelling, the best and the last of validation metrics, and the result of the others.
        shown = {key: value for key, value in run.summary.items() if "accuracy" in key or "loss" in key}
        assert shown == {
            **{"val/accuracy": {"last": 0.5, "max": 0.75}, "val/loss": {"last": 0.5, "min": 0.25}},
            **{"test/accuracy": 0.75, "test/loss": 2 / 3, "train/accuracy": 0.5, "train/loss": 1 / 3},
        }

    @pytest.mark.parametrize("status", ["failed", "diverged", "interrupted"])
    def test_a_run_that_did_not_complete_has_exit_code_1(self, tmp_path: Path, status: str) -> None:
        train(logger(tmp_path), status=status)
        run = read_run(tmp_path)
        assert run.exit_code == 1
        assert run.summary["status"] == status

    def test_two_runs_of_one_process_stay_two(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(WandbLogger, "_told", set())
        monkeypatch.setenv("WANDB_NAME", "x")  # would give both the same name
        for name in "ab":
            train(logger(tmp_path / name, label=name, sweep="widths"))
        assert only_warning(caplog).endswith(
            f"to upload it later: mnist-report {tmp_path} --wandb-sync"
        )  # once for the sweep
        a, b = (read_run(tmp_path / name) for name in "ab")
        assert_whole(a)
        assert_whole(b)
        assert (a.name, b.name) == ("a", "b")
        assert a.id != b.id

    def test_two_runs_at_once_stay_two(self, tmp_path: Path) -> None:
        logs = [logger(tmp_path / name, label=name) for name in "ab"]
        for log in logs:
            log.on_start(STARTED)
        for epoch in (1, 2, 3):
            for log in logs:
                log.on_epoch(metrics(epoch))
        for log in logs:
            log.on_end(TrainingEnded("completed", None, SUMMARY))
        for name in "ab":
            assert_whole(read_run(tmp_path / name))

    def test_a_resumed_run_writes_a_second_file_under_its_id(self, tmp_path: Path) -> None:
        first = logger(tmp_path)
        train(first, range(1, 3), status="interrupted")
        second = logger(tmp_path, run_id=first.identity["id"])
        train(second, range(3, 4))
        wandb.teardown()
        parts = sorted(
            map(read_file, tmp_path.glob("wandb/offline-run-*/run-*.wandb")), key=lambda run: len(run.history)
        )
        assert {run.id for run in parts} == {first.identity["id"]} == {second.identity["id"]}
        assert [rows(run.history) for run in parts] == [[row(3)], [row(1), row(2)]]

    def test_files_of_the_run_are_stored_where_asked(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.pt").write_bytes(b"weights")
        (tmp_path / "metrics.jsonl").write_text("{}\n")
        train(logger(tmp_path, upload_files=True))
        files = read_run(tmp_path).artifact_files
        assert {"checkpoints/last.pt", "metrics.jsonl"} <= set(files)
        assert not any(file.startswith("wandb/") for file in files)

    def test_links_and_pipes_are_not_stored(self, tmp_path: Path) -> None:
        (tmp_path / "key").write_text("private")
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
        log = logger(tmp_path / "run", upload_files=True)
        log.on_start(STARTED)
        (tmp_path / "run" / "checkpoints" / "last.pt").symlink_to(tmp_path / "key")
        (tmp_path / "run" / "folder").symlink_to(tmp_path)
        os.mkfifo(tmp_path / "run" / "pipe")
        log.on_end(TrainingEnded("completed", None, SUMMARY))
        assert read_run(tmp_path / "run").artifact_files == ["metrics.jsonl"]

    def test_a_folder_that_leads_elsewhere_is_not_written_into(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "wandb").symlink_to(tmp_path / "elsewhere")
        train(logger(tmp_path / "run"))
        assert "wandb is a link" in only_warning(caplog)
        assert not list((tmp_path / "elsewhere").iterdir())

    def test_the_end_may_come_before_the_start(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        logger(tmp_path).on_end(TrainingEnded("failed", "no data", {}))
        assert warnings_of(caplog) == []

    def test_the_process_is_left_as_it_was(self, tmp_path: Path) -> None:
        before = dict(os.environ), sys.exit, sys.excepthook, signal.getsignal(signal.SIGINT)
        train(logger(tmp_path))
        assert (dict(os.environ), sys.exit, sys.excepthook, signal.getsignal(signal.SIGINT)) == before
        assert wandb.run is None

    def test_the_name_of_the_environment_is_that_of_a_single_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_NAME", "mine")
        train(logger(tmp_path))
        assert read_run(tmp_path).name == "mine"

    def test_on_identity_gets_the_identity(self, tmp_path: Path) -> None:
        told: list[dict[str, str | None]] = []
        log = logger(tmp_path, on_identity=told.append)
        train(log)
        assert told == [log.identity]


class TestMode:
    @pytest.mark.parametrize(
        ("environment", "mode"),
        [
            ({"WANDB_MODE": "offline"}, "offline"),
            ({"WANDB_MODE": "dryrun"}, "offline"),
            ({"WANDB_MODE": "disabled"}, "disabled"),
            ({"WANDB_DISABLED": "true"}, "disabled"),
            ({"WANDB_DISABLED": "false"}, "online"),
            ({}, "online"),
        ],
    )
    def test_auto_does_what_the_environment_says(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], mode: str
    ) -> None:
        with WandbServer() as server:
            use(server, monkeypatch)
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            log = logger(tmp_path)
            train(log)
        assert log.identity["mode"] == mode
        assert bool(server.runs) == (mode == "online")
        assert (tmp_path / "wandb").exists() == (mode != "disabled")

    @pytest.mark.parametrize("mode", ["offline", "disabled"])
    def test_a_mode_that_is_given_wins_over_the_key(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
    ) -> None:
        with WandbServer() as server:
            use(server, monkeypatch)
            log = logger(tmp_path, mode=mode)
            train(log)
        assert log.identity["mode"] == mode
        assert server.runs == {}

    def test_a_key_in_netrc_is_a_key(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with WandbServer() as server:
            monkeypatch.setenv("WANDB_BASE_URL", server.url)
            netrc = tmp_path / "home" / "netrc"
            netrc.parent.mkdir()
            netrc.write_text(f"machine {urlsplit(server.url).netloc} login user password {'k' * 40}\n")
            netrc.chmod(0o600)
            log = logger(tmp_path)
            train(log)
        assert log.identity["mode"] == "online"

    def test_no_key_is_offline_and_says_how_to_upload(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        log = logger(tmp_path)
        train(log)
        assert only_warning(caplog) == (
            "Weights & Biases: no API key is configured (wandb login); this run is recorded offline, "
            f"to upload it later: mnist-report {tmp_path} --wandb-sync"
        )

    def test_a_malformed_key_is_offline(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "short")
        log = logger(tmp_path)
        train(log)
        assert_whole(read_run(tmp_path))
        assert only_warning(caplog).startswith("Weights & Biases: the API key cannot be used (WANDB_API_KEY invalid: ")

    def test_an_unknown_mode_of_wandb_is_a_one_line_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", "sometimes")
        log = logger(tmp_path)
        train(log)
        assert log.identity["mode"] == "failed"
        assert only_warning(caplog).startswith(
            "Weights & Biases: could not start (1 validation error for Settings mode "
        )

    def test_settings_are_checked(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"^logger\.mode=ofline is not known; choose one of auto, online, offline, "
        ):
            logger(tmp_path, mode="ofline")
        with pytest.raises(ValueError, match=r"^logger\.timeout_seconds=0 must be above 0$"):
            logger(tmp_path, timeout_seconds=0)

    def test_nothing_is_asked_on_a_terminal(self, tmp_path: Path) -> None:
        program = f"""
import logging, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from test_wandb import logger, train
logging.basicConfig(format="%(message)s")
log = logger(Path({str(tmp_path)!r}), mode=sys.argv[1])
train(log)
print("mode", log.identity["mode"])
"""
        for mode in ("auto", "online"):
            status, output = on_a_terminal(
                [sys.executable, "-c", program, mode], {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
            )
            lines = output.splitlines()
            assert status == 0, output
            assert len(lines) == 2, output
            assert lines[0].startswith("Weights & Biases: no API key is configured (wandb login); ")
            assert lines[1] == "mode offline"


class TestOnline:
    def test_rows_config_group_and_exit_code_are_uploaded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with WandbServer() as server:
            use(server, monkeypatch)
            about = {"tags": ["baseline"], "job_type": "search", "notes": "wide", "arm": "lenet5", "save_code": True}
            (tmp_path / "config.yaml").write_text("seed: 3\n")
            log = logger(tmp_path, sweep="widths", **about)
            caplog.set_level(logging.INFO)
            log.on_start(STARTED)
            for epoch in (1, 2, 3):
                log.on_epoch(metrics(epoch))
            log.on_end(TrainingEnded("diverged", "loss is nan", SUMMARY))
        (run,) = server.runs.values()
        assert rows(run.history) == [row(1), row(2), row(3)]
        assert settings(run) == {"optimizer": {"lr": 0.01}, "seed": 3, "arm": "lenet5"}
        assert run.config["run_directory"] == str(tmp_path)
        assert (run.job_type, run.notes) == ("search", "wide")
        assert run.artifacts == {f"code-{run.id}": "code"}
        code = {name.partition("/")[2]: content for name, content in run.files.items() if name.startswith("code-")}
        assert code["config.yaml"] == b"seed: 3\n"
        assert code["mnist_exp/loggers/wandb.py"] == Path(wandb_module.__file__).read_bytes()
        assert (run.project, run.name, run.group, run.tags) == ("mnist-exp", "lenet5-3", "widths", ["baseline"])
        assert run.exit_code == 1
        assert run.summary.items() >= {**SHOWN, "status": "diverged", "parameters": 61_706}.items()
        assert {"config.yaml", "wandb-summary.json", "requirements.txt"} <= set(run.files)
        assert uploaded(tmp_path)
        assert log.identity == {
            "id": run.id,
            "mode": "online",
            "project": "mnist-exp",
            "entity": "somebody",
            "group": "widths",
            "url": f"{server.url}/somebody/mnist-exp/runs/{run.id}",
            **{"arm": "lenet5", "sweep": None},
        }
        assert warnings_of(caplog) == []
        said = [record.getMessage() for record in caplog.records if record.name == wandb_module.__name__]
        assert said == [f"Weights & Biases: {log.identity['url']}"] * 2  # at the start and at the end

    def test_two_runs_of_one_process_stay_two(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with WandbServer() as server:
            use(server, monkeypatch)
            monkeypatch.setenv("WANDB_RUN_ID", "shared")  # would merge them
            for name in "ab":
                train(logger(tmp_path / name, label=name))
        assert [(run.name, run.exit_code, len(run.history)) for run in server.runs.values()] == [
            ("a", 0, 3),
            ("b", 0, 3),
        ]
        packages = [run.files["requirements.txt"].decode().splitlines() for run in server.runs.values()]
        assert packages[0] == packages[1]
        assert f"wandb=={wandb.__version__}" in packages[0]

    def test_a_resumed_run_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with WandbServer() as server:
            use(server, monkeypatch)
            first = logger(tmp_path)
            train(first, range(1, 3), status="interrupted")
            # Epoch 2 is trained again: the checkpoint was that of epoch 1.
            train(logger(tmp_path, run_id=first.identity["id"]), range(2, 4))
        (run,) = server.runs.values()
        assert rows(run.history) == [row(1), row(2), row(3)]
        assert run.resumed == 1
        assert run.exit_code == 0
        assert run.summary["status"] == "completed"

    def test_rows_that_a_killed_process_of_wandb_lost_come_first_in_the_next_part(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = [json.dumps(metrics(epoch).as_row()) + "\n" for epoch in (1, 2)]
        (tmp_path / "metrics.jsonl").write_text("".join(lines))
        with WandbServer() as server:
            use(server, monkeypatch)
            log = logger(tmp_path, run_id="abc")
            log.on_start(dataclasses.replace(STARTED, first_epoch=3))
            log.on_epoch(metrics(3))
            log.on_end(TrainingEnded("completed", None, SUMMARY))
        assert rows(server.runs["abc"].history) == [row(1), row(2), row(3)]

    def test_an_offline_run_in_two_parts_is_uploaded_by_the_printed_command(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        directory = tmp_path / "a run"
        first = logger(directory)
        train(first, range(1, 3), status="interrupted")
        with WandbServer() as server:
            use(server, monkeypatch)
            wandb.teardown()
            caplog.clear()
            time.sleep(1.0)  # W&B does not order parts that began within one second
            train(logger(directory, run_id=first.identity["id"]), range(3, 4))  # a key has come meanwhile
            told = only_warning(caplog)
            assert told.startswith("Weights & Biases: it began offline; ")
            wandb.teardown()
            sync(told)
        (run,) = server.runs.values()
        assert rows(run.history) == [row(1), row(2), row(3)]
        assert run.exit_code == 0


def test_settings_come_from_the_environment_unless_they_are_typed(
    composed: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("project", "entity", "group", "job_type", "notes", "tags")

    def logger_section(*overrides: str) -> list[Any]:
        section = composed(*overrides)["logger"]
        return [section[key] for key in keys]

    assert logger_section() == ["mnist-exp", None, None, None, None, []]
    environment = ("theirs", "team", "widths", "search", "${env} note", " a, b ")
    for name, value in zip(("PROJECT", "ENTITY", "RUN_GROUP", "JOB_TYPE", "NOTES", "TAGS"), environment, strict=True):
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert logger_section() == ["theirs", "team", "widths", "search", "${env} note", ["a", "b"]]
    assert logger_section("logger.project=mine", "logger.entity=null", "logger.tags=[c]")[::5] == ["mine", ["c"]]
    monkeypatch.setenv("WANDB_PROJECT", "")
    assert logger_section()[0] == "mnist-exp"


class TestTrouble:
    """With any fault of the server, training goes on without a long delay, and every row is on disk."""

    def assert_offline(self, directory: Path, log: WandbLogger, began: float) -> None:
        assert time.monotonic() - began < SECONDS
        assert log.identity["mode"] == "offline"
        assert_whole(read_run(directory))  # exactly one file: the failed attempt is cleared away

    @pytest.mark.usefixtures("brief_start")
    def test_no_network(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = closed_port()
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        began = time.monotonic()
        log = logger(tmp_path)
        train(log)
        self.assert_offline(tmp_path, log, began)
        assert only_warning(caplog) == (
            f"Weights & Biases: {url} does not answer; this run is recorded offline, "
            f"to upload it later: mnist-report {tmp_path} --wandb-sync"
        )

    @pytest.mark.usefixtures("brief_start")
    def test_the_next_run_does_not_wait_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = closed_port()
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        train(logger(tmp_path / "a"))
        monkeypatch.setattr(WandbLogger, "_start_online", pytest.fail)
        began = time.monotonic()
        log = logger(tmp_path / "b")
        train(log)
        self.assert_offline(tmp_path / "b", log, began)
        assert warnings_of(caplog)[-1].startswith(f"Weights & Biases: {url} does not answer; ")

    def test_a_server_that_is_back_is_found_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with WandbServer() as server:
            use(server, monkeypatch)
            monkeypatch.setattr(WandbLogger, "_no_answer", "it was gone")
            monkeypatch.setattr(WandbLogger, "_ask_again", time.monotonic())
            log = logger(tmp_path)
            train(log)
        assert log.identity["mode"] == "online"

    def test_refused_key(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with WandbServer(refuse_key=True) as server:
            use(server, monkeypatch)
            began = time.monotonic()
            log = logger(tmp_path)
            train(log)
            self.assert_offline(tmp_path, log, began)
        assert only_warning(caplog).startswith(
            f"Weights & Biases: {server.url} did not accept the run (invalid API key); this run is recorded offline, "
        )

    @pytest.mark.usefixtures("brief_start")
    def test_no_answer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        with WandbServer(silent=True) as server:
            use(server, monkeypatch)
            began = time.monotonic()
            log = logger(tmp_path)
            train(log)
            self.assert_offline(tmp_path, log, began)
        assert only_warning(caplog).startswith(f"Weights & Biases: {server.url} does not answer; ")

    @pytest.mark.usefixtures("brief_start")
    def test_no_answer_to_a_run_that_is_resumed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with WandbServer(silent=True) as server:
            use(server, monkeypatch)
            began = time.monotonic()
            log = logger(tmp_path, run_id="abcdef")
            train(log)
            self.assert_offline(tmp_path, log, began)
        assert read_run(tmp_path).id == log.identity["id"] == "abcdef"

    @pytest.mark.usefixtures("brief_end")
    @pytest.mark.parametrize("upload_files", [False, True])
    @pytest.mark.parametrize("fate", ["gone", "silent"])
    def test_server_lost_in_mid_run(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        fate: str,
        upload_files: bool,
    ) -> None:
        with WandbServer() as server:
            use(server, monkeypatch)
            log = logger(tmp_path, upload_files=upload_files)
            began = time.monotonic()
            log.on_start(STARTED)
            spent = time.monotonic() - began
            log.on_epoch(metrics(1))
            if fate == "gone":
                server.stop()
            else:
                server.silent = True
            log.on_epoch(metrics(2))
            log.on_epoch(metrics(3))
            began = time.monotonic()
            log.on_end(TrainingEnded("completed", None, SUMMARY))
            assert spent + time.monotonic() - began < SECONDS
            began = time.monotonic()
            wandb.teardown()  # what the end of the process does
            assert time.monotonic() - began < SECONDS
        assert_whole(read_run(tmp_path))
        assert not uploaded(tmp_path)
        told = only_warning(caplog)
        assert told.startswith("Weights & Biases: ")
        files = " --wandb-files" if upload_files else ""
        assert told.endswith(
            f"; training is not affected, to upload what is missing: mnist-report {tmp_path} --wandb-sync{files}"
        )

    def test_all_waits_together_are_the_budget_of_15_seconds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From the arguments of W&B's functions, because measured times vary on a busy machine."""
        told: list[wandb.Settings] = []

        def init(*, settings: wandb.Settings, original: Callable[..., wandb.Run] = wandb.init, **options: Any) -> Any:
            told.append(settings)
            return original(settings=settings, **options)

        monkeypatch.setattr(wandb, "init", init)
        with WandbServer() as server:
            use(server, monkeypatch)
            server.delay = 0.1
            log = WandbLogger(directory=tmp_path, label="n", config={}, parameters=1)
            train(log)
        (settings,) = told
        assert log.identity["mode"] == "online"
        assert 0 < settings.init_timeout <= START * 15
        assert settings.finish_timeout == END * 15
        assert settings.finish_timeout_raises
        assert START + END + REST <= 1 + 1e-9

    @pytest.mark.usefixtures("brief_end")
    def test_rows_that_a_lost_server_missed_are_uploaded_by_the_printed_command(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with WandbServer() as server:
            use(server, monkeypatch)
            log = logger(tmp_path)
            log.on_start(STARTED)
            server.silent = True
            for epoch in (1, 2, 3):
                log.on_epoch(metrics(epoch))
            log.on_end(TrainingEnded("completed", None, SUMMARY))
            wandb.teardown()
            server.silent = False
            sync(only_warning(caplog))
        (run,) = server.runs.values()
        assert rows(run.history) == [row(1), row(2), row(3)]
        assert run.exit_code == 0

    def test_refused_rows_are_not_marked_as_uploaded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with WandbServer(refuse_rows=True) as server:
            use(server, monkeypatch)
            train(logger(tmp_path))
        assert not uploaded(tmp_path)
        assert only_warning(caplog).startswith("Weights & Biases: the server refused rows of this run; ")
        assert_whole(read_run(tmp_path))

    def test_a_directory_that_cannot_be_written_fails_no_run(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "wandb").write_text("a file where W&B wants a folder")
        log = logger(tmp_path)
        train(log)
        assert log.identity["mode"] == "failed"
        assert "training goes on without it" in only_warning(caplog)

    def test_the_process_ends_in_time_without_an_answer(self, tmp_path: Path) -> None:
        with WandbServer(silent=True) as server:
            program = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from test_wandb import BRIEF, logger, train
from mnist_exp.loggers import wandb
wandb.START = BRIEF
train(logger(Path({str(tmp_path)!r})))
"""
            environment = {**os.environ, **server.environment, "PYTHONPATH": str(Path(__file__).parent)}
            # Without the care taken it hangs for minutes.
            subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=2 * SECONDS)
        assert_whole(read_run(tmp_path))


class TestService:
    """W&B's service process, when it hangs or dies."""

    def run(self, program: str, out: Path) -> str:
        """Run a program with ``services()``, the process ids of W&B's service, in a new process; return its output."""
        preamble = """
import os, signal, sys
from pathlib import Path
from test_wandb import logger, train
def services():
    children = [int(child) for file in Path("/proc/self/task").glob("*/children") for child in file.read_text().split()]
    return [child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0)]
"""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        with out.open("w") as file:  # no pipe, which the service would hold open
            process = subprocess.Popen([sys.executable, "-c", preamble + program], stdout=file, env=environment)
        try:
            assert process.wait(timeout=5 * SECONDS) == 0
        finally:
            process.kill()
            process.wait()
        return out.read_text()

    def test_one_that_does_not_answer_is_not_waited_for(self, tmp_path: Path) -> None:
        program = """
import wandb
from mnist_exp.loggers.wandb_service import end_service
wandb.setup(wandb.Settings(silent=True))
(service,) = services()
print(service, flush=True)
os.kill(service, signal.SIGSTOP)
end_service(0.5)
"""
        try:
            self.run(program, tmp_path / "out")
        finally:
            os.kill(int((tmp_path / "out").read_text()), signal.SIGKILL)

    def test_one_that_died_is_replaced_for_the_next_run(self, tmp_path: Path) -> None:
        program = f"""
folder = Path({str(tmp_path)!r})
train(logger(folder / "a"))
for name in "bc":
    (service,) = services()
    os.kill(service, signal.SIGKILL)
    train(logger(folder / name))
"""
        self.run(program, tmp_path / "out")
        for name in "abc":
            assert_whole(read_run(tmp_path / name))

    def test_one_of_a_multiprocessing_child_has_written_all_when_the_run_ends(self, tmp_path: Path) -> None:
        program = f"""
import multiprocessing
def life():
    train(logger(Path({str(tmp_path)!r})))
    os._exit(len(services()))
process = multiprocessing.get_context("fork").Process(target=life)
process.start()
process.join()
print(process.exitcode)
"""
        assert self.run(program, tmp_path / "out") == "0\n"
        assert_whole(read_run(tmp_path))

    def test_one_that_does_not_write_the_file_to_its_end_costs_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        log = logger(tmp_path, mode="offline")
        log.on_start(STARTED)
        monkeypatch.setattr("mnist_exp.loggers.wandb_file.records", lambda data: iter([]))
        monkeypatch.setattr("mnist_exp.loggers.wandb.END", -REST)
        log.on_end(TrainingEnded("completed", None, SUMMARY))
        assert only_warning(caplog).startswith("Weights & Biases: W&B has not written the run's file to its end; ")

    def test_one_that_cannot_start_costs_one_line(self, tmp_path: Path) -> None:
        program = f"""
from wandb.sdk.lib.service import service_process
service_process.get_core_path = lambda: "false"
log = logger(Path({str(tmp_path)!r}))
train(log)
print(log.identity["mode"])
"""
        assert self.run(program, tmp_path / "out") == "failed\n"


class TestAgent:
    """Runs in the environment of ``wandb agent``."""

    @pytest.fixture(autouse=True)
    def _started_by_an_agent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"SWEEP_ID": "s1", "RUN_ID": "r1", "PROJECT": "theirs", "ENTITY": "somebody"}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)

    def test_the_run_has_the_id_of_the_agent(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with WandbServer() as server:
            use(server, monkeypatch)
            log = logger(tmp_path, project="ours")
            train(log)
        (run,) = server.runs.values()
        assert (run.id, run.sweep, run.project, run.exit_code) == ("r1", "s1", "theirs", 0)
        assert (log.identity["id"], log.identity["project"], log.identity["sweep"]) == ("r1", "theirs", "s1")
        assert warnings_of(caplog) == []

    @pytest.mark.usefixtures("brief_start")
    def test_after_an_outage_it_is_still_in_its_sweep(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with WandbServer(silent=True) as server:
            use(server, monkeypatch)
            train(logger(tmp_path))
            wandb.teardown()
            server.silent = False
            sync(only_warning(caplog))
        (run,) = server.runs.values()
        assert (run.id, run.sweep, run.project) == ("r1", "s1", "theirs")
        assert rows(run.history) == [row(1), row(2), row(3)]

    def test_the_jobs_of_a_sweep_of_ours_are_runs_of_their_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with WandbServer() as server:
            use(server, monkeypatch)
            for name in "ab":
                train(logger(tmp_path / name, label=name, sweep="widths", project="ours"))
        assert [(run.name, run.sweep, run.group, run.project) for run in server.runs.values()] == [
            ("a", None, "widths", "ours"),
            ("b", None, "widths", "ours"),
        ]


def sync(told: str) -> None:
    """Run the command that the warning prints."""
    words = shlex.split(told.rpartition(": ")[2])
    assert words[0] == "mnist-report"
    (Path(words[1]) / "run.json").write_text('{"status": "completed", "config_hash": "0"}')
    with pytest.raises(SystemExit) as leaving:
        report.main(words[1:])
    assert leaving.value.code == 0


def on_a_terminal(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of a program on a pseudo-terminal without input; it is killed if it hangs."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    watchdog = threading.Timer(2 * SECONDS, process.kill)
    watchdog.start()
    output = b""
    while select.select([controller], [], [], 2 * SECONDS)[0]:
        try:
            read = os.read(controller, 4096)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        output += read
    status = process.wait()
    watchdog.cancel()
    os.close(controller)
    return status, output.decode()


class TestTrainCommand:
    """Runs of ``mnist-train`` on the server."""

    def test_a_multirun_arrives_as_one_run_for_each_job(
        self, mnist_train: Callable[..., int], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with WandbServer() as server:
            use(server, monkeypatch)
            assert mnist_train("-m", *small, "logger=wandb", "seed=0,1", "hydra.sweep.dir=widths") == 0
            wandb.teardown()
            jobs = [read_record(tmp_path / "widths" / name) for name in ("seed=0", "seed=1")]
            assert set(server.runs) == {job.wandb.id for job in jobs}
            for job, name in zip(jobs, ("seed=0", "seed=1"), strict=True):
                arrived = server.runs[job.wandb.id]
                assert arrived.group == "widths"
                assert arrived.config["seed"] == job.seed
                assert arrived.config["optimizer"]["lr"] == 0.01
                rows = read_metrics(tmp_path / "widths" / name)
                assert [row["test/accuracy"] for row in arrived.history] == [row["test_accuracy"] for row in rows]
                assert [row["images_seen"] for row in arrived.history] == [320, 640]
                assert arrived.summary["parameters"] == 61_706
                assert arrived.exit_code == 0

    def test_a_resumed_run_is_the_same_run(
        self,
        mnist_train: Callable[..., int],
        small: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        stopped_after: Callable[[int], AbstractContextManager[None]],
    ) -> None:
        with WandbServer() as server:
            use(server, monkeypatch)
            with stopped_after(7):  # in the second epoch
                assert mnist_train(*small, "logger=wandb", "hydra.run.dir=run") == 143
            (run_id,) = server.runs
            assert server.runs[run_id].exit_code == 1
            assert mnist_train("resume=run") == 0
            wandb.teardown()
            assert list(server.runs) == [run_id] == [read_record(tmp_path / "run").wandb.id]
            assert [row["epoch"] for row in server.runs[run_id].history] == [1, 2]
            assert server.runs[run_id].exit_code == 0

    @pytest.mark.usefixtures("brief_start")
    def test_a_silent_server_changes_nothing(
        self, mnist_train: Callable[..., int], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert mnist_train(*small, "hydra.run.dir=without") == 0
        with WandbServer(silent=True) as server:
            use(server, monkeypatch)
            assert mnist_train(*small, "logger=wandb", f"logger.timeout_seconds={SECONDS}", "hydra.run.dir=with") == 0
        without, with_ = (
            [{key: value for key, value in row.items() if "second" not in key} for row in read_metrics(tmp_path / name)]
            for name in ("without", "with")
        )
        assert without == with_
        assert read_record(tmp_path / "with").wandb.mode == "offline"
