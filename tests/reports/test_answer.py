"""What a report answers first: the best arm, how sure its lead is, and the command for more seeds."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import write_run

from mnist_exp.reports.answer import Answer
from mnist_exp.reports.build import Report, build
from mnist_exp.reports.collect import compare, paths_of
from mnist_exp.reports.statistics import seeds_needed
from mnist_exp.reports.tables import columns

Compose = Callable[..., dict[str, Any]]
Arms = Callable[..., Report]


@pytest.fixture
def arms(tmp_path: Path, composed: Compose) -> Arms:
    """The report on arms, each with the learning rate and the accuracies by seed; the first is the baseline."""

    def make(*accuracies: Sequence[float], val: Sequence[float] = (), first_seed: Sequence[int] = ()) -> Report:
        folder, jobs = tmp_path / "sweep", []
        tree = composed("name=lenet5", "data=mnist5k")
        for place, own in enumerate(accuracies):
            lr = f"optimizer.lr={0.01 * (place + 1)}"
            own_tree = {**tree, "optimizer": {**tree["optimizer"], "lr": 0.01 * (place + 1)}}
            start = first_seed[place] if first_seed else 0
            for seed, accuracy in enumerate(own, start=start):
                name = f"{lr},seed={seed}"
                held_out = val[place] if val else None
                write_run(folder / name, own_tree, seed=seed, accuracy=accuracy,
                          images=10_000, val_accuracy=held_out, overrides=["data=mnist5k", lr])  # fmt: skip
                jobs.append({"directory": name, "id": name, "overrides": [], "arguments": [], "status": "completed"})
        record = {"command": "mnist-train -m", "arguments": [], "updated": "2026-11-21T10:10:10+00:00", "jobs": jobs}
        (folder / "sweep.json").write_text(json.dumps(record))
        return build(compare(paths_of([str(folder)])))

    return make


def only_contrast(report: Report) -> tuple[str | None, str, int | None]:
    (contrast,) = report.answer.contrasts
    return contrast.finding, contrast.reason, contrast.more


class TestFindings:
    def test_real(self, arms: Arms) -> None:
        made = arms([0.95, 0.951, 0.952], [0.97, 0.972, 0.971])
        assert made.answer.title == "Best arm: lr 0.02, 97.10 % test accuracy"
        (contrast,) = made.answer.contrasts
        assert (contrast.role, contrast.opponent.label) == ("the baseline and runner-up", "lr 0.01")
        finding, reason, more = only_contrast(made)
        assert (finding, more, contrast.commands) == ("real", None, ())
        assert reason == "So large a difference is rare by chance (p <0.001 over seeds, p <0.001 by image)."

    def test_one_seed(self, arms: Arms) -> None:
        made = arms([0.95], [0.97])
        finding, reason, more = only_contrast(made)
        assert (finding, more) == ("too few seeds", 2)
        assert reason.startswith(
            "One seed does not show how much results differ from seed to seed: 2 seeds more needed"
        )

    def test_too_few_seeds(self, arms: Arms) -> None:
        low, high = [0.950, 0.952, 0.954], [0.953, 0.954, 0.959]
        finding, reason, more = only_contrast(arms(low, high))
        gains = [0.003, 0.002, 0.005]
        spread = 1.527525e-3
        needed = seeds_needed(sum(gains) / 3 / spread)
        assert needed is not None
        assert (finding, more) == ("too few seeds", needed - 3)
        assert reason == (
            f"About {more} more needed to tell 0.33 points apart. A rough number: the spread is known from 3 seeds only."
        )

    def test_not_shown(self, arms: Arms) -> None:
        made = arms([0.950, 0.954, 0.958, 0.951], [0.953, 0.952, 0.957, 0.952])
        finding, reason, more = only_contrast(made)
        assert (finding, more) == ("not shown", None)
        assert "more than 30 would be needed" in reason

    def test_equal_arms(self, arms: Arms) -> None:
        assert only_contrast(arms([0.95] * 3, [0.95] * 3))[:2] == (
            "not shown",
            "All 3 seeds give both arms the same accuracy.",
        )

    def test_other_seeds_would_show_it_but_other_images_may_not(self, arms: Arms) -> None:
        finding, reason, _ = only_contrast(arms([0.9500, 0.9501, 0.9502], [0.9503, 0.9504, 0.9506]))
        assert finding == "not shown"
        assert reason.startswith(
            "Other seeds would show it on these test images, but other test images may not (p = 0.0"
        )

    def test_the_baseline_and_the_runner_up(self, arms: Arms) -> None:
        made = arms([0.90, 0.901, 0.902], [0.950, 0.951, 0.952], [0.951, 0.9525, 0.9527])
        assert [contrast.role for contrast in made.answer.contrasts] == ["the baseline", "the runner-up"]
        assert made.answer.contrasts[1].opponent.label == "lr 0.02"

    def test_the_best_arm_is_the_baseline(self, arms: Arms) -> None:
        made = arms([0.97, 0.971, 0.972], [0.95, 0.951, 0.953])
        assert made.answer.facts.endswith("It is the baseline (the sweep's first job).")
        assert [contrast.role for contrast in made.answer.contrasts] == ["the runner-up"]


class TestCommands:
    def commands(self, answer: Answer) -> list[list[str]]:
        return [shlex.split(command) for contrast in answer.contrasts for command in contrast.commands]

    def test_arms_that_differ_in_one_value_need_one_command(self, arms: Arms, tmp_path: Path) -> None:
        made = arms([0.950, 0.952, 0.954], [0.953, 0.954, 0.959])
        (words,) = self.commands(made.answer)
        assert words == [
            *("mnist-train", "-m", "data=mnist5k", "optimizer.lr=0.01,0.02", "name=lenet5", "seed=3"),
            f"hydra.sweep.dir={tmp_path}/sweep",
        ]

    def test_seeds_that_one_arm_has_come_first(self, arms: Arms) -> None:
        made = arms([0.95], [0.97], first_seed=[0, 7])
        seeds = [word for words in self.commands(made.answer) for word in words if word.startswith("seed=")]
        assert seeds == ["seed=1,7", "seed=0,1"]

    def test_many_seeds_are_a_range(self, arms: Arms) -> None:
        made = arms([0.950, 0.954, 0.958, 0.951], [0.953, 0.955, 0.957, 0.954])
        (words,) = self.commands(made.answer)
        assert [word for word in words if word.startswith("seed=")] == ["seed=range(4,15)"]

    def test_presets_are_kept_and_searches_are_not_searched_again(self, tmp_path: Path, composed: Compose) -> None:
        tree = composed("name=mlp", "data=mnist5k")
        words = ["sweep=mlp_width", "model.hidden=[8]", "hydra.sweep.dir=elsewhere"]
        search = {"trial": 0, "study": "s", "startup_trials": 5}
        for name, more in (("preset", {}), ("search", {"search": search})):
            write_run(tmp_path / name / "run", tree, overrides=words, **more)
        commands = [build(compare([tmp_path / name / "run"])).answer.more_seeds for name in ("preset", "search")]
        begin = "mnist-train -m sweep=mlp_width 'model.hidden=[8]' name=mlp"
        assert commands == [
            (f"{begin} seed=1,2 sweep.name=more-seeds",),
            (f"{begin} hydra/sweeper=basic hydra.sweeper.params=null seed=1,2 sweep.name=more-seeds",),
        ]

    def test_one_run(self, arms: Arms) -> None:
        made = arms([0.95])
        assert made.answer.title == "lenet5: 95.00 % test accuracy"
        (command,) = made.answer.more_seeds
        assert " seed=1,2 " in command
        assert not [figure for figure in made.figures if figure.section in {"answer", "pairwise", "costs"}]


class TestValidation:
    def test_arms_are_ranked_by_it(self, arms: Arms) -> None:
        made = arms([0.97, 0.971], [0.95, 0.951], val=[0.94, 0.96])
        assert [row.arm.label for row in made.rows] == ["lr 0.02", "lr 0.01"]
        assert made.answer.title == "Best arm: lr 0.02, 96.00 % validation and 95.05 % test accuracy"
        assert made.answer.contrasts[0].pair.effect == "-2.00"
        assert "validation" in [column.title for column in columns(made.rows)]
        curves = next(figure for figure in made.figures if figure.name == "curves_error")
        assert {value["split"] for value in curves.spec["data"]["values"]} == {"test", "validation", "training"}

    def test_without_it_there_is_no_column(self, arms: Arms) -> None:
        made = arms([0.97, 0.971], [0.95, 0.951])
        assert "validation" not in [column.title for column in columns(made.rows)]
        assert "not completed" not in [column.title for column in columns(made.rows)]
