from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from mnist_exp.models import LeNet5, count_parameters, layer_table

# Parameters of a layer, weights and biases together.
CONV1, CONV2, LINEAR1, LINEAR2, LINEAR3 = 156, 2_416, 48_120, 10_164, 850
PLAIN = [CONV1, CONV2, LINEAR1, LINEAR2, LINEAR3]
CONV_NORMS = [CONV1, 12, CONV2, 32, LINEAR1, LINEAR2, LINEAR3]

# Every LeNet-5 of the five studies: settings, parameters layer by layer, and in total.
STUDIES: dict[str, tuple[dict[str, Any], list[int], int]] = {
    "a lenet5": ({}, PLAIN, 61_706),
    "a regularized": ({"batch_norm": True, "dropout": 0.2}, CONV_NORMS, 61_750),
    "b improved": ({"batch_norm": True, "batch_norm_position": "after", "dropout": 0.5}, CONV_NORMS, 61_750),
    "c lenet5": ({"image_size": 32, "padding": 0}, PLAIN, 61_706),
    "c regularized": (
        {"image_size": 32, "padding": 0, "batch_norm": [True, True, True, False], "dropout": [0, 0, 0.5]},
        [CONV1, 12, CONV2, 32, LINEAR1, 240, LINEAR2, LINEAR3],
        61_990,
    ),
    "d lenet5": ({"padding": 0}, [CONV1, CONV2, 30_840, LINEAR2, LINEAR3], 44_426),
    "d custom": ({"activation": "tanh", "pooling": "average", "softmax_output": True}, PLAIN, 61_706),
    "d moon": ({"batch_norm": True, "dropout": [0.5, 0.5, 0]}, CONV_NORMS, 61_750),
    "d moon2": (
        {"channels": [10, 32], "batch_norm": True, "dropout": [0.5, 0.5, 0]},
        [260, 20, 8_032, 64, 96_120, LINEAR2, LINEAR3],
        115_510,
    ),
    "e regularized": ({"image_size": 32, "padding": 0, "batch_norm": True, "dropout": 0.5}, CONV_NORMS, 61_750),
}


def kinds(block: nn.Module) -> list[str]:
    return [type(module).__name__ for module in block.children()]


def images(count: int, size: int = 28) -> torch.Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(0))


def test_any_number_of_hidden_linear_layers() -> None:
    def linear(model: LeNet5) -> list[int]:
        return [row.parameters for row in layer_table(model, 28) if row.kind == "Linear"]

    assert linear(LeNet5(hidden=[])) == [4_010]
    assert linear(LeNet5(hidden=[120])) == [LINEAR1, 1_210]
    deep = LeNet5(hidden=[120, 84, 84], dropout=0.5, batch_norm=[False, False, False, False, True])
    assert linear(deep) == [LINEAR1, LINEAR2, 7_140, LINEAR3]
    assert [kind for kind in kinds(deep.classifier) if kind in {"Dropout", "BatchNorm1d"}] == ["Dropout"] * 2 + [
        "BatchNorm1d",
        "Dropout",
    ]


@pytest.mark.parametrize("study", STUDIES)
def test_the_networks_of_the_studies(study: str) -> None:
    settings, by_layer, total = STUDIES[study]
    model = LeNet5(**settings)
    size = settings.get("image_size", 28)
    assert [row.parameters for row in layer_table(model, size) if row.parameters] == by_layer
    assert count_parameters(model) == sum(by_layer) == total
    logits = model(images(3, size))
    assert logits.shape == (3, 10)
    assert logits.dtype == torch.float32


def test_order_of_the_layers() -> None:
    model = LeNet5()
    assert kinds(model.features) == ["Conv2d", "ReLU", "MaxPool2d"] * 2
    assert kinds(model.classifier) == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]


def test_batch_norm_before_and_after_the_activation() -> None:
    before, after = LeNet5(batch_norm=True), LeNet5(batch_norm=True, batch_norm_position="after")
    assert kinds(before.features) == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"] * 2
    assert kinds(after.features) == ["Conv2d", "ReLU", "BatchNorm2d", "MaxPool2d"] * 2
    assert "BatchNorm1d" not in kinds(before.classifier) + kinds(after.classifier)


