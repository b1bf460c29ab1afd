"""``sweep.until``: seeds are added until the question is settled, and the statistics allow for the looks."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special
from synthetic_runs import write_run

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import sequential as simulation

from mnist_exp.reports.build import Report, build
from mnist_exp.reports.collect import compare, paths_of
from mnist_exp.reports.sequential import LEVELS, looks, next_look, nominal_levels, sequential_difference
from mnist_exp.reports.statistics import seed_difference
from mnist_exp.runs.sweep import Until, read_sweep

PLAN = Until(points=0.1, max_seeds=30, first=3, planned=30)
Compose = Callable[..., dict[str, Any]]


class TestStatistics:
    def test_looks(self) -> None:
        assert looks(PLAN, 30) == (3, 5, 8, 12, 20, 30)
        assert looks(PLAN, 9) == (3, 5, 8, 9), "seeds after the last planned look are a further one"
        assert looks(PLAN, 2) == (2,)
        assert looks(Until(0.1, 12, 4, 10), 12) == (4, 5, 8, 10, 12)
        assert [next_look(PLAN, n) for n in (0, 3, 4, 20, 30)] == [3, 5, 5, 30, 30]
        assert next_look(Until(0.1, 10, 3, 10), 8) == 10

    def test_levels_are_those_of_the_literature(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Kim and DeMets's spending in proportion, five equal looks at 5 %: bounds from an independent computation."""
        monkeypatch.setattr("mnist_exp.reports.sequential.AT_PLANNED", 1.0)
        nominal_levels.cache_clear()
        at = (6, 12, 18, 24, 30)
        bounds = -special.ndtri(nominal_levels(at, 30)[int(np.searchsorted(LEVELS, 0.0499))] / 2)
        random = np.random.default_rng(0)
        sums = np.cumsum(random.standard_normal((200_000, 30)), axis=1)[:, [n - 1 for n in at]] / np.sqrt(at)
        first = np.cumsum(np.maximum.accumulate(np.abs(sums) > bounds, axis=1), axis=1) == 1
        assert first.mean(axis=0) == pytest.approx([0.01] * 5, abs=0.001)
        nominal_levels.cache_clear()

    def test_the_p_value_and_the_interval_agree(self) -> None:
        random = np.random.default_rng(1)
        for shift in (0.0, 0.0006, 0.0008, 0.001, 0.002):
            arm = {seed: 0.99 + shift + 0.001 * random.standard_normal() for seed in range(20)}
            baseline = {seed: 0.99 + 0.001 * random.standard_normal() for seed in range(24)}
            found = sequential_difference(arm, baseline, PLAN)
            plain = seed_difference(arm, baseline)
            assert (found.n, found.mean) == (20, plain.mean)
            assert found.p is not None
            assert plain.p is not None
            assert found.p >= plain.p
            assert found.interval is not None
            assert plain.interval is not None
            assert found.interval.low < plain.interval.low < plain.interval.high < found.interval.high
            if found.interval.low > 0:
                assert found.p < 0.05
        assert sequential_difference({0: 0.9, 1: 0.9}, {0: 0.8, 1: 0.8}, PLAN).p is None, "no spread"

    def test_what_an_earlier_look_has_shown_stays_shown(self) -> None:
        baseline = dict.fromkeys(range(8), 0.98)
        arm = {seed: 0.99 + 0.0001 * (seed % 2) for seed in range(5)}
        early = sequential_difference(arm, baseline, PLAN)
        late = sequential_difference({**arm, 5: 0.9, 6: 0.9, 7: 0.9}, baseline, PLAN)
        assert early.p == late.p
        assert early.p is not None
        assert early.p < 0.001
        assert late.interval is not None
        assert late.interval.low < 0

    def test_error_rates_of_null_sweeps(self) -> None:
        """Of 400 sweeps without differences 5 % may call one shown: 2.3 standard errors more are 7.5 %."""
        found = simulation.simulate(400, Until(0.05, 12, 3, 12), 0.0)
        assert found.any_shown <= 0.075
        assert found.any_shown_plain > 0.08, "the same without allowing for the looks"
        assert found.covered >= 0.94
        found = simulation.simulate(40, PLAN, 0.3)
        assert found.shown > 0.95
        assert found.seeds < 10


