from __future__ import annotations

import pytest
import torch
from torch import nn

from mnist_exp.models import MLP, LayerRow, LeNet5, LeNet5_1998, count_parameters, layer_table


def test_lenet5_by_hand() -> None:
    assert layer_table(LeNet5(), 28) == [
        LayerRow("features.conv1", "Conv2d", (6, 28, 28), 6 * (25 + 1), 6 * 28 * 28 * 25),
        LayerRow("features.pool1", "MaxPool2d", (6, 14, 14), 0, 0),
        LayerRow("features.conv2", "Conv2d", (16, 10, 10), 16 * (150 + 1), 16 * 10 * 10 * 150),
        LayerRow("features.pool2", "MaxPool2d", (16, 5, 5), 0, 0),
        LayerRow("classifier.flatten", "Flatten", (400,), 0, 0),
        LayerRow("classifier.linear1", "Linear", (120,), 48_120, 48_000),
        LayerRow("classifier.linear2", "Linear", (84,), 10_164, 10_080),
        LayerRow("classifier.linear3", "Linear", (10,), 850, 840),
    ]


def test_macs_as_numbers() -> None:
    macs = [row.macs for row in layer_table(LeNet5(), 28) if row.macs]
    assert macs == [117_600, 240_000, 48_000, 10_080, 840]


def test_batch_norm_is_a_row_and_dropout_is_not() -> None:
    rows = layer_table(LeNet5(batch_norm=True, dropout=0.5), 28)
    assert [(row.name, row.parameters) for row in rows if row.kind == "BatchNorm2d"] == [
        ("features.norm1", 12),
        ("features.norm2", 32),
    ]
    assert not any(row.kind in ("Dropout", "ReLU") for row in rows)


@pytest.mark.parametrize(
    "model", [LeNet5(batch_norm=True), MLP(batch_norm=True), LeNet5_1998(image_size=28)], ids=lambda m: m.title
)
def test_rows_add_up_to_the_model(model: nn.Module) -> None:
    assert sum(row.parameters for row in layer_table(model, 28)) == count_parameters(model)


def test_macs_of_a_whole_model_are_those_of_its_matrix_products() -> None:
    assert sum(row.macs for row in layer_table(MLP(hidden=[30, 20]), 28)) == 784 * 30 + 30 * 20 + 20 * 10


def test_frozen_parameters_are_not_counted() -> None:
    model = LeNet5()
    model.features.requires_grad_(False)
    assert count_parameters(model) == 61_706 - 156 - 2_416
    assert layer_table(model, 28)[0] == LayerRow("features.conv1", "Conv2d", (6, 28, 28), 0, 117_600)


def test_the_model_and_the_random_state_stay_as_they_are() -> None:
    model = LeNet5(batch_norm=True, dropout=0.5).train()
    model.features.norm1.eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    layer_table(model, 28)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_modes_and_hooks_are_restored_when_the_image_does_not_fit() -> None:
    model = LeNet5().train()
    with pytest.raises(RuntimeError):
        layer_table(model, 40)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
