"""The loop itself: every image once an epoch, in an order that depends on seed and epoch alone, and clipped gradients."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from mnist_exp.data import Dataset, Split
from mnist_exp.training import Callback, Objective, StepDone, TrainConfig, TrainState, constant, fit


class Recorder(nn.Module):
    """A linear classifier that remembers which images it was trained on: image n is filled with n."""

    title = "recorder"

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 10)
        self.seen: list[list[int]] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.append([round(value) for value in images[:, 0, 0, 0].tolist()])
        return self.linear(images.flatten(1))


def train(
    count: int = 10, batch_size: int = 4, epochs: int = 2, seed: int = 0, lr: float = 1e-6, **train_config: object
) -> Recorder:
    torch.manual_seed(0)
    model = Recorder()
    images = torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    split = Split(images, torch.arange(count) % 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    scheduler = constant(optimizer, epochs=epochs, steps_per_epoch=-(-count // batch_size))
    state = TrainState(model, optimizer, scheduler, None, torch.device("cpu"))
    callbacks = train_config.pop("callbacks", ())
    settings = TrainConfig(epochs, batch_size, 1000, seed, Objective(), **train_config)  # type: ignore[arg-type]
    fit(state, Dataset(split, None, split, background=0.0), settings, callbacks=callbacks)  # type: ignore[arg-type]
    return model


def test_every_image_once_an_epoch_the_smaller_last_batch_included() -> None:
    seen = train().seen
    assert [len(batch) for batch in seen] == [4, 4, 2, 4, 4, 2]
    epochs = [list(chain.from_iterable(seen[:3])), list(chain.from_iterable(seen[3:]))]
    assert all(sorted(order) == list(range(10)) for order in epochs)
    assert epochs[0] != epochs[1]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    plain = train().seen
    torch.rand(1)
    assert train(augment=lambda images: images + 0 * torch.rand_like(images)).seen == plain
    assert train(seed=1).seen != plain


def test_gradients_are_clipped_to_their_norm() -> None:
    def moved(**train_config: object) -> float:
        torch.manual_seed(0)
        before = [parameter.detach().clone() for parameter in Recorder().parameters()]
        after = train(batch_size=10, epochs=1, lr=1.0, **train_config).parameters()
        return float(torch.cat([(a.detach() - b).flatten() for a, b in zip(after, before, strict=True)]).norm())

    assert moved() > 1.0
    assert moved(gradient_clipping=0.25) == pytest.approx(0.25, rel=1e-4)


def test_callbacks_hear_of_every_step() -> None:
    class Ear(Callback):
        def __init__(self) -> None:
            self.steps: list[tuple[int, int, int]] = []

        def on_step(self, event: StepDone) -> None:
            self.steps.append((event.epoch, event.step, event.images))

    ear = Ear()
    train(callbacks=[ear])
    assert ear.steps == [(1, 1, 4), (1, 2, 8), (1, 3, 10), (2, 1, 4), (2, 2, 8), (2, 3, 10)]