@pytest.fixture
def sweep(mnist_train: Callable[..., int], small: list[str]) -> Callable[..., int]:
    """Two wide networks that are alike, and a narrow one that is worse by more than ten points, with more luck."""
    shared = ["model=mlp", "data.limit=1000", "trainer.batch_size=16", "hydra.sweep.dir=sweep"]
    arms = "model.hidden=[64],[65],[4]"
    return lambda *arguments: mnist_train("-m", *small, *shared, arms, *arguments)


def seeds_of(folder: str = "sweep") -> dict[str, list[int]]:
    """The seeds of the complete runs of each arm, in the order of the jobs."""
    found: dict[str, list[int]] = {}
    for job in read_sweep(Path(folder)).jobs:
        hidden, seed = sorted(job.overrides)
        if job.status == "completed":
            found.setdefault(hidden.partition("=")[2], []).append(int(seed.partition("=")[2]))
    return found


def test_open_arms_get_seeds_in_rounds(sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("sweep.until=7", "sweep.max_seeds=8", "seed=7,4")
    assert sweep(*asked) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "against hidden [64]" in line]
    seeds = seeds_of()
    assert [line.split()[2:4] for line in lines] == [["3", "seeds,"], ["5", "seeds,"]]
    assert seeds["[64]"] == seeds["[4]"] == [7, 4, 8, 9, 10]
    assert seeds["[65]"] == [7, 4, 8], "known to ± 7 points after three seeds"
    assert [line.rpartition("; ")[2] for line in lines] == ["1 open", "all settled"]
    assert read_sweep(Path("sweep")).until == Until(7, 8, 3, 8)

    assert sweep(*asked) == 0, "again: nothing is trained, and the same is decided"
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if "against hidden [64]" in line] == lines
    assert "[1/" not in out

    report = build(compare(paths_of(["sweep"])))
    assert "all comparisons are settled" in report.answer.facts
    assert "Planned looks: at 3, 5, 8 seeds; made: 2, up to 5 seeds" in report.answer.facts
    assert [pair.seeds.n for pair in report.pairs if pair.seeds] == [3, 5]

    assert sweep("sweep.until=100", "sweep.max_seeds=12", "seed=7,4") == 0, "now an interval of ± 100 points is enough"
    record = read_sweep(Path("sweep"))
    assert record.until == Until(100, 12, 3, 8), "the looks that were planned first stay planned"
    assert sweep("model.hidden=[4],[64]", "sweep.until=100", "seed=7,4") == 2
    assert "compares with the arm of its first job" in capsys.readouterr().err


def test_a_stopped_sweep_decides_the_same(
    sweep: Callable[..., int], stopped_after: Callable[[int], AbstractContextManager[None]]
) -> None:
    asked = ("sweep.until=0.01", "sweep.max_seeds=5", "model.hidden=[4],[5]")
    with stopped_after(1000):
        assert sweep(*asked) == 143
    assert 6 < sum(map(len, seeds_of().values())) < 10, "in the second round"
    assert sweep(*asked) == 0
    stopped = seeds_of()
    assert sweep(*asked, "hydra.sweep.dir=whole") == 0
    assert seeds_of("whole") == stopped


