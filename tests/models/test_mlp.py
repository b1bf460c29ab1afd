from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from mnist_exp.models import MLP, count_parameters, layer_table, width_for_budget


def kinds(block: nn.Module) -> list[str]:
    return [type(module).__name__ for module in block.children()]


@pytest.mark.parametrize(
    ("image_size", "hidden", "by_layer", "total"),
    [
        (28, [64, 64, 64, 32, 16], [50_240, 4_160, 4_160, 2_080, 528, 170], 61_338),
        # 784-90-70-50-10, of which the study says 81,020.
        (28, [90, 70, 50], [70_650, 6_370, 3_550, 510], 81_080),
        (32, [60, 20], [61_500, 1_220, 210], 62_930),
        (32, [64, 32], [65_600, 2_080, 330], 68_010),
    ],
)
def test_the_networks_of_the_studies(image_size: int, hidden: list[int], by_layer: list[int], total: int) -> None:
    model = MLP(image_size=image_size, hidden=hidden)
    assert [row.parameters for row in layer_table(model, image_size) if row.parameters] == by_layer
    assert count_parameters(model) == sum(by_layer) == total


def test_default_is_two_layers_within_the_parameters_of_lenet5() -> None:
    model = MLP()
    assert model.title == "MLP 784-71-71-10"
    assert count_parameters(model) == 61_567
    assert count_parameters(MLP(hidden=[72, 72])) > 61_706


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("budget", [1_000, 10_000, 61_706])
def test_the_widest_that_the_budget_allows(depth: int, batch_norm: bool, budget: int) -> None:
    model = MLP(depth=depth, budget=budget, batch_norm=batch_norm)
    width = model.layers.linear1.out_features
    assert count_parameters(model) <= budget
    wider = MLP(hidden=[width + 1] * depth, batch_norm=batch_norm)
    assert count_parameters(wider) > budget
    assert width == width_for_budget(depth=depth, budget=budget, normalised=depth if batch_norm else 0)


def test_a_budget_that_is_met_exactly() -> None:
    exact = (784 + 1) * 64 + (64 + 1) * 64 + (64 + 1) * 10
    assert width_for_budget(depth=2, budget=exact) == 64
    assert width_for_budget(depth=2, budget=exact - 1) == 63


def test_inputs_that_are_means_of_pixels() -> None:
    model = MLP(image_size=4, hidden=[], pooling=2, num_classes=2)
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    with torch.no_grad():
        model.layers.linear1.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]]))
        model.layers.linear1.bias.zero_()
        assert model(images).tolist() == [[2.5, 10.5]]
    assert MLP(pooling=2).title == "MLP 196-165-165-10"
    assert count_parameters(MLP(pooling=2)) == 197 * 165 + 166 * 165 + 166 * 10
    with pytest.raises(ValueError, match="pooling=3 does not divide the 28 pixels of an image's side"):
        MLP(pooling=3)


def test_width_one_is_the_least() -> None:
    assert width_for_budget(depth=2, budget=785 + 2 + 20) == 1
    with pytest.raises(ValueError, match="budget") as error:
        MLP(depth=2, budget=785 + 2 + 20 - 1)
    assert str(error.value) == (
        "budget=806: must be 807 or more, which 2 hidden layers of width 1 take for 784 pixels and 10 classes"
    )


def test_order_of_the_layers() -> None:
    assert kinds(MLP(hidden=[8, 4]).layers) == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert kinds(MLP(hidden=[]).layers) == ["Flatten", "Linear"]


def test_batch_norm_after_every_hidden_layer_or_some() -> None:
    block = ["Linear", "BatchNorm1d", "Tanh"]
    assert kinds(MLP(hidden=[8, 4], batch_norm=True, activation="tanh").layers) == ["Flatten", *block, *block, "Linear"]
    some = MLP(hidden=[8, 4], batch_norm=[False, True], batch_norm_position="after")
    assert kinds(some.layers) == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "BatchNorm1d", "Linear"]


def test_dropout_in_front_of_linear_layers() -> None:
    one = MLP(hidden=[8, 4], dropout=0.25).layers
    assert kinds(one) == ["Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    each = MLP(hidden=[8, 4], dropout=[0.1, 0, 0.2]).layers
    assert [(name, module.p) for name, module in each.named_children() if isinstance(module, nn.Dropout)] == [
        ("dropout1", 0.1),
        ("dropout3", 0.2),
    ]


def test_forward_against_the_plain_formula() -> None:
    model = MLP(hidden=[5, 3], activation="silu")
    w = model.state_dict()
    x = torch.randn(4, 1, 28, 28)
    units = x.reshape(4, 784)
    for layer in ("linear1", "linear2"):
        units = torch.nn.functional.silu(units @ w[f"layers.{layer}.weight"].T + w[f"layers.{layer}.bias"])
    expected = units @ w["layers.linear3.weight"].T + w["layers.linear3.bias"]
    torch.testing.assert_close(model(x), expected)


def test_title() -> None:
    assert MLP(hidden=[70, 64]).title == "MLP 784-70-64-10"
    assert MLP(image_size=32, hidden=[]).title == "MLP 1024-10"


@pytest.mark.parametrize(
    ("settings", "where", "message"),
    [
        ({"hidden": [64, 0]}, ("hidden", 1), "greater than or equal to 1"),
        ({"hidden": 64}, ("hidden",), "Sequence"),
        ({"depth": 0}, ("depth",), "greater than or equal to 1"),
        ({"budget": 0}, ("budget",), "greater than or equal to 1"),
        ({"budget": 61706.0}, ("budget",), "valid integer"),
        ({"image_size": -28}, ("image_size",), "greater than or equal to 1"),
        ({"activation": "sigmod"}, ("activation",), "one of relu, tanh, sigmoid, gelu, silu; did you mean sigmoid?"),
        ({"batch_norm_position": "befor"}, ("batch_norm_position",), "'before' or 'after'"),
        ({"num_classes": 0}, ("num_classes",), "greater than or equal to 2"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], where: tuple[str | int, ...], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        MLP(**settings)
    (error,) = caught.value.errors()
    assert error["loc"] == where
    assert message in error["msg"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": [64], "depth": 1}, "depth=1 contradicts hidden=[64]; give one of them"),
        (
            {"hidden": [8, 4], "batch_norm": [True]},
            "batch_norm=[true] has 1 values; this model has 2 layers that take one (linear1, linear2): give one for each, "
            "or a single one",
        ),
        (
            {"hidden": [8, 4], "dropout": [0.5, 0.5]},
            "dropout=[0.5,0.5] has 2 values; this model has 3 layers that take one (linear1, linear2, linear3): "
            "give one for each, or a single one",
        ),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="give one") as error:
        MLP(**settings)
    assert str(error.value) == message
