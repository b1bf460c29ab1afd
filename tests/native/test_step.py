"""The whole step in native kernels against PyTorch's: weights, optimizer state, averages, sums; and where it stands back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mnist_exp import native
from mnist_exp.data import Split
from mnist_exp.models import MLP, LeNet5
from mnist_exp.training import (
    ExponentialMovingAverage,
    MuonWithAdamW,
    Objective,
    TrainConfig,
    TrainState,
    constant,
    parameter_groups,
)
from mnist_exp.training.train_step import Step

Make = Callable[[Any], torch.optim.Optimizer]
# Adam's eps is large enough that rounding of a gradient that is almost 0 does not decide where a weight goes.
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.01, fused=True),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True),
    "adam": lambda groups: torch.optim.Adam(groups, weight_decay=0.01, eps=1e-5, fused=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-5),
}
EXTRAS: dict[str, dict[str, Any]] = {"plain": {}, "all": {"smoothing": 0.1, "clipping": 0.5, "ema": 0.9}}
IMAGES = torch.randn(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 10, (200,), generator=torch.Generator().manual_seed(1))


def prepared(
    backend: str,
    make: Make,
    model: nn.Module | None = None,
    *,
    smoothing: float = 0.0,
    clipping: float | None = None,
    ema: float | None = None,
) -> tuple[TrainState, Step]:
    torch.manual_seed(1)
    model = copy.deepcopy(model) if model is not None else MLP(hidden=[33])
    model.to(memory_format=torch.channels_last)
    if backend == "native":
        native.attach(model)
    optimizer = make(parameter_groups(model))
    scheduler = constant(optimizer, epochs=1, steps_per_epoch=9)
    average = ExponentialMovingAverage(model, ema) if ema else None
    state = TrainState(model, optimizer, scheduler, average, torch.device("cpu"))
    config = TrainConfig(1, 64, 100, 0, Objective(smoothing), gradient_clipping=clipping)
    return state, Step(state, config, Split(IMAGES, LABELS), model)


def batches(steps: range) -> list[Tensor]:
    drawn = [torch.randperm(200, generator=torch.Generator().manual_seed(seed)) for seed in steps]
    return [order[: 13 if seed == 4 else 64] for seed, order in zip(steps, drawn, strict=True)]


def trained(backend: str, make: Make, steps: int = 5, **settings: Any) -> TrainState:
    state, step = prepared(backend, make, **settings)
    assert (step._fused is not None) == (backend == "native")
    torch.manual_seed(2)
    for index in batches(range(steps)):
        step(index)
    return state


def distance(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def compare(ours: TrainState, reference: TrainState, tolerance: float = 2e-5) -> None:
    assert distance(ours.loss_sum, reference.loss_sum) < 1e-6
    assert int(ours.correct) == int(reference.correct)
    for a, b in ((ours.model, reference.model), (ours.evaluated_model, reference.evaluated_model)):
        for name, value in a.state_dict().items():
            assert distance(value, b.state_dict()[name]) < tolerance, name
    own, its = ours.optimizer.state_dict(), reference.optimizer.state_dict()
    assert own["param_groups"] == its["param_groups"]
    assert own["state"].keys() == its["state"].keys()
    for key, buffers in own["state"].items():
        assert buffers.keys() == its["state"][key].keys()
        for name, value in buffers.items():
            expected = its["state"][key][name]
            if expected is not None:
                assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
                assert distance(value, expected) < 1e-4, name


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "build",
    [
        lambda: MLP(hidden=[33], dropout=0.3, activation="gelu"),
        lambda: MLP(hidden=[20], pooling=2),
        lambda: LeNet5(channels=[3, 5], hidden=[20, 7]),
    ],
    ids=["mlp", "mlp of means", "lenet5"],
)
def test_a_step_is_pytorchs(build: Callable[[], nn.Module], name: str, extra: str) -> None:
    torch.manual_seed(1)
    settings = {"model": build(), **EXTRAS[extra]}
    compare(trained("native", OPTIMIZERS[name], **settings), trained("torch", OPTIMIZERS[name], **settings))


def test_batch_norm_and_its_statistics() -> None:
    torch.manual_seed(1)
    settings = {"model": MLP(hidden=[33, 20], batch_norm=True), "ema": 0.9}
    ours, reference = (trained(backend, OPTIMIZERS["sgd"], **settings) for backend in ("native", "torch"))
    compare(ours, reference, tolerance=1e-4)


def test_an_optimizer_without_kernels_gets_native_gradients() -> None:
    make: Make = lambda groups: torch.optim.RMSprop(groups, eps=1e-2)  # noqa: E731  # beside the others of its kind
    compare(trained("native", make, **EXTRAS["all"]), trained("torch", make, **EXTRAS["all"]))
    assert trained("native", lambda groups: MuonWithAdamW(groups)).optimizer.state_dict()["parts"]


def test_the_gradients_are_left_where_pytorch_leaves_them() -> None:
    ours, reference = (trained(backend, OPTIMIZERS["momentum"], clipping=0.1) for backend in ("native", "torch"))
    for a, b in zip(ours.model.parameters(), reference.model.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert distance(a.grad, b.grad) < 1e-5


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_bits_again_and_after_a_checkpoint(name: str, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = trained("native", OPTIMIZERS[name], **EXTRAS["all"])
        half = trained("native", OPTIMIZERS[name], steps=2, **EXTRAS["all"])
        state, step = prepared("native", OPTIMIZERS[name], **EXTRAS["all"])
        state.load_state_dict(copy.deepcopy(half.state_dict()))
        for index in batches(range(5))[2:]:
            step(index)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(state.loss_sum, whole.loss_sum)
    for a, b in zip(state.evaluated_model.parameters(), whole.evaluated_model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_goes_on_in_pytorch_and_back(name: str) -> None:
    reference = trained("torch", OPTIMIZERS[name], ema=0.9)
    for first, second in (("native", "torch"), ("torch", "native")):
        half = trained(first, OPTIMIZERS[name], steps=2, ema=0.9)
        state, step = prepared(second, OPTIMIZERS[name], ema=0.9)
        state.load_state_dict(copy.deepcopy(half.state_dict()))
        for index in batches(range(5))[2:]:
            step(index)
        compare(state, reference)


def test_what_a_schedule_or_a_callback_changes_is_seen() -> None:
    results = []
    for backend in ("native", "torch"):
        state, step = prepared(backend, OPTIMIZERS["momentum"])
        for at, index in enumerate(batches(range(5))):
            state.optimizer.param_groups[0].update(lr=0.1 / (at + 1), momentum=0.5 * (at % 2), weight_decay=0.1 * at)
            if at == 3:
                for parameter in state.model.parameters():
                    parameter.data = parameter.data.clone()  # other memory
            step(index)
        results.append(state)
    compare(*results)


def test_what_is_not_finite_reaches_the_loss() -> None:
    state, step = prepared("native", OPTIMIZERS["momentum"], clipping=1.0)
    with torch.no_grad():
        next(state.model.parameters()).fill_(float("nan"))
    step(batches(range(1))[0])
    assert torch.isnan(state.loss_sum)
    assert all(torch.isnan(parameter).all() for parameter in state.model.parameters())


def test_numbers_out_of_range_do_not_reach_memory() -> None:
    state, step = prepared("native", OPTIMIZERS["sgd"])
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    assert step._fused is not None
    for index, labels in (
        (torch.tensor([200]), LABELS),
        (torch.tensor([-1]), LABELS),
        (torch.tensor([0]), LABELS + 10),
    ):
        with pytest.raises(IndexError, match="out of range"):
            step._fused(IMAGES, labels, index, state.loss_sum, state.correct)
    assert all(map(torch.equal, state.model.parameters(), before))


def test_where_pytorch_must_take_the_step() -> None:
    def hooked(state: TrainState) -> Any:
        return state.model.register_forward_hook(lambda *_: None)

    def hooked_parameter(state: TrainState) -> Any:
        return next(state.model.parameters()).register_hook(lambda gradient: gradient)

    def hooked_optimizer(state: TrainState) -> Any:
        return state.optimizer.register_step_post_hook(lambda *_: None)

    def frozen(state: TrainState) -> None:
        next(state.model.parameters()).requires_grad_(False)

    for change in (hooked, hooked_parameter, hooked_optimizer, frozen):
        state, _ = prepared("native", OPTIMIZERS["sgd"])
        change(state)
        assert native.fused_step(state.model, state.optimizer) is None
    state, step = prepared("native", OPTIMIZERS["sgd"], LeNet5(softmax_output=True))
    assert step._fused is None
    step(batches(range(1))[0])
    assert float(state.loss_sum) > 0
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # as PyTorch says it
        prepared("native", OPTIMIZERS["sgd"], MLP(batch_norm=True))[1](torch.tensor([3]))
