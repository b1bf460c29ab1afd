"""The native kernels against PyTorch: the same logits and gradients, the same draws, and the same bits when repeated."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_exp import native
from mnist_exp.models import MLP, LeNet5, LeNet5_1998

LENET5 = [
    {},
    {"image_size": 32, "padding": 0, "dropout": [0.2, 0.3, 0.5]},
    {"image_size": 28, "padding": 0, "channels": [4, 10], "hidden": [7, 3], "kernel_size": 3, "activation": "tanh"},
    {"image_size": 17, "padding": 1, "channels": [9, 35], "hidden": [50, 17], "kernel_size": 4, "activation": "silu"},
    {"image_size": 11, "padding": 2, "channels": [1, 1], "hidden": [1, 2], "kernel_size": 1, "activation": "sigmoid"},
    {"image_size": 20, "padding": 2, "channels": [17, 8], "kernel_size": 7, "activation": "gelu", "dropout": 0.5},
    {"image_size": 37, "padding": 2, "channels": [3, 2], "kernel_size": 12, "activation": "relu", "num_classes": 2},
    {"channels": [8, 40], "softmax_output": True, "num_classes": 26},
    {"batch_norm": True, "dropout": 0.3},
    {
        **{"batch_norm": True, "batch_norm_position": "after", "activation": "silu", "pooling": "average"},
        **{"image_size": 17, "padding": 1, "channels": [9, 18], "kernel_size": 4, "hidden": [20, 5]},
    },
    {
        "batch_norm": [False, True, True, True],
        "channels": [17, 3],
        "kernel_size": 3,
        "activation": "tanh",
        "dropout": 0.2,
    },
    {"pooling": "average", "activation": "sigmoid", "image_size": 13, "kernel_size": 3},
    {"channels": [2, 3], "hidden": []},
    {
        "channels": [2, 3],
        "hidden": [7, 5, 6, 4],
        "dropout": 0.2,
        "batch_norm": [False, False, True, False, False, True],
    },
]
MLPS = [
    {},
    {"hidden": [], "num_classes": 3},
    {"hidden": [1, 130, 2], "activation": "silu", "image_size": 3},
    {"hidden": [33, 65], "dropout": [0.1, 0.5, 0.2], "activation": "tanh", "image_size": 5},
    {"hidden": [20], "activation": "gelu", "dropout": 0.4, "image_size": 32},
    {"hidden": [64, 64, 64], "activation": "sigmoid"},
    {"hidden": [33, 65], "batch_norm": True, "dropout": 0.3},
    {"hidden": [20], "pooling": 3, "image_size": 6},
    {"hidden": [33, 5, 20], "batch_norm": [True, False, True], "batch_norm_position": "after", "activation": "relu"},
]
BATCHES = [1, 2, 13, 64, 70]


def images_for(model: nn.Module, count: int) -> Tensor:
    size = int(model.image_size)  # type: ignore[arg-type]
    return torch.randn(count, 1, size, size)


def gradients(model: nn.Module, images: Tensor, seed: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and the gradients of a loss in which every logit counts."""
    torch.manual_seed(seed)
    model.zero_grad()
    logits = model(images)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    F.mse_loss(logits, weights).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def pair(kind: type[nn.Module], settings: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """The same network with PyTorch alone and with native kernels."""
    torch.manual_seed(0)
    reference = kind(**settings)
    ours = copy.deepcopy(reference)
    native.attach(ours)
    return reference, ours


def distance(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


@pytest.mark.parametrize(
    ("kind", "settings"), [*((LeNet5, s) for s in LENET5), *((MLP, s) for s in MLPS)], ids=lambda value: str(value)[:60]
)
def test_logits_and_gradients_are_pytorchs(kind: type[nn.Module], settings: dict[str, Any]) -> None:
    reference, ours = pair(kind, settings)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        ours.to(memory_format=memory_format)
        normalised = bool(settings.get("batch_norm"))
        for count in (
            BATCHES[2:] if normalised else BATCHES
        ):  # one image has no variance, and two have 0 where rounding decides
            images = images_for(reference, count)
            for training in (True, False) if normalised else (True,):
                reference.train(training), ours.train(training)
                compare(reference, ours, images)
    reference.eval(), ours.eval()
    with torch.inference_mode():
        images = images_for(reference, 150)
        assert distance(ours(images), reference(images)) < 2e-6
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, dict(reference.named_buffers())[name], rtol=1e-5, atol=1e-6)


def compare(reference: nn.Module, ours: nn.Module, images: Tensor) -> None:
    expected, expected_gradients = gradients(reference, images)
    logits, found = gradients(ours, images)
    assert distance(logits, expected) < 3e-6
    assert list(found) == list(expected_gradients)
    for name, gradient in found.items():
        wanted = expected_gradients[name]
        # With batch norm the parts of a bias's gradient cancel, to 0 in front of it, and PyTorch rounds as well: such a
        # gradient is measured by that of the weight.
        normalised = any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in ours.modules())
        beside = expected_gradients[name.replace("bias", "weight")].norm() if normalised else 0
        scale = max(wanted.norm(), beside)
        assert (gradient - wanted).norm() < 1e-5 * scale, (name, len(images))
        assert gradient.stride() == dict(ours.named_parameters())[name].stride()


