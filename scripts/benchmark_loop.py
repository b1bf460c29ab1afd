"""``mnist_exp.training.fit`` with its bookkeeping against a bare PyTorch loop on the same tensors, in one process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from benchmark_common import take_turns
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mnist_exp import native
from mnist_exp.data import Dataset, Split
from mnist_exp.models import MLP, LeNet5
from mnist_exp.training import (
    Callback,
    EpochMetrics,
    Objective,
    TrainConfig,
    TrainState,
    constant,
    fit,
    save_checkpoint,
)

BATCH = 64
MEAN, STD = 0.1307, 0.3081


@dataclass(frozen=True)
class Digits:
    """Random digits: ``pixels`` (N, 1, 28, 28), uint8, the same normalised as float32 ``images``, and ``labels`` (N,)."""

    pixels: Tensor
    images: Tensor
    labels: Tensor


class Pictures(TorchDataset[tuple[Tensor, int]]):
    """The digits one by one, as torchvision's data sets and transforms give them."""

    def __init__(self, digits: Digits) -> None:
        from torchvision import transforms

        self.digits = digits
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])

    def __len__(self) -> int:
        return len(self.digits.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        picture = Image.fromarray(self.digits.pixels[index, 0].numpy())
        return self.transform(picture), int(self.digits.labels[index])


def network(kind: str, memory_format: torch.memory_format) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = {"lenet5": LeNet5, "mlp": MLP}[kind]().to(memory_format=memory_format)
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)


def ours(digits: Digits, kind: str, backend: str) -> float:
    """Seconds of an epoch of ``fit``, with two callbacks and a checkpoint."""
    model, optimizer = network(kind, torch.channels_last)
    if backend == "native":
        native.attach(model)
    one = Split(digits.images[:1], digits.labels[:1])
    dataset = Dataset(train=Split(digits.images, digits.labels), val=None, test=one, background=-MEAN / STD)
    scheduler = constant(optimizer, epochs=1, steps_per_epoch=-(-len(digits.labels) // BATCH))
    state = TrainState(model, optimizer, scheduler, None, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:

        def save(state: TrainState, metrics: EpochMetrics | None, is_best: bool) -> None:
            save_checkpoint(Path(folder) / "last.pt", state.state_dict())

        began = time.perf_counter()
        config = TrainConfig(1, BATCH, 1000, 0, Objective())
        fit(state, dataset, config, callbacks=[Callback(), Callback()], save=save)
        return time.perf_counter() - began


def bare(digits: Digits, kind: str, memory_format: torch.memory_format) -> float:
    """Seconds of an epoch."""
    model, optimizer = network(kind, memory_format)
    began = time.perf_counter()
    loss_sum, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    for index in torch.randperm(len(digits.labels)).split(BATCH):
        batch, targets = digits.images[index], digits.labels[index]
        logits = model(batch)
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            loss_sum += loss * len(index)
            correct += (logits.argmax(dim=1) == targets).sum()
    float(loss_sum), int(correct)
    return time.perf_counter() - began


def loader(digits: Digits, kind: str) -> float:
    """Seconds of an epoch."""
    model, optimizer = network(kind, torch.contiguous_format)
    began = time.perf_counter()
    total = 0.0
    for batch, targets in DataLoader(Pictures(digits), batch_size=BATCH, shuffle=True):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch), targets)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return time.perf_counter() - began


def loop(repetitions: int, threads: int, images: int, with_loader: bool, kind: str) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (images, 1, 28, 28), dtype=torch.uint8)
    digits = Digits(pixels, (pixels / 255 - MEAN) / STD, torch.randint(0, 10, (images,)))
    candidates: dict[str, Callable[[], float]] = {
        "bare loop": lambda: bare(digits, kind, torch.contiguous_format),
        "bare loop, channels last": lambda: bare(digits, kind, torch.channels_last),
        "mnist_exp, torch": lambda: ours(digits, kind, "torch"),
        "mnist_exp, native": lambda: ours(digits, kind, "native"),
    }
    if with_loader:
        candidates["DataLoader"] = lambda: loader(digits, kind)
    for candidate in candidates.values():
        candidate()
    take_turns(candidates, repetitions, reference="bare loop", unit=f"s for {images:,} images, {threads} threads")
