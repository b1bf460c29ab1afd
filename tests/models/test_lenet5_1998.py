from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_exp.models import LeNet5_1998, count_parameters, layer_table
from mnist_exp.models.lenet5_1998 import C3_CONNECTIONS, RBF, ScaledTanh, digit_codes


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def parameters(model: nn.Module, size: int) -> dict[str, int]:
    return {row.name.removeprefix("layers."): row.parameters for row in layer_table(model, size) if row.parameters}


def squash(a: Tensor) -> Tensor:
    return 1.7159 * torch.tanh(2 / 3 * a)


def test_parameters_as_published() -> None:
    published = {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164}
    model = LeNet5_1998()
    assert parameters(model, 32) == published
    assert count_parameters(model) == sum(p.numel() for p in model.parameters()) == 60_000


def test_a_linear_output_has_850_more() -> None:
    model = LeNet5_1998(output="linear")
    assert parameters(model, 32)["output"] == 850
    assert count_parameters(model) == 60_850
    assert model.rubbish_logit is None


def test_maps_as_published() -> None:
    shapes = {row.name.removeprefix("layers."): row.output_shape for row in layer_table(LeNet5_1998(), 32)}
    assert shapes == {
        "c1": (6, 28, 28), "s2": (6, 14, 14), "c3": (16, 10, 10), "s4": (16, 5, 5), "c5": (120, 1, 1),
        "flatten": (120,), "f6": (84,), "output": (10,),
    }  # fmt: skip


def test_connections_of_c3_are_table_1() -> None:
    # The table as printed: a row for each map of S2, a column for each map of C3.
    printed = [
        "X...XXX..XXXX.XX",
        "XX...XXX..XXXX.X",
        "XXX...XXX..X.XXX",
        ".XXX..XXXX..X.XX",
        "..XXX..XXXX.XX.X",
        "...XXX..XXXX.XXX",
    ]
    for source, row in enumerate(printed):
        assert "".join("X" if source in sources else "." for sources in C3_CONNECTIONS) == row
    assert [len(sources) for sources in C3_CONNECTIONS] == [3] * 6 + [4] * 9 + [6]
    assert len(set(C3_CONNECTIONS)) == 16


def test_c3_sees_only_the_maps_it_is_connected_to() -> None:
    c3 = LeNet5_1998().layers.c3
    maps = torch.randn(1, 6, 14, 14)
    before = c3(maps)
    for source in range(6):
        changed = maps.clone()
        changed[:, source] += 1
        moved = (c3(changed) - before).abs().amax(dim=(0, 2, 3)) > 1e-4
        assert moved.tolist() == [source in sources for sources in C3_CONNECTIONS]


def test_forward_against_the_plain_formula() -> None:
    model = LeNet5_1998()
    w = model.state_dict()
    x = torch.randn(2, 1, 32, 32)

    def subsample(maps: Tensor, layer: str) -> Tensor:
        summed = maps[:, :, ::2, ::2] + maps[:, :, 1::2, ::2] + maps[:, :, ::2, 1::2] + maps[:, :, 1::2, 1::2]
        return summed * w[f"layers.{layer}.weight"] + w[f"layers.{layer}.bias"]

    s2 = squash(subsample(squash(F.conv2d(x, w["layers.c1.weight"], w["layers.c1.bias"])), "s2"))
    kernels = w["layers.c3.weight"].split([len(sources) for sources in C3_CONNECTIONS])
    c3 = torch.cat(
        [
            F.conv2d(s2[:, list(sources)], own.view(1, -1, 5, 5), bias.view(1))
            for sources, own, bias in zip(C3_CONNECTIONS, kernels, w["layers.c3.bias"], strict=True)
        ],
        dim=1,
    )
    s4 = squash(subsample(squash(c3), "s4"))
    c5 = squash(s4.reshape(2, 400) @ w["layers.c5.weight"].reshape(120, 400).T + w["layers.c5.bias"])
    f6 = squash(c5 @ w["layers.f6.weight"].T + w["layers.f6.bias"])
    penalties = torch.stack([((f6 - code) ** 2).sum(1) for code in digit_codes()], dim=1)
    torch.testing.assert_close(model(x), -penalties)