@pytest.mark.parametrize(("kind", "settings"), [(LeNet5, LENET5[3]), (MLP, MLPS[3])])
def test_threads_split_the_batch_and_change_sums_to_rounding_only(
    kind: type[nn.Module], settings: dict[str, Any]
) -> None:
    reference, ours = pair(kind, settings)
    before = torch.get_num_threads()
    try:
        for count in (1, 16, 17, 70):
            images = images_for(reference, count)
            _, expected = gradients(reference, images)
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                logits, found = gradients(ours, images)
                again, repeated = gradients(ours, images)
                assert torch.equal(logits, again)
                for name, gradient in found.items():
                    assert torch.equal(gradient, repeated[name])
                    assert distance(gradient, expected[name]) < 1e-5
    finally:
        torch.set_num_threads(before)


def test_logits_do_not_depend_on_what_else_is_in_the_batch_or_on_gradients() -> None:
    for kind in (LeNet5, MLP):
        _, ours = pair(kind, {})
        images = images_for(ours, 300)
        trained = ours(images).detach()
        ours.eval()
        with torch.inference_mode():
            whole = ours(images)
            assert torch.equal(whole, torch.cat([ours(part) for part in images.split(37)]))
        assert torch.equal(whole, trained)


def test_dropout_makes_the_draws_of_pytorch() -> None:
    for kind, settings in ((LeNet5, {"dropout": [0.1, 0.5, 0.9]}), (MLP, {"dropout": [0.5, 0.5, 0.5]})):
        reference, ours = pair(kind, settings)
        images = images_for(reference, 20)
        torch.manual_seed(5)
        expected, after = reference(images), torch.rand(1)
        torch.manual_seed(5)
        assert distance(ours(images), expected) < 2e-6
        assert torch.equal(torch.rand(1), after)
        reference.eval(), ours.eval()
        assert distance(ours(images), reference(images)) < 2e-6


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu", "silu"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_comes_through(activation: str, value: float) -> None:
    for kind in (LeNet5, MLP):
        _, ours = pair(kind, {"activation": activation})
        images = images_for(ours, 5)
        images[3] = value
        logits = ours(images)
        assert torch.isfinite(logits[[0, 1, 2, 4]]).all()
        if value != value or activation in {"relu", "gelu", "silu"}:
            assert not torch.isfinite(logits[3]).all()
        next(ours.parameters()).data.fill_(value)
        assert not torch.isfinite(ours(images_for(ours, 5))).all() or activation in {"tanh", "sigmoid"}


def test_extreme_inputs_of_the_activations() -> None:
    for activation in ("tanh", "sigmoid", "gelu", "silu"):
        reference, ours = pair(MLP, {"hidden": [1], "activation": activation, "image_size": 1, "num_classes": 2})
        with torch.no_grad():
            for model in (reference, ours):
                first = model.layers.linear1  # type: ignore[union-attr]
                first.weight.fill_(1.0)  # type: ignore[union-attr,operator]
                first.bias.zero_()  # type: ignore[union-attr,operator]
        images = torch.cat([torch.linspace(-120, 120, 4001), torch.logspace(-8, 1, 2000)]).view(-1, 1, 1, 1)
        torch.testing.assert_close(ours(images), reference(images), rtol=2e-6, atol=5e-7)
        one = images[2000:2100]
        for name, gradient in gradients(ours, one)[1].items():
            assert distance(gradient, gradients(reference, one)[1][name]) < 1e-5


