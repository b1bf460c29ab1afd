"""Run directories of earlier versions are evaluated, resumed, reported and finished. ``version_0_1`` has one of each kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_exp.cli import eval as evaluate
from mnist_exp.cli import report
from mnist_exp.hashing import HASH_VERSION, config_hash
from mnist_exp.runs import read_run

OLD = Path(__file__).parent / "version_0_1"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Copies that may be changed."""
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old"


def test_a_completed_run_is_evaluated(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(old / "completed"), "--json"])
    result = json.loads(capsys.readouterr().out)
    final = read_run(old / "completed").record.final
    assert result["test_accuracy"] == pytest.approx(final["test_accuracy"], abs=0.01)
    assert result["test_loss"] == pytest.approx(final["test_loss"], rel=1e-4)


def test_an_interrupted_run_is_resumed_to_the_same_result(old: Path, mnist_train: Callable[..., int]) -> None:
    assert mnist_train(f"resume={old / 'interrupted'}") == 0
    run = read_run(old / "interrupted")
    assert run.status == "completed"
    expected = [json.loads(line) for line in (old / "expected_after_resume.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in run.metrics] == [1, 2, 3]
    for row, wanted in zip(run.metrics, expected, strict=True):
        for name in ("train_loss", "test_loss", "learning_rate"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-3), name


def test_a_diverged_run_stays_diverged(old: Path, mnist_train: Callable[..., int]) -> None:
    assert read_run(old / "diverged").status == "diverged"
    assert mnist_train(f"resume={old / 'diverged'}") == 2


def test_a_sweep_is_finished(old: Path, mnist_train: Callable[..., int]) -> None:
    jobs = sorted(path.parent for path in (old / "sweep").glob("*/run.json"))
    assert [read_run(job).status for job in jobs] == ["completed", "waiting"]
    before = (jobs[0] / "run.json").read_bytes()
    assert mnist_train("-m", f"sweep.resume={old / 'sweep'}") == 0
    assert [read_run(job).status for job in jobs] == ["completed", "completed"]
    assert (jobs[0] / "run.json").read_bytes() == before, "what was complete is not trained again"
    assert len(sorted((old / "sweep").glob("*/run.json"))) == 2, "the jobs are recognised"


def test_jobs_of_the_first_hash_version_are_recognised(old: Path, mnist_train: Callable[..., int]) -> None:
    file = old / "sweep" / "sweep.json"
    content = json.loads(file.read_text())
    assert "config_hash_version" not in content
    for job in content["jobs"]:
        job["arguments"] = ["seed=77"]  # so that their overrides do not tell
    file.write_text(json.dumps(content))
    names = [job["directory"] for job in content["jobs"]]
    assert mnist_train("-m", f"sweep.resume={old / 'sweep'}") == 0
    after = json.loads(file.read_text())
    assert [job["directory"] for job in after["jobs"]] == names, "no job is there twice"
    assert after["config_hash_version"] == HASH_VERSION
    for job in after["jobs"]:
        assert job["id"] == config_hash(read_run(old / "sweep" / job["directory"]).config)
    assert {read_run(old / "sweep" / name).status for name in names} == {"completed"}


def test_the_schedule_step_is_step_decay_now(old: Path) -> None:
    assert "mnist_exp.training.step\n" in (old / "interrupted" / "config.yaml").read_text()
    assert read_run(old / "interrupted").config.scheduler.target == "mnist_exp.training.step_decay"


def test_a_report_reads_all_of_them(old: Path, tmp_path: Path) -> None:
    report.main([str(old), "--output", str(tmp_path / "report")])
    text = (tmp_path / "report" / "report.md").read_text()
    for word in ("interrupted", "diverged", "waiting"):
        assert word in text
    assert "unreadable" not in text