def test_batch_norm_layer_by_layer() -> None:
    model = LeNet5(batch_norm=[False, True, False, True], batch_norm_position="after")
    assert kinds(model.features) == ["Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU", "BatchNorm2d", "MaxPool2d"]
    assert kinds(model.classifier) == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "BatchNorm1d", "Linear"]
    assert count_parameters(model) == 61_706 + 2 * 16 + 2 * 84


def test_one_dropout_number_is_for_the_outputs_of_hidden_linear_layers() -> None:
    assert kinds(LeNet5(dropout=0.3).classifier) == [
        "Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear",
    ]  # fmt: skip


def test_dropout_stands_in_front_of_the_linear_layer_it_is_given_for() -> None:
    classifier = LeNet5(dropout=[0.5, 0, 0.25]).classifier
    assert list(dict(classifier.named_children())) == [
        "flatten", "dropout1", "linear1", "activation1", "linear2", "activation2", "dropout3", "linear3",
    ]  # fmt: skip
    assert [module.p for module in classifier if isinstance(module, nn.Dropout)] == [0.5, 0.25]


def test_names_in_the_state_dict() -> None:
    assert list(LeNet5(batch_norm=[False, False, True, False]).state_dict()) == [
        "features.conv1.weight", "features.conv1.bias", "features.conv2.weight", "features.conv2.bias",
        "classifier.linear1.weight", "classifier.linear1.bias",
        "classifier.norm1.weight", "classifier.norm1.bias",
        "classifier.norm1.running_mean", "classifier.norm1.running_var", "classifier.norm1.num_batches_tracked",
        "classifier.linear2.weight", "classifier.linear2.bias",
        "classifier.linear3.weight", "classifier.linear3.bias",
    ]  # fmt: skip


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu", "silu"])
def test_activation_and_pooling_against_the_plain_formula(activation: str, pooling: str) -> None:
    model = LeNet5(activation=activation, pooling=pooling)
    w = model.state_dict()
    f = {"relu": F.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "gelu": F.gelu, "silu": F.silu}[activation]
    pool = {"max": F.max_pool2d, "average": F.avg_pool2d}[pooling]
    x = images(2)
    maps = pool(f(F.conv2d(x, w["features.conv1.weight"], w["features.conv1.bias"], padding=2)), 2)
    maps = pool(f(F.conv2d(maps, w["features.conv2.weight"], w["features.conv2.bias"])), 2)
    units = maps.reshape(2, 400)
    for layer in ("linear1", "linear2"):
        units = f(units @ w[f"classifier.{layer}.weight"].T + w[f"classifier.{layer}.bias"])
    expected = units @ w["classifier.linear3.weight"].T + w["classifier.linear3.bias"]
    torch.testing.assert_close(model(x), expected)


def test_softmax_output_bounds_the_loss_from_below() -> None:
    model = LeNet5(softmax_output=True)
    torch.testing.assert_close(model(images(4)).sum(1), torch.ones(4))
    with torch.no_grad():
        model.classifier.linear3.bias[3] = 1e4
    loss = F.cross_entropy(model(images(4)), torch.full((4,), 3)).item()
    assert loss == pytest.approx(math.log(math.e + 9) - 1, abs=1e-6)
    assert round(loss, 4) == 1.4612


