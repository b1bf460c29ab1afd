"""The names of runs and arms in W&B."""

from __future__ import annotations

import pytest

from mnist_exp.runs.names import LONGEST, arm_name, run_name


@pytest.mark.parametrize(
    ("name", "overrides", "arm"),
    [
        ("lenet5", [], "lenet5"),
        ("mlp", ["model=mlp", "seed=3"], "mlp"),
        ("mine", ["model=mlp", "name=mine"], "mine model=mlp"),
        ("study_b.mlp", ["experiment=study_b/mlp"], "study_b.mlp"),
        ("lenet5", ["optimizer.lr=0.05", "trainer.threads=1", "logger.mode=offline", "quiet=true"], "lenet5 lr=0.05"),
        ("lenet5", ["+callbacks.x.rate=1", "regularization.dropout=0.5"], "lenet5 rate=1 dropout=0.5"),
        ("lenet5", ["model.dropout=0.1", "regularization.dropout=0.5"], "lenet5 model.dropout=0.1 regularization.dropout=0.5"),
        ("lenet5", ["~callbacks"], "lenet5 ~callbacks"),
        ("mlp", ["model.hidden=[8,8]", "sweep=mlp_width"], "mlp hidden=[8,8]"),
    ],
)  # fmt: skip
def test_arm(name: str, overrides: list[str], arm: str) -> None:
    assert arm_name(name, overrides) == arm
    assert run_name(name, 3, overrides) == f"{arm} seed=3"


def test_a_job_of_a_sweep_is_named_by_what_varies_even_if_it_changes_no_result() -> None:
    overrides = ["trainer.epochs=2", "optimizer.lr=0.05", "trainer.backend=torch", "seed=1"]
    assert run_name("lenet5", 1, overrides, ["optimizer.lr=0.05", "trainer.backend=torch", "seed=1"]) == (
        "lenet5 lr=0.05 backend=torch seed=1"
    )


def test_long_names_stay_different() -> None:
    names = {run_name("mlp", seed, [f"model.hidden={[8] * 60}"]) for seed in range(3)}
    assert len(names) == 3
    assert {len(name) for name in names} == {LONGEST}
