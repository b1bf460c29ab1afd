"""The run directory: one process at a time, files that are complete at any moment, provenance."""

from __future__ import annotations

import logging
import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from mnist_exp.runs import RunDirectory, RunDirectoryError, Status, find_runs, read_run, write_atomically
from mnist_exp.runs.locking import is_locked
from mnist_exp.runs.provenance import cores, git_state, peak_memory, provenance, reset_peak_memory
from mnist_exp.runs.reading import read_config

CONFIG = read_config(Path(__file__).parent / "version_0_1" / "completed")
RECORD = {"config_hash": "0" * 12, "name": "test"}


def new(path: Path) -> RunDirectory:
    return RunDirectory.create(path, config=CONFIG, overrides=["seed=0"], record=RECORD)


def test_second_process_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    with new(tmp_path / "run") as run:
        for attempt in (lambda: new(run.path), lambda: RunDirectory.reopen(run.path)):
            with pytest.raises(RunDirectoryError, match="is in use by another process"):
                attempt()
        run.end(Status.INTERRUPTED)
    with RunDirectory.reopen(run.path) as again:
        assert again.record.status == "running"
        assert len(again.record.resumed) == 1
        again.end(Status.COMPLETED)
    with pytest.raises(RunDirectoryError, match="holds a completed run; there is nothing to resume"):
        RunDirectory.reopen(run.path)


def test_a_run_without_a_recorded_end_is_failed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new(tmp_path / "run"):
        raise ZeroDivisionError("boom")
    run = read_run(tmp_path / "run")
    assert (run.status, run.record.error) == ("failed", "ZeroDivisionError: boom")
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text()


def test_a_run_that_failed_before_it_began_may_be_started_again(tmp_path: Path) -> None:
    with new(tmp_path / "run") as run:
        run.end(Status.FAILED, FileNotFoundError("no digits"))
    with new(tmp_path / "run") as run:
        (run.path / "checkpoints" / "last.pt").touch()
        run.end(Status.FAILED, OSError("disk full"))
    with pytest.raises(RunDirectoryError, match=r"holds an unfinished run; continue it: mnist-train resume="):
        new(tmp_path / "run")


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_written_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_metrics_beyond_the_checkpoint_and_half_lines_are_dropped(tmp_path: Path) -> None:
    with new(tmp_path / "run") as run:
        for epoch in (1, 2, 3):
            run.append_metrics({"epoch": epoch, "test_accuracy": 0.9})
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write('{"epoch": 4, "test_acc')
        assert [row["epoch"] for row in read_run(run.path).metrics] == [1, 2, 3]
        assert [row["epoch"] for row in run.keep_metrics(2)] == [1, 2]
        assert (run.path / "metrics.jsonl").read_text().count("\n") == 2


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    with new(tmp_path / "run") as run:
        (run.path / "metrics.jsonl").write_text('{"epoch": 1}\nnonsense\n{"epoch": 3}\n')
        with pytest.raises(RunDirectoryError, match=r"metrics\.jsonl, line 2: not a metrics line"):
            read_run(run.path)


def test_log_goes_to_the_run_that_is_open(tmp_path: Path) -> None:
    log = logging.getLogger("mnist_exp")
    for name in ("first", "second"):
        with new(tmp_path / name):
            log.warning("hello from %s", name)
    log.warning("to nobody")
    assert "hello from first" in (tmp_path / "first" / "train.log").read_text()
    assert (tmp_path / "second" / "train.log").read_text().count("\n") == 1


def test_runs_are_found_at_any_depth(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b"):
        new(tmp_path / name).__exit__(None, None, None)
    assert [path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)] == ["a/1", "a/2", "b"]
    assert list(find_runs(tmp_path / "b")) == [tmp_path / "b"]


def test_provenance_names_code_and_machine(tmp_path: Path) -> None:
    import mnist_exp

    facts = provenance(Path(mnist_exp.__file__).parent)
    assert facts["versions"]["torch"]
    assert facts["hardware"]["cores"] == cores() >= 1
    assert git_state(tmp_path) is None, "an installed package is in nobody's checkout"


def test_peak_memory_is_reset() -> None:
    # Memory of its own from the system: what malloc gives may lie in what an earlier test has freed, and stay there.
    with mmap.mmap(-1, 300_000_000) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        high = peak_memory()
    reset_peak_memory()
    assert high > 300e6
    if Path("/proc/self/clear_refs").exists():
        assert peak_memory() < high - 200e6


def test_the_lock_is_checked_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's run can be read while it trains."""
    flags = []
    opened = os.open

    def noted(path: Any, how: int, *more: Any, **options: Any) -> int:
        flags.append(how)
        return opened(path, how, *more, **options)

    with new(tmp_path / "run") as run:
        monkeypatch.setattr(os, "open", noted)
        assert is_locked(run.path)
        assert read_run(run.path).status == "running"
        monkeypatch.undo()
        run.end(Status.INTERRUPTED)
    assert not is_locked(run.path)
    assert flags
    assert not any(how & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) for how in flags)
