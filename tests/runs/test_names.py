"""Labels of arms and names of runs, as a person would say them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mnist_exp.config import check
from mnist_exp.hashing import arm_settings
from mnist_exp.runs.names import LONGEST, arm_alone, labels, names_on_wandb, said, said_choice
from mnist_exp.runs.record import RunRecord, Status
from mnist_exp.runs.settings import ABSENT, Varied

Compose = Callable[..., dict[str, Any]]
MODELS = Varied("model._target_", (), ("m.LeNet5", "m.LeNet5", "m.MLP", "m.MLP"))
RATES = Varied("optimizer.lr", (), (0.05, 0.01, 0.05, 0.01))
HIDDEN = Varied("model.hidden", (), (ABSENT, ABSENT, [8], [8]))
TYPED = [
    [f"model={model}", f"optimizer.lr={lr}", "seed=1", "logger=none"]
    for model in ("lenet5", "mlp")
    for lr in (0.05, 0.01)
]
FOUR = ["lenet5 · lr 0.05", "lenet5 · lr 0.01", "mlp · lr 0.05", "mlp · lr 0.01"]


@pytest.mark.parametrize("names", [["lenet5", "lenet5", "mlp", "mlp"], ["mine"] * 4])
@pytest.mark.parametrize("typed", [TYPED, []])
def test_model_and_rate(names: list[str], typed: list[list[str]]) -> None:
    """What follows from the choice of a model, its hidden layers, is left out, and so is a name that all share."""
    assert labels(names, [RATES, MODELS, HIDDEN], typed) == FOUR


def test_names_that_users_gave() -> None:
    assert labels(["a", "b"], [RATES]) == ["a", "b"]


def test_choices_are_said_instead_of_what_follows_from_them() -> None:
    columns = [
        Varied("regularization.dropout", ("model.dropout",), (0, 0.5, 0)),
        Varied("regularization.rotation", (), (0, 0, 10)),
    ]
    typed = [["regularization=none"], ["regularization=dropout"], ["regularization=augment"]]
    assert labels(["m"] * 3, columns, typed) == ["no regularization", "dropout", "augment"]
    assert labels(["m"] * 3, columns) == [
        "dropout 0 · rotation 0",
        "dropout 0.5 · rotation 0",
        "dropout 0 · rotation 10",
    ]


def test_a_setting_that_was_typed_for_one_arm_is_said_of_all() -> None:
    columns = [Varied("trainer.epochs", (), (3, 3, 5)), Varied("optimizer._target_", (), ("o.SGD", "o.Adam", "o.SGD"))]
    typed = [[], ["optimizer=adam"], ["trainer.epochs=5"]]
    assert labels(["m"] * 3, columns, typed) == ["epochs 3", "adam · epochs 3", "epochs 5"]


def test_an_arm_without_any_choice_has_its_name() -> None:
    dropout = Varied("regularization.dropout", (), (0, 0.5))
    assert labels(["m"] * 2, [dropout], [[], ["regularization=dropout"]]) == ["m", "m · dropout"]


def test_typed_settings_that_all_arms_share_are_left_out() -> None:
    typed = [["optimizer.lr=0.1", "trainer.epochs=3"], ["optimizer.lr=0.2", "trainer.epochs=3"]]
    assert labels(["m"] * 2, [Varied("optimizer.lr", (), (0.1, 0.2))], typed) == ["lr 0.1", "lr 0.2"]


def test_equal_labels_are_completed() -> None:
    """The same choice of a file that was edited in between."""
    columns = [
        Varied("optimizer.lr", (), (0.1, 0.2, 0.1)),
        Varied("optimizer._target_", (), ("o.SGD", "o.SGD", "o.Adam")),
    ]
    typed = [["optimizer=mine"], ["optimizer=mine"], ["optimizer=adam"]]
    assert labels(["m"] * 3, columns, typed) == ["mine · lr 0.1", "mine · lr 0.2", "adam"]
    assert labels(["m"] * 2, []) == ["m #1", "m #2"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optimizer.lr", 0.05, "lr 0.05"),
        ("optimizer.lr", 1e-05, "lr 1e-05"),
        ("model.batch_norm", True, "batch norm"),
        ("model.batch_norm", False, "no batch norm"),
        ("trainer.early_stopping", None, "no early stopping"),
        ("model.hidden", [64, 64], "hidden [64,64]"),
        ("model._target_", "mnist_exp.models.LeNet5", "lenet5"),
        ("model.hidden", ABSENT, ""),
    ],
)
def test_words(key: str, value: object, words: str) -> None:
    assert said(key, value) == words


def test_words_of_choices() -> None:
    assert [said_choice("optimizer", "adamw"), said_choice("regularization", "none")] == ["adamw", "no regularization"]


@pytest.mark.parametrize(
    ("name", "overrides", "arm"),
    [
        ("lenet5", [], "lenet5"),
        ("mlp", ["model=mlp", "seed=3"], "mlp"),
        ("mine", ["model=mlp", "name=mine"], "mine · mlp"),
        ("study_b.mlp", ["experiment=study_b/mlp"], "study_b.mlp"),
        ("lenet5", ["optimizer=adamw", "regularization=none"], "lenet5 · adamw · no regularization"),
        ("lenet5", ["optimizer.lr=5e-2", "trainer.threads=1", "logger.mode=offline", "quiet=true"], "lenet5 · lr 0.05"),
        ("lenet5", ["model.dropout=0.1", "regularization.dropout=0.5"], "lenet5 · model dropout 0.1 · regularization dropout 0.5"),
        ("lenet5", ["+callbacks.x.rate=1", "model.batch_norm=true"], "lenet5 · rate 1 · batch norm"),
        ("lenet5", ["~callbacks"], "lenet5 · no callbacks"),
        ("mlp", ["model.hidden=[8,8]", "sweep=mlp_width"], "mlp · hidden [8,8]"),
    ],
)  # fmt: skip
def test_an_arm_alone(name: str, overrides: list[str], arm: str) -> None:
    settings = {"optimizer.lr": 0.05, "model.dropout": 0.1, "regularization.dropout": 0.5, "callbacks.x.rate": 1,
                "model.batch_norm": True, "model.hidden": [8, 8]}  # fmt: skip
    assert arm_alone(name, settings, overrides) == arm


class TestOnWandb:
    def test_a_run(self, composed: Compose) -> None:
        overrides = ["model=mlp", "optimizer.lr=0.05", "seed=1"]
        config = check(composed("name=mlp", *overrides))
        assert names_on_wandb(config, overrides, None) == ("mlp · lr 0.05 · seed 1", "mlp · lr 0.05")

    @pytest.mark.parametrize(
        ("arm", "label"),
        [
            ("lenet5 · lr 0.05", "lenet5 · lr 0.05 · seed 1"),
            ("lr 0.05", "lenet5 · lr 0.05 · seed 1"),  # of a sweep of LeNet-5 only
            ("lenet5", "lenet5 · seed 1"),
            ("lenet5 lr=0.05", "lenet5 lr=0.05 · seed 1"),  # logged by an earlier version
        ],
    )
    def test_a_job_of_a_sweep(self, arm: str, label: str, composed: Compose) -> None:
        config = check(composed("name=lenet5", "seed=1"))
        record = RunRecord(status=Status.WAITING, config_hash="a", arm=arm)
        assert names_on_wandb(config, ["optimizer.lr=0.05"], record) == (label, arm)

    def test_long_names_stay_different(self, composed: Compose) -> None:
        override = f"model.hidden={[8] * 60}".replace(" ", "")
        names = {
            names_on_wandb(check(composed("model=mlp", override, f"seed={seed}")), [override], None)[0]
            for seed in range(3)
        }
        assert len(names) == 3
        assert max(map(len, names)) <= LONGEST


def test_the_seed_is_no_setting_of_an_arm(composed: Compose) -> None:
    assert arm_settings(check(composed("seed=1"))) == arm_settings(check(composed("seed=2")))
    assert "seed" not in arm_settings(check(composed("seed=1")))
