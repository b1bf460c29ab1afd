"""A directory with a wrong ``run.json`` or ``metrics.jsonl`` is refused; other directories are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mnist_exp.cli import report
from mnist_exp.runs import RunDirectoryError, Status, read_run

OLD = Path(__file__).parent / "version_0_1"

WRONG: dict[str, dict[str, Any]] = {
    "error=5 should be a valid string": {"error": 5},
    "status=[] should be": {"status": []},
    "status=done should be": {"status": "done"},
    "seed=1.5 should be a valid integer": {"seed": 1.5},
    "threads=10000000 should be less than or equal to 1024": {"threads": 10_000_000},
    "seconds.total=NaN": {"seconds": {"total": float("nan")}},
    "test_accuracy=5 should be a fraction": {"final": {"epoch": 1, "test_accuracy": 5}},
    "test_loss=nan should be a finite number": {"final": {"epoch": 1, "test_loss": float("nan")}},
    "test_loss=low should be a finite number": {"final": {"epoch": 1, "test_loss": "low"}},
    "it has no epoch": {"final": {"test_loss": 1.0}},
    "name=a\x1bb should hold no control characters": {"name": "a\x1bb"},
    "versions=[] should be": {"versions": []},
    "git.commit is missing": {"git": {"dirty": True}},
    "wandb.id=5 should be a valid string": {"wandb": {"id": 5}},
}


def changed(path: Path, **fields: Any) -> None:
    record = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**record, **fields}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(OLD / "completed", tmp_path / "runs" / "broken")
    return tmp_path / "runs" / "broken"


@pytest.mark.parametrize(("message", "fields"), WRONG.items(), ids=[message.split()[0] for message in WRONG])
def test_a_value_of_another_type_is_refused(message: str, fields: dict[str, Any], run: Path) -> None:
    changed(run, **fields)
    with pytest.raises(RunDirectoryError) as refused:
        read_run(run)
    assert str(refused.value).startswith(f"{run / 'run.json'}")
    assert message.replace("NaN", "nan") in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("line", ["{}", "[]", "5", '{"epoch": "1"}', '{"epoch": 1, "test_accuracy": 71}', "[" * 9999])
def test_a_line_that_holds_no_metrics_is_refused(line: str, run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(f"{line}\n{lines}")
    with pytest.raises(RunDirectoryError, match="line 1: not a metrics line"):
        read_run(run)


def test_the_report_shows_the_others(run: Path, tmp_path: Path) -> None:
    shutil.copytree(OLD / "completed", tmp_path / "runs" / "whole")
    changed(run, error=5)
    report.main([str(tmp_path / "runs"), "--output", str(tmp_path / "report")])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "unreadable" in text
    assert "error=5 should be a valid string" in text
    assert "\nReport on 2 runs.\n" in text


def test_keys_of_later_versions_are_kept(run: Path) -> None:
    changed(run, planet="Mars", hardware={"cpu": "x", "cores": 2, "colour": "red"})
    record = read_run(run).record
    assert record.status == Status.COMPLETED == "completed"
    written = record.with_fields(threads=2).model_dump(mode="json", exclude_unset=True)
    assert (written["planet"], written["hardware"]["colour"], written["threads"]) == ("Mars", "red", 2)
    assert written["status"] == "completed"
