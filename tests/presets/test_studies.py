"""The presets of experiments: computed parameter counts of all; every row of the five studies, and the recipe they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mnist_exp.components import build_model
from mnist_exp.compose import CONF, first_comment
from mnist_exp.config import check
from mnist_exp.models import count_parameters

PARAMETERS = {
    "study_a/lenet5": 61_706,
    "study_a/mlp": 61_338,
    "study_a/lenet5_regularized": 61_750,
    "study_b/lenet5": 61_706,
    "study_b/mlp": 81_080,  # the report says 81,020: 70,650 + 6,370 + 3,550 + 510 is sixty more
    "study_b/lenet5_improved": 61_750,
    "study_c/lenet5": 61_706,
    "study_c/lenet5_regularized": 61_990,
    "study_c/mlp": 62_930,
    "study_c/lenet5_unswapped": 61_706,
    "study_c/lenet5_regularized_unswapped": 61_990,
    "study_c/mlp_unswapped": 62_930,
    "study_d/lenet5": 44_426,
    "study_d/mlp": 61_706,
    "study_d/lenet5moon": 61_750,
    "study_d/lenet5moon2": 115_510,
    "study_e/lenet5": 61_706,
    "study_e/mlp": 68_010,
    "study_e/lenet5_regularized": 61_750,
    "lenet5_1998": 60_000,
    "record/lenet5": 61_706,
    "record/lenet5_regularized": 61_750,
    "record/mlp": 59_530,
    "record/speedrun": 61_706,
}


def test_every_row_has_a_preset() -> None:
    found = {
        path.relative_to(CONF / "experiment").with_suffix("").as_posix()
        for path in (CONF / "experiment").rglob("*.yaml")
    }
    assert found == PARAMETERS.keys()


@pytest.mark.parametrize(("preset", "parameters"), PARAMETERS.items())
def test_parameter_count(preset: str, parameters: int, composed: Callable[..., dict[str, Any]]) -> None:
    tree = composed(f"experiment={preset}")
    assert count_parameters(build_model(check(tree))) == parameters
    first = first_comment(CONF / "experiment" / f"{preset}.yaml")
    assert first.startswith(f"mnist-train experiment={preset}: ")
    assert first.endswith(f"{parameters:,} parameters.")


@pytest.mark.parametrize("preset", [name for name in PARAMETERS if name.startswith("study_")])
def test_recipe_of_the_studies(preset: str, composed: Callable[..., dict[str, Any]]) -> None:
    tree = composed(f"experiment={preset}")
    optimizer, trainer, data = tree["optimizer"], tree["trainer"], tree["data"]
    assert (optimizer["_target_"], optimizer["lr"], optimizer["momentum"]) == ("torch.optim.SGD", 0.01, 0.9)
    assert (trainer["batch_size"], trainer["epochs"]) == (64, 20 if "study_c" in preset else 10)
    assert (data["mean"], data["std"], data["val_size"]) == (0.1307, 0.3081, 0)
    assert data["swap_splits"] is (preset.startswith("study_c") and not preset.endswith("unswapped"))
    assert trainer["selection"] == "last"