def test_settings_from_a_config_file() -> None:
    config = OmegaConf.create({"channels": [10, 32], "batch_norm": [True, True, False, False], "dropout": [0, 0, 0.5]})
    assert LeNet5(channels=config.channels, batch_norm=config.batch_norm, dropout=config.dropout).title == (
        "LeNet-5, 10-32 maps, batch norm, dropout"
    )


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ({}, "LeNet-5"),
        ({"image_size": 32, "padding": 0}, "LeNet-5"),
        ({"padding": 0}, "LeNet-5, last maps 4x4"),
        ({"channels": (10, 32)}, "LeNet-5, 10-32 maps"),
        ({"hidden": (64, 32), "kernel_size": 3, "padding": 0}, "LeNet-5, 64-32 hidden, 3x3 kernels"),
        ({"hidden": []}, "LeNet-5, no hidden"),
        ({"activation": "tanh", "pooling": "average", "softmax_output": True},
         "LeNet-5, tanh, average pooling, softmax output"),
        ({"dropout": [0, 0, 0]}, "LeNet-5"),
    ],
)  # fmt: skip
def test_title(settings: dict[str, Any], title: str) -> None:
    model = LeNet5(**settings)
    assert model.title == title
    with pytest.raises(AttributeError):
        model.title = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "where", "message"),
    [
        ({"image_size": 0}, ("image_size",), "greater than or equal to 1"),
        ({"image_size": 28.0}, ("image_size",), "valid integer"),
        ({"padding": -1}, ("padding",), "greater than or equal to 0"),
        ({"padding": True}, ("padding",), "valid integer"),
        ({"channels": (6, 16, 32)}, ("channels",), "at most 2 items"),
        ({"channels": 6}, ("channels",), "Sequence"),
        ({"hidden": [120, 0]}, ("hidden", 1), "greater than or equal to 1"),
        ({"hidden": "ab"}, ("hidden",), "not allowed as a Sequence"),
        ({"kernel_size": 0}, ("kernel_size",), "greater than or equal to 1"),
        ({"activation": "rellu"}, ("activation",), "one of relu, tanh, sigmoid, gelu, silu; did you mean relu?"),
        ({"activation": None}, ("activation",), "valid string"),
        ({"pooling": "min"}, ("pooling",), "one of max, average"),
        ({"batch_norm": 1}, ("batch_norm", "one"), "valid boolean"),
        ({"batch_norm": [True, 1, True, True]}, ("batch_norm", "list", 1), "valid boolean"),
        ({"batch_norm_position": "middle"}, ("batch_norm_position",), "'before' or 'after'"),
        ({"dropout": 1.0}, ("dropout", "one"), "less than 1"),
        ({"dropout": [0, 0, math.nan]}, ("dropout", "list", 2), "less than 1"),
        ({"softmax_output": "yes"}, ("softmax_output",), "valid boolean"),
        ({"num_classes": 1}, ("num_classes",), "greater than or equal to 2"),
        ({"widht": 3}, ("widht",), "Unexpected keyword"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], where: tuple[str | int, ...], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LeNet5(**settings)
    (error,) = caught.value.errors()
    assert error["loc"][: len(where)] == where
    assert message in error["msg"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"batch_norm": [True, True]},
            "batch_norm=[true,true] has 2 values; this model has 4 layers that take one (conv1, conv2, linear1, linear2): "
            "give one for each, or a single one",
        ),
        (
            {"dropout": [0.5, 0.5]},
            "dropout=[0.5,0.5] has 2 values; this model has 3 layers that take one (linear1, linear2, linear3): "
            "give one for each, or a single one",
        ),
        (
            {"image_size": 13, "padding": 0},
            "image_size=13, padding=0, kernel_size=5: conv2 sees 4x4 pixels and must leave 2x2 or more; "
            "use larger images, more padding or a smaller kernel",
        ),
        (
            {"image_size": 4, "padding": 0},
            "image_size=4, padding=0, kernel_size=5: conv1 sees 4x4 pixels and must leave 2x2 or more; "
            "use larger images, more padding or a smaller kernel",
        ),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"give one|must leave") as error:
        LeNet5(**settings)
    assert str(error.value) == message


def test_the_smallest_image_that_leaves_a_map() -> None:
    assert LeNet5(image_size=16, padding=0)(images(2, 16)).shape == (2, 10)
    with pytest.raises(ValueError, match="conv2 sees 5x5"):
        LeNet5(image_size=15, padding=0)


def test_settings_are_keyword_only() -> None:
    with pytest.raises(ValidationError, match="positional"):
        LeNet5(28)  # type: ignore[misc]