def test_squashing_function_of_appendix_a() -> None:
    f = ScaledTanh()
    torch.testing.assert_close(f(torch.tensor([1.0, -1.0, 0.0])), torch.tensor([1.0, -1.0, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(f(torch.tensor([1e3, -1e3])), torch.tensor([1.7159, -1.7159]))


def test_initial_weights_are_uniform_within_the_fan_in() -> None:
    layers = LeNet5_1998(output="linear").layers
    fan_ins = {"c1": 25, "s2": 4, "s4": 4, "c5": 400, "f6": 120, "output": 84}
    for name, fan_in in fan_ins.items():
        values = torch.cat([p.detach().flatten() for p in getattr(layers, name).parameters()]) * fan_in / 2.4
        assert values.abs().max() <= 1
        if len(values) > 100:
            assert values.abs().max() > 0.9
            assert abs(values.std().item() - 1 / math.sqrt(3)) < 0.08
    for sources, own in zip(C3_CONNECTIONS, layers.c3.weight.split([len(s) for s in C3_CONNECTIONS]), strict=True):
        assert 0.9 < own.abs().max() * 25 * len(sources) / 2.4 <= 1


def test_codes_are_twelve_rows_of_seven_pixels() -> None:
    codes = digit_codes()
    assert codes.shape == (10, 84)
    assert codes.dtype == torch.float32
    assert codes.unique().tolist() == [-1.0, 1.0]
    drawn = ["".join("#" if pixel > 0 else "." for pixel in row) for row in codes[7].view(12, 7)]
    assert drawn == ["#######", *[".....##"] * 2, "....##.", *["...##.."] * 2, *["..##..."] * 4, *["......."] * 2]


def test_codes_are_fixed_and_move_with_the_model() -> None:
    model = LeNet5_1998()
    rbf = model.layers.output
    assert isinstance(rbf, RBF)
    assert not list(rbf.parameters())
    assert model.double().layers.output.codes.dtype == torch.float64
    assert not any("output" in name for name in model.state_dict())


def test_rbf_is_minus_the_squared_distance() -> None:
    rbf = RBF(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
    torch.testing.assert_close(rbf(torch.tensor([[0.0, 1.0], [1.0, -1.0]])), torch.tensor([[-5.0, -1.0], [0.0, -4.0]]))


def test_cross_entropy_with_the_rubbish_logit_is_equation_9() -> None:
    model = LeNet5_1998(rubbish_penalty=7.0).double()
    labels = torch.arange(6) % 10
    logits = model(torch.randn(6, 1, 32, 32).double())
    # Near enough to the codes that no term of the sum vanishes beside the others.
    for scale in (0.001, 0.1, 1.0):
        y = -logits * scale
        equation_9 = sum(y[p, d] + torch.log(math.exp(-7.0) + torch.exp(-y[p]).sum()) for p, d in enumerate(labels)) / 6
        rubbish = torch.full((6, 1), model.rubbish_logit)
        torch.testing.assert_close(F.cross_entropy(torch.cat([-y, rubbish], dim=1), labels), equation_9)


def test_default_rubbish_penalty_is_a_quarter_of_the_smallest_squared_distance() -> None:
    codes = digit_codes()
    distances = torch.cdist(codes, codes).square()
    smallest = distances[~torch.eye(10, dtype=torch.bool)].min().item()
    assert smallest == pytest.approx(48)
    assert LeNet5_1998().rubbish_logit == -12.0


def test_images_of_28_pixels_are_padded_with_background() -> None:
    small, large = LeNet5_1998(image_size=28, background=-0.1), LeNet5_1998()
    large.load_state_dict(small.state_dict())
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(small(x), large(F.pad(x, (2, 2, 2, 2), value=-0.1)))


def test_default_background_is_normalised_black() -> None:
    small, large = LeNet5_1998(image_size=28), LeNet5_1998()
    large.load_state_dict(small.state_dict())
    x = (torch.rand(2, 1, 28, 28) - 0.1307) / 0.3081
    padded = (F.pad(x * 0.3081 + 0.1307, (2, 2, 2, 2)) - 0.1307) / 0.3081
    torch.testing.assert_close(small(x), large(padded))


def test_stacked_members_compute_what_each_does_alone() -> None:
    members = [LeNet5_1998() for _ in range(2)]
    params, buffers = torch.func.stack_module_state(members)
    x = torch.randn(3, 1, 32, 32)
    stacked = torch.vmap(lambda p, b: torch.func.functional_call(members[0], (p, b), (x,)))(params, buffers)
    torch.testing.assert_close(stacked, torch.stack([member(x) for member in members]))


def test_title() -> None:
    assert LeNet5_1998().title == "LeNet-5 (1998)"
    assert LeNet5_1998(output="linear").title == "LeNet-5 (1998), linear output"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 30}, "28 or 32"),
        ({"output": "rbff"}, "'rbf' or 'linear'"),
        ({"rubbish_penalty": 0}, "greater than 0"),
        ({"rubbish_penalty": math.inf}, "finite number"),
        ({"background": "black"}, "valid number"),
        ({"num_classes": 11}, "should be 10"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LeNet5_1998(**settings)
    (error,) = caught.value.errors()
    assert error["loc"] == tuple(settings)
    assert message in error["msg"]
