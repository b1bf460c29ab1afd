"""The W&B sweep that is made from a Hydra sweep; tests/sweeps/test_wandb.py runs one."""

from __future__ import annotations

import pytest
from wandb_sweep import main, wandb_sweep


def test_a_search_is_random_points_of_the_same_ranges() -> None:
    made = wandb_sweep(["sweep=search", "hydra.sweeper.n_trials=7", "trainer.batch_size=interval(16,128)"])
    assert (made["method"], made["run_cap"]) == ("random", 7)
    assert made["metric"] == {"name": "val/accuracy", "goal": "maximize"}
    assert made["parameters"] == {
        "optimizer.lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1},
        "regularization.weight_decay": {"distribution": "log_uniform_values", "min": 0.000001, "max": 0.01},
        "regularization.dropout": {"distribution": "uniform", "min": 0.0, "max": 0.6},
        "regularization.augmentation.strength": {"distribution": "uniform", "min": 0.0, "max": 1.5},
        "trainer.batch_size": {"distribution": "int_uniform", "min": 16, "max": 128},
    }
    assert made["command"][:3] == ["mnist-train", "hydra.mode=RUN", "sweep=search"]


def test_values_are_a_grid_and_those_that_are_typed_replace_those_of_the_preset() -> None:
    made = wandb_sweep(["sweep=data_fraction", "seed=5,6", "optimizer=sgd,adam", "trainer.epochs=2"])
    assert made["method"] == "grid"
    assert made["parameters"] == {
        "data.limit": {"values": [100, 300, 1000, 3000, 10000, 30000, "null"]},
        "seed": {"values": [5, 6]},
        "optimizer": {"values": ["sgd", "adam"]},
    }
    assert "trainer.epochs=2" in made["command"]
    assert wandb_sweep(["sweep=mlp_width"])["parameters"]["model.hidden"]["values"][:2] == ["[8,8]", "[16,16]"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=0"], "nothing is varied; name a preset, sweep=search, or several values, seed=0,1,2"),
        (["sweep=serch"], "sweep=serch is not a choice; choose from data_fraction, "),
        (["optimizer=glob(*)"], "optimizer=glob(*): W&B has only values and ranges; type values with commas"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(words)
    assert leaving.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"wandb_sweep.py: {said}")