def test_a_copy_is_native_and_has_weights_of_its_own() -> None:
    _, ours = pair(LeNet5, {})
    images = images_for(ours, 4)
    before = ours(images).detach()
    for copied in (copy.deepcopy(ours), copy.deepcopy(copy.deepcopy(ours))):
        assert native.attached(copied)
        assert torch.equal(copied(images), before)
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.zero_()
        assert torch.equal(copied(images), torch.zeros_like(before))
        assert torch.equal(ours(images), before)


def test_new_weights_are_seen() -> None:
    reference, ours = pair(MLP, {})
    images = images_for(ours, 4)
    ours(images)
    for model in (reference, ours):
        torch.manual_seed(7)
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape) / 10  # other memory, not only other values
    assert distance(ours(images), reference(images)) < 2e-6


def test_what_the_kernels_are_not_made_for_runs_in_pytorch() -> None:
    reference, ours = pair(LeNet5, {})
    images = images_for(ours, 4)
    wanted = images.clone().requires_grad_()
    ours(wanted).sum().backward()
    assert wanted.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(images), reference(images))
    with pytest.raises(RuntimeError):
        ours(images[:, :, :20])
    double = copy.deepcopy(ours).double()
    assert torch.equal(double(images.double()), copy.deepcopy(reference).double()(images.double()))
    with pytest.raises(TypeError, match="float32"):
        double(images)
    assert ours(images[:0]).shape == (0, 10)
    strided = torch.randn(4, 1, 28, 56)[..., ::2]
    assert distance(ours(strided), reference(strided)) < 2e-6


def test_a_weight_that_changed_before_the_backward_pass_is_noticed() -> None:
    _, ours = pair(MLP, {})
    loss = ours(images_for(ours, 4)).sum()
    with torch.no_grad():
        next(ours.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_two_forward_passes_before_one_backward_pass() -> None:
    reference, ours = pair(LeNet5, {"dropout": 0.5})
    first, second = images_for(ours, 4), images_for(ours, 9)
    for model in (reference, ours):
        torch.manual_seed(3)
        (model(first).sum() * model(second).sum()).backward()
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        assert distance(a.grad, b.grad) < 1e-5  # type: ignore[arg-type]


def test_what_is_not_covered_says_why() -> None:
    for model, reason in (
        (LeNet5_1998(), "no kernels for LeNet5_1998"),
        (nn.Linear(2, 2), "no kernels for Linear"),
        (MLP(hidden=[2] * 64), "64 layers at most"),
        (LeNet5(image_size=63), "4096 pixels at most"),
        (MLP(hidden=[1024, 1025]), "PyTorch is faster for layers with more than 1,048,576 weights"),
    ):
        with pytest.raises(native.NotCovered, match=reason):
            native.attach(model)
        assert not native.attached(model)


def test_threads_may_call_one_network() -> None:
    _, ours = pair(MLP, {"hidden": [20]})
    batches = [images_for(ours, count) for count in range(1, 40)]
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        expected = [ours(batch) for batch in batches]
        for _ in range(5):
            assert all(map(torch.equal, pool.map(lambda batch: ours(batch).detach(), batches), expected))


def test_weights_of_another_shape_are_refused() -> None:
    _, ours = pair(MLP, {})
    images = images_for(ours, 4)
    loss = ours(images).sum()
    next(ours.parameters()).data = torch.zeros(3, 3)
    for compute in (loss.backward, lambda: ours(images)):
        with pytest.raises((TypeError, RuntimeError)):
            compute()


def test_statistics_of_one_image_are_left_to_pytorch() -> None:
    _, ours = pair(MLP, {"batch_norm": True})
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ours(images_for(ours, 1))
    assert ours.eval()(images_for(ours, 1)).shape == (1, 10)
    reference, ours = pair(LeNet5, {"batch_norm": True})
    images = images_for(ours, 1)
    assert torch.equal(ours(images), reference(images))
