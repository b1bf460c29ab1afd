"""The order of arms, and which of them is the baseline."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import write_run

from mnist_exp.errors import UsageError
from mnist_exp.reports import html, markdown
from mnist_exp.reports.build import Report, build
from mnist_exp.reports.collect import compare, paths_of
from mnist_exp.reports.results import results_csv
from mnist_exp.runs.settings import ABSENT, natural

Compose = Callable[..., dict[str, Any]]
RATES = ("0.1", "0.003", "0.01")  # as typed in the sweep


def make(folder: Path, baseline: str | None = None) -> Report:
    return build(compare(paths_of([str(folder)]), baseline))


@pytest.fixture
def sweep(tmp_path: Path, composed: Compose) -> Path:
    """Two seeds of each rate, and ``sweep.json`` with the jobs as they were asked for."""
    folder = tmp_path / "sweep"
    jobs = []
    for place, lr in enumerate(RATES):
        for seed in range(2):
            name = f"lr={lr},seed={seed}"
            accuracy = 0.90 + 0.01 * place + 0.002 * seed * (place + 1)
            write_run(folder / name, composed("name=lenet5", "data=mnist5k", f"optimizer.lr={lr}"), seed=seed,
                      accuracy=accuracy)  # fmt: skip
            jobs.append({"directory": name, "id": name, "overrides": [], "arguments": [], "status": "completed"})
    record = {"command": "mnist-train -m", "arguments": [], "updated": "2026-11-21T10:10:10+00:00", "jobs": jobs}
    (folder / "sweep.json").write_text(json.dumps(record))
    return folder


def first_job(sweep: Path, name: str) -> None:
    content = json.loads((sweep / "sweep.json").read_text())
    content["jobs"].sort(key=lambda job: job["directory"] != name)
    (sweep / "sweep.json").write_text(json.dumps(content))


class TestNaturalOrder:
    @pytest.mark.parametrize(
        "values",
        [
            [0.003, 0.01, 0.1, 1],
            [8, 16, 128],
            [[8, 8], [16, 16], [16, 16, 16], [128]],
            [None, 1, 100, 30000],
            [False, True],
            [-1.5, 0, 1e-5, 1e-3],
            ["lr=0.003,seed=2", "lr=0.003,seed=10", "lr=0.1,seed=0", "lr=1e3"],
            ["run-2", "run-10", "run-a"],
            [None, 0.5, [8], "relu", ABSENT],
        ],
    )
    def test_values(self, values: list[Any]) -> None:
        mixed = values[::-1]
        assert sorted(mixed, key=natural) == values

    def test_arms_everywhere(self, sweep: Path) -> None:
        made = make(sweep)
        labels = ["lr 0.003", "lr 0.01", "lr 0.1"]
        assert [arm.label for arm in made.comparison.arms] == labels
        (curve,) = [figure for figure in made.figures if figure.name == "curves_loss"]
        assert curve.spec["layer"][1]["encoding"]["color"]["scale"]["domain"] == labels
        lines = list(csv.DictReader(io.StringIO(results_csv(made.comparison))))
        assert [(line["arm"], line["seed"]) for line in lines] == [(label, seed) for label in labels for seed in "01"]
        parts = (made.comparison, made.rows, made.pairs, made.figures, made.answer)
        text = markdown.document(*parts)
        settings = text[text.index("## What differs") : text.index("## Arms")]
        assert [label for line in settings.splitlines() for label in labels if label in line] == labels
        again = text[text.index("## Reproduce") :]
        assert sorted(labels, key=again.index) == labels
        page = html.page(*parts)
        assert sorted(labels, key=page[page.index('id="differs"') :].index) == labels
        assert sorted(labels, key=page[page.index('class="switches"') :].index) == labels

    def test_the_page_sorts_the_column_of_arms_by_their_order(self, sweep: Path) -> None:
        made = make(sweep)
        assert {row.arm.label: row.place for row in made.rows} == {
            "lr 0.003": 0, "lr 0.01": 1, "lr 0.1": 2,
        }  # fmt: skip
        page = html.page(made.comparison, made.rows, made.pairs, made.figures, made.answer)
        table = page[page.index('id="table-pairs"') :]
        assert '<td data-key="0">lr 0.003' in table

    def test_axes(self, sweep: Path, composed: Compose) -> None:
        for hidden in ("[16,16]", "[8,8]"):
            for lr in RATES:
                tree = composed("name=mlp", "data=mnist5k", "model=mlp", f"model.hidden={hidden}", f"optimizer.lr={lr}")
                write_run(sweep / f"mlp-{hidden}-{lr}", tree, accuracy=0.9)
        (parallel,) = [figure for figure in make(sweep).figures if figure.name == "parallel_coordinates"]
        marks = parallel.spec["layer"][1]["data"]["values"]
        shown = {mark["axis"]: [] for mark in marks}
        for mark in sorted(marks, key=lambda mark: mark["place"]):
            shown[mark["axis"]].append(" ".join(mark["text"]))
        assert shown["optimizer.lr"] == ["0.003", "0.01", "0.1"]
        assert shown["model.hidden"] == ["[8,8]", "[16,16]", "[120,84]"]


class TestBaseline:
    def chosen(self, report: Report) -> tuple[str, str]:
        return report.comparison.arms[report.comparison.baseline].label, report.comparison.reason

    def test_the_first_job_of_the_sweep(self, sweep: Path) -> None:
        assert self.chosen(make(sweep)) == ("lr 0.1", "the sweep's first job")
        first_job(sweep, "lr=0.01,seed=1")
        made = make(sweep)
        assert self.chosen(made) == ("lr 0.01", "the sweep's first job")
        assert "It is the baseline (the sweep's first job)." in made.headline

    def test_the_headline_names_it(self, sweep: Path) -> None:
        assert "Against the baseline lr 0.1: " in make(sweep).headline

    def test_a_first_job_without_a_result(self, sweep: Path) -> None:
        for seed in range(2):
            file = sweep / f"lr=0.1,seed={seed}" / "run.json"
            record = json.loads(file.read_text())
            file.write_text(json.dumps({**record, "status": "failed", "final": None, "error": "Error: no"}))
        assert self.chosen(make(sweep)) == ("lr 0.003", "the first job of the sweep with a result here")

    def test_without_a_sweep_the_arm_nearest_to_the_defaults(self, sweep: Path) -> None:
        (sweep / "sweep.json").unlink()
        why = "the arm that differs least from the default settings"
        assert self.chosen(make(sweep)) == ("lr 0.01", why)
        (sweep / "sweep.json").write_text("damaged")
        assert self.chosen(make(sweep)) == ("lr 0.01", why)

    def test_runs_beside_a_sweep(self, sweep: Path, composed: Compose) -> None:
        write_run(sweep / "later", composed("name=later", "data=mnist5k", "model=mlp"), accuracy=0.9)
        assert self.chosen(make(sweep))[1] == "the arm that differs least from the default settings"

    @pytest.mark.parametrize("asked", ["lr 0.01", "lr=0.01", "optimizer.lr=0.010", "lr=1e-2,model=lenet5"])
    def test_asked_for(self, asked: str, sweep: Path) -> None:
        assert self.chosen(make(sweep, asked)) == ("lr 0.01", "asked for with --baseline")

    def test_settings_with_commas(self, tmp_path: Path, composed: Compose) -> None:
        for hidden in ("[16,16]", "[8,8]"):
            tree = composed("name=mlp", "data=mnist5k", "model=mlp", f"model.hidden={hidden}")
            write_run(tmp_path / "runs" / hidden, tree)
        assert self.chosen(make(tmp_path / "runs", "model=mlp,hidden=[16,16]"))[0] == "hidden [16,16]"

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            (
                "model=lenet5",
                "--baseline 'model=lenet5' fits 3 arms; choose from 'lr 0.003', 'lr 0.01', ",
            ),
            ("lr=7", "--baseline 'lr=7' is not one arm; choose from 'lr 0.003', "),
            ("", "--baseline '' is not one arm; choose from "),
        ],
    )
    def test_settings_that_match_no_arm_or_several(self, asked: str, said: str, sweep: Path) -> None:
        with pytest.raises(UsageError) as refusal:
            make(sweep, asked)
        assert str(refusal.value).startswith(said)

    def test_a_sweep_of_its_own(
        self, mnist_train_process: Callable[..., subprocess.CompletedProcess[str]], small: list[str], tmp_path: Path
    ) -> None:
        """From the command that trains to the one that reports, each a fresh process."""
        trained = mnist_train_process("-m", "optimizer.lr=0.1,0.003", "seed=0", *small, "hydra.sweep.dir=lr")
        assert trained.returncode == 0, trained.stderr
        command = [sys.executable, "-m", "mnist_exp.cli.report", "lr"]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "The baseline is lr 0.1: the sweep's first job. Another one: --baseline ARM" in ended.stdout
        text = (tmp_path / "outputs/report/report.md").read_text()
        assert "The baseline is lr 0.1: the sweep's first job." in text
        assert "10,000" not in text
