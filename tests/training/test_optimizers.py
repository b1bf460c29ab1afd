"""Muon beside AdamW, and PyTorch's schedules told in epochs."""

from __future__ import annotations

import copy

import pytest
import torch

from mnist_exp.models import LeNet5
from mnist_exp.training import MuonWithAdamW, constant, cosine, one_cycle, parameter_groups, step_decay


def gradients(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def test_muon_moves_matrices_and_adamw_the_rest() -> None:
    torch.manual_seed(0)
    model = LeNet5()
    reference = copy.deepcopy(model)
    gradients(model)
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        theirs.grad = mine.grad.clone()
    MuonWithAdamW(parameter_groups(model), lr=0.01, weight_decay=0.1).step()
    matrices = [parameter for parameter in reference.parameters() if parameter.ndim == 2]
    kernels = [parameter for parameter in reference.parameters() if parameter.ndim > 2]
    vectors = [parameter for parameter in reference.parameters() if parameter.ndim < 2]
    torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw").step()
    torch.optim.AdamW(kernels, lr=0.01, weight_decay=0.1).step()
    torch.optim.AdamW(vectors, lr=0.01, weight_decay=0.0).step()
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)


def test_muon_takes_up_its_state() -> None:
    torch.manual_seed(0)
    model = LeNet5()
    optimizer = MuonWithAdamW(parameter_groups(model), lr=0.01)
    gradients(model)
    optimizer.step()
    twin = copy.deepcopy(model)
    second = MuonWithAdamW(parameter_groups(twin), lr=0.5)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    gradients(model)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        theirs.grad = mine.grad.clone()
    optimizer.step()
    second.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def learning_rates(name: str, epochs: int = 4, steps_per_epoch: int = 5) -> list[float]:
    optimizer = MuonWithAdamW(parameter_groups(LeNet5()), lr=0.1) if name == "one_cycle" else None
    optimizer = optimizer or torch.optim.SGD(LeNet5().parameters(), lr=0.1)
    knobs = {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
    scheduler = {
        "constant": lambda: constant(optimizer, **knobs),
        "step": lambda: step_decay(optimizer, **knobs, every=2, gamma=0.1),
        "cosine": lambda: cosine(optimizer, **knobs, final=0.0),
        "one_cycle": lambda: one_cycle(
            optimizer, **knobs, warmup=0.25, start_factor=0.1, final_factor=0.01, anneal="linear"
        ),
    }[name]()
    rates = []
    for _ in range(epochs * steps_per_epoch):
        rates.append(optimizer.param_groups[-1]["lr"])
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        optimizer.step()
        scheduler.step()
    return rates


def test_schedules_are_stepped_once_a_batch() -> None:
    assert learning_rates("constant") == [0.1] * 20
    assert learning_rates("step") == pytest.approx([0.1] * 10 + [0.01] * 10)
    cosines = learning_rates("cosine")
    assert cosines[0] == 0.1
    assert cosines[10] == pytest.approx(0.05)
    assert 0 < cosines[-1] < 0.001
    cycle = learning_rates("one_cycle")
    assert cycle[0] == pytest.approx(0.01)
    assert max(cycle) == pytest.approx(0.1)
    assert cycle.index(max(cycle)) == 4
    assert cycle[-1] == pytest.approx(0.0001)
