"""Each technique does what its paper says."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mnist_exp.models import LeNet5
from mnist_exp.training import Distillation, ExponentialMovingAverage, Mixup, Objective, parameter_groups


def test_dropout_keeps_the_expected_activation() -> None:
    """Srivastava et al. 2014, section 4, in the inverted form: a unit is kept with 1 - p and then scaled by 1 / (1 - p)."""
    torch.manual_seed(0)
    model = LeNet5(dropout=[0.0, 0.3, 0.0]).train()
    hidden = []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda module, inputs, output: hidden.append((inputs[0], output)))
    images = torch.rand(1, 1, 28, 28).expand(4000, -1, -1, -1)
    model(images)
    ((before, after),) = hidden
    active = before[0] > 0.01
    torch.testing.assert_close(after.mean(dim=0)[active], before[0][active], rtol=0.1, atol=0.0)
    dropped = (after[:, active] == 0).float().mean()
    assert dropped == pytest.approx(0.3, abs=0.01)
    model.eval()
    hidden.clear()
    model(images[:2])
    torch.testing.assert_close(hidden[0][0], hidden[0][1]), "nothing is dropped in evaluation"


def test_dropout_of_one_number_leaves_features_alone() -> None:
    drop = [module.p for module in LeNet5(dropout=0.5).modules() if isinstance(module, nn.Dropout)]
    assert drop == [0.5, 0.5]


def test_batch_norm_normalises_every_map() -> None:
    """Ioffe and Szegedy 2015, algorithm 1: zero mean and unit variance over the batch and the map."""
    torch.manual_seed(0)
    model = LeNet5(batch_norm=True).train()
    seen = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(torch.randn(64, 1, 28, 28) * 3 + 1)
    assert [output.shape[1] for output in seen] == [6, 16]
    for output in seen:
        torch.testing.assert_close(output.mean(dim=(0, 2, 3)), torch.zeros(output.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(output.var(dim=(0, 2, 3)), torch.ones(output.shape[1]), atol=1e-2, rtol=0)


def test_label_smoothing_is_cross_entropy_with_the_smoothed_target() -> None:
    """Szegedy et al. 2016, section 7: q(k) = (1 - e) [k = y] + e / K."""
    logits, labels = torch.randn(32, 10, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 10
    smoothing = 0.1
    target = torch.full((32, 10), smoothing / 10)
    target[torch.arange(32), labels] += 1 - smoothing
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(Objective(label_smoothing=smoothing)(logits, labels), expected)
    plain = Objective(label_smoothing=smoothing).without_smoothing()
    torch.testing.assert_close(plain(logits, labels), F.cross_entropy(logits, labels))


def test_rubbish_class_is_the_map_criterion() -> None:
    """LeCun et al. 1998, equation 9, written out: the penalty of the label plus log(e^-j + sum of e^-penalties)."""
    penalties, labels = torch.rand(16, 10) * 40, torch.arange(16) % 10
    j = 12.0
    of_label = penalties[torch.arange(16), labels]
    expected = (of_label + torch.log(math.exp(-j) + torch.exp(-penalties).sum(dim=1))).mean()
    torch.testing.assert_close(Objective(rubbish_logit=-j)(-penalties, labels), expected)


def test_mixup_is_the_convex_combination() -> None:
    """Zhang et al. 2018, equation 1, and its loss as the same combination of two losses."""
    torch.manual_seed(3)
    images, labels = torch.rand(64, 1, 28, 28), torch.arange(64) % 10
    mixed, first, second, weight = Mixup(0.4)(images, labels)
    assert 0.5 <= weight <= 1
    assert torch.equal(first, labels)
    partner = images[[int((images - candidate).abs().sum(dim=(1, 2, 3)).argmin()) for candidate in
                      (mixed - weight * images) / (1 - weight)]]  # fmt: skip
    torch.testing.assert_close(mixed, weight * images + (1 - weight) * partner, atol=1e-5, rtol=1e-5)
    assert sorted(second.tolist()) == sorted(labels.tolist())
    assert not torch.equal(second, labels)


def test_mixup_weight_follows_the_beta_distribution() -> None:
    torch.manual_seed(0)
    image, label = torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64)
    weights = torch.tensor([Mixup(1.0)(image, label)[3] for _ in range(4000)])
    # Beta(1, 1) is uniform, and the larger of a weight and its complement is uniform on [0.5, 1].
    assert weights.mean() == pytest.approx(0.75, abs=0.01)
    assert weights.var() == pytest.approx(1 / 48, rel=0.1)


def test_distillation_is_cross_entropy_with_the_mean_of_softened_teachers() -> None:
    """Hinton et al. 2015, section 2: soft targets at a temperature, their gradient scaled by its square."""
    torch.manual_seed(0)
    teachers = [LeNet5().eval(), LeNet5().eval()]
    images, logits = torch.rand(16, 1, 28, 28), torch.randn(16, 10)
    shares = (
        sum(torch.exp(teacher(images) / 4) / torch.exp(teacher(images) / 4).sum(1, True) for teacher in teachers) / 2
    )
    expected = 0.3 * 1.5 - 0.7 * 16 * (shares * (logits / 4).log_softmax(dim=1)).sum(dim=1).mean()
    loss = Distillation(teachers, weight=0.7, temperature=4.0)(torch.tensor(1.5), logits, images)
    torch.testing.assert_close(loss, expected)


def test_distillation_at_a_high_temperature_matches_logits() -> None:
    """Hinton et al. 2015, equation 4: the gradient tends to the difference of centred logits over the number of classes."""
    torch.manual_seed(0)
    teacher, images = LeNet5().eval(), torch.rand(8, 1, 28, 28)
    logits = torch.randn(8, 10, requires_grad=True)
    Distillation([teacher], weight=1.0, temperature=1000.0)(torch.tensor(0.0), logits, images).backward()
    centred = [values - values.mean(dim=1, keepdim=True) for values in (logits.detach(), teacher(images).detach())]
    torch.testing.assert_close(logits.grad, (centred[0] - centred[1]) / 10 / 8, rtol=0.02, atol=1e-4)
    assert all(parameter.grad is None for parameter in teacher.parameters()), "a teacher learns nothing"


def test_average_warms_up_and_then_decays() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    ema = ExponentialMovingAverage(model, decay=0.9)
    expected = 0.0
    for step in range(200):
        with torch.no_grad():
            model.weight.fill_(float(step))
        decay = min(0.9, (1 + step) / (10 + step))
        assert ema.current_decay() == decay
        expected = decay * expected + (1 - decay) * step
        ema.update()
    assert float(ema.model.weight) == pytest.approx(expected, rel=1e-5)
    assert ema.current_decay() == 0.9


def test_average_takes_batch_statistics_along() -> None:
    torch.manual_seed(0)
    model = LeNet5(batch_norm=True).train()
    ema = ExponentialMovingAverage(model, decay=0.5)
    for _ in range(30):
        model(torch.randn(32, 1, 28, 28) + 5)
        ema.update()
    source, target = model.state_dict(), ema.model.state_dict()
    torch.testing.assert_close(
        target["features.norm1.running_mean"], source["features.norm1.running_mean"], rtol=0.1, atol=0.1
    )
    assert target["features.norm1.num_batches_tracked"] == 30
    assert not ema.model.training


def test_weight_decay_leaves_biases_and_normalisation_alone() -> None:
    model = LeNet5(batch_norm=True)
    optimizer = torch.optim.SGD(parameter_groups(model), lr=0.1, weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor, msg=name)


def test_weight_decay_of_everything_where_asked() -> None:
    model = LeNet5(batch_norm=True)
    (group,) = parameter_groups(model, decay_all=True)
    assert sum(parameter.numel() for parameter in group["params"]) == 61_750