def test_a_failed_job_stops_the_rounds(
    sweep: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("model.hidden=[4],[5]", "sweep.until=0.01", "sweep.max_seeds=5")
    calls = 0

    def break_the_second(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("a failure of ours")

    with monkeypatch.context() as patch:
        patch.setattr("mnist_exp.experiment.save_predictions", break_the_second)
        assert sweep(*asked) == 1
    assert "1 job not complete, so no seeds are added; repeat the command" in capsys.readouterr().out
    assert sum(map(len, seeds_of().values())) == 5
    assert sweep(*asked) == 0, "it is trained again, and seeds are added"
    assert sum(map(len, seeds_of().values())) == 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep.until=0"], "sweep.until=0 should be greater than 0"),
        (["sweep.until=x"], "sweep.until=x should be a valid number"),
        (["sweep.until=1", "sweep.max_seeds=2"], "sweep.max_seeds=2 should be greater than or equal to 3"),
        (["sweep.until=1", "sweep.max_seeds=3", "seed=range(4)"], "sweep.max_seeds=3 is less than the 4 first seeds"),
        (["sweep.until=1", "seed=a"], "seed=a: with sweep.until, seeds are whole numbers: seed=0,1,2"),
        (["sweep.until=1", "model.hidden=[4]"], "sweep.until=1 compares arms, and this sweep has one"),
        (["sweep.until=1", "trainer.evaluate_test=never"], "type trainer.evaluate_test=last"),
    ],
)
def test_refusals(
    words: list[str], message: str, sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("sweep").exists()


def test_it_needs_a_sweep(
    mnist_train: Callable[..., int], small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train(*small, "sweep.until=1") == 2
    assert "sweep.until=1 goes with -m" in capsys.readouterr().err


class TestReports:
    @pytest.fixture
    def report(self, tmp_path: Path, composed: Compose) -> Callable[..., Report]:
        """The report on a sweep that adds seeds, of arms with these accuracies by seed; the first is the baseline."""

        def make(*accuracies: list[float], until: Until = PLAN) -> Report:
            folder, jobs = tmp_path / "sweep", []
            tree = composed("name=lenet5", "data=mnist5k")
            for place, own in enumerate(accuracies):
                own_tree = {**tree, "optimizer": {**tree["optimizer"], "lr": 0.01 * (place + 1)}}
                for seed, accuracy in enumerate(own):
                    name = f"{place}-{seed}"
                    write_run(folder / name, own_tree, seed=seed, accuracy=accuracy, images=10_000)
                    jobs.append(
                        {"directory": name, "id": name, "overrides": [], "arguments": [], "status": "completed"}
                    )
            arguments = ["-m", "optimizer.lr=0.01,0.02", "sweep.until=0.1", "hydra/launcher=joblib"]
            record = {"command": "mnist-train -m", "arguments": arguments, "updated": "2026-11-21T10:10:10+00:00", "jobs": jobs,
                      "until": vars(until)}  # fmt: skip
            (folder / "sweep.json").write_text(json.dumps(record))
            return build(compare(paths_of([str(folder)])))

        return make

    def test_known_as_asked(self, report: Callable[..., Report]) -> None:
        made = report([0.95, 0.951, 0.952, 0.95, 0.951], [0.9501, 0.951, 0.9521, 0.95, 0.9511])
        (contrast,) = made.answer.contrasts
        assert contrast.finding == "not shown"
        assert contrast.reason == "5 seeds of each: the difference is known to ± 0.1 points, as asked."
        assert "all comparisons are settled" in made.answer.facts

    def test_not_finished(self, report: Callable[..., Report]) -> None:
        made = report([0.95, 0.951, 0.952], [0.96, 0.951, 0.952])
        (contrast,) = made.answer.contrasts
        (command,) = contrast.commands
        assert contrast.reason == "The sweep is not finished; to finish it:"
        words = "mnist-train -m optimizer.lr=0.01,0.02 sweep.until=0.1 hydra/launcher=joblib "
        assert re.fullmatch(words + r"hydra\.sweep\.dir=\S+/sweep sweep\.max_seeds=30", command)
        assert "it is not finished, with 1 of 1 comparisons open (lr 0.02)" in made.answer.facts

    def test_the_most_seeds(self, report: Callable[..., Report]) -> None:
        made = report([0.95, 0.951, 0.952], [0.96, 0.951, 0.952], until=Until(0.1, 3, 3, 3))
        (contrast,) = made.answer.contrasts
        assert contrast.reason == "sweep.max_seeds=3 is reached; to add more:"
        assert contrast.commands[0].endswith("sweep.max_seeds=5")

    def test_shown(self, report: Callable[..., Report]) -> None:
        made = report([0.90, 0.901, 0.902, 0.9, 0.901], [0.99, 0.992, 0.991, 0.99, 0.992])
        assert made.answer.contrasts[0].finding == "real"

    def test_beside_other_runs(self, report: Callable[..., Report], tmp_path: Path, composed: Compose) -> None:
        report([0.95, 0.951, 0.952], [0.96, 0.951, 0.952])
        write_run(tmp_path / "other", composed("name=mlp", "data=mnist5k", "model=mlp"))
        mixed = build(compare(paths_of([str(tmp_path)])))
        assert mixed.comparison.until is None
        assert "do not allow for this here" in mixed.comparison.notes[0]
