"""Microseconds of a training step: by batch, width, threads and backend, its parts, and what the machine allows.

Whole processes by number of images, and sweeps by number of runs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from benchmark_common import NETWORKS, execute, medians, seconds_of, turns
from torch import nn

from mnist_exp import native
from mnist_exp.data import Split
from mnist_exp.device import keep_freed_memory
from mnist_exp.models import MLP, LeNet5
from mnist_exp.native.network import Call
from mnist_exp.runs.provenance import available_cores
from mnist_exp.training import Objective, TrainConfig, TrainState, constant
from mnist_exp.training.train_step import Step

BACKENDS = {"torch": "PyTorch", "native": "native"}
BATCHES = (1, 4, 16, 64, 256, 1024)
WIDTHS = (16, 32, 71, 128, 256, 512)  # of an MLP's two hidden layers
SCALES = (0.5, 1, 2, 4)  # of LeNet-5's maps and hidden widths
IMAGES = (1_000, 5_000, 20_000, 60_000)
RUNS = (1, 2, 4, 8)
Row = dict[str, Any]


def floor(repetitions: int) -> list[Row]:
    """Greatest speeds of PyTorch's matrix product (384 x 384) and of copying memory, read and written, on one thread."""
    torch.set_num_threads(1)
    a, b, out = torch.randn(384, 384), torch.randn(384, 384), torch.empty(384, 384)
    memory = torch.randn(20_000, 784)
    candidates = {"product": lambda: torch.mm(a, b, out=out), "copy": lambda: memory[:10_000].copy_(memory[10_000:])}
    found = dict.fromkeys(candidates, float("inf"))
    for _, name, work in turns(candidates, 20 * repetitions):
        found[name] = min(found[name], seconds_of(work))
    product = 2 * 384**3 / found["product"] / 1e9
    copied = 2 * 4 * 784 * 10_000 / found["copy"] / 1e9
    print(f"sgemm {product:.0f} GFLOP/s, memory {copied:.1f} GB/s copied", flush=True)
    common = {"kind": "floor", "network": "", "backend": "", "n": 20 * repetitions}
    return [
        {**common, "x": "product", "value": round(product, 2), "unit": "GFLOP/s"},
        {**common, "x": "copy", "value": round(copied, 2), "unit": "GB/s"},
    ]


def step_of(model: nn.Module, batch: int, backend: str, data: Split) -> Callable[[], None]:
    """Takes a step of mnist-train on random images."""
    model.to(memory_format=torch.channels_last)
    if backend == "native":
        native.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    scheduler = constant(optimizer, epochs=1, steps_per_epoch=1)
    state = TrainState(model, optimizer, scheduler, None, torch.device("cpu"))
    step = Step(state, TrainConfig(1, batch, 1000, 0, Objective()), data, model)
    return lambda: step(torch.randint(0, len(data), (batch,)))


def network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return LeNet5() if name == "lenet5" else MLP(hidden=[71, 71])


def scaled(network: str, x: float) -> nn.Module:
    """An MLP by the width of its hidden layers, LeNet-5 by a factor of all its widths."""
    torch.manual_seed(0)
    if network == "mlp":
        return MLP(hidden=[int(x)] * 2)
    return LeNet5(channels=[int(6 * x), int(16 * x)], hidden=[int(120 * x), int(84 * x)])


def steps(repetitions: int) -> list[Row]:
    """A step by batch, width and threads with both backends. Each line's backends take turns."""
    keep_freed_memory()
    data = Split(torch.randn(20_000, 1, 28, 28), torch.randint(0, 10, (20_000,)))
    cores = available_cores()
    cases: list[tuple[str, str, float, Callable[[], nn.Module], int, int]] = []
    for network in NETWORKS:
        widths = WIDTHS if network == "mlp" else SCALES
        cases += [("batch", network, batch, lambda n=network: network_of(n), batch, 1) for batch in BATCHES]
        cases += [("width", network, x, lambda n=network, x=x: scaled(n, x), 64, 1) for x in widths]
        cases += [("threads", network, t, lambda n=network: network_of(n), 256, t) for t in range(1, cores + 1)]
    rows: list[Row] = []
    n = 20 * repetitions
    for kind, network, x, make, batch, threads in cases:
        torch.set_num_threads(threads)
        found = medians({backend: step_of(make(), batch, backend, data) for backend in BACKENDS}, n)
        for backend, seconds in found.items():
            rows.append(row_of(kind, network, x, backend, n, 1e6 * seconds))
        print(f"  {NETWORKS[network]}, {kind} {x}: {_both(found, 1e6, 'µs')}", flush=True)
    torch.set_num_threads(1)
    return rows


def row_of(kind: str, network: str, x: object, backend: str, n: int, value: float, unit: str = "µs") -> Row:
    return {
        "kind": kind,
        "network": network,
        "x": x,
        "backend": backend,
        "n": n,
        "value": round(value, 3),
        "unit": unit,
    }


def _both(found: dict[str, float], factor: float, unit: str) -> str:
    times = ", ".join(f"{BACKENDS[name]} {factor * value:.2f} {unit}" for name, value in found.items())
    return f"{times}, {found['torch'] / found['native']:.2f} times"


class TimedLibrary:
    """The kernels' library; takes each step again without some of its parts, and keeps what they took, in seconds.

    Only for measuring: the step is taken four times.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self.parts: list[dict[str, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def train_step(self, reference: int) -> int:
        library, call = self._library, Call.from_address(reference)
        first = seconds_of(lambda: library.train_step(reference))
        again = seconds_of(lambda: library.train_step(reference))  # now its images are in the cache
        update, call.update = call.update, None
        without_update = seconds_of(lambda: library.train_step(reference))
        call.update = update
        forward = seconds_of(lambda: library.forward(reference))
        backward = seconds_of(lambda: library.backward(reference))
        self.parts.append(
            {
                "waiting for images from memory": first - again,
                "forward pass": forward,
                "loss, accuracy, checks of the index": without_update - forward - backward,
                "backward pass": backward,
                "optimizer": again - without_update,
                "in C": first,
            }
        )
        return 0


def native_parts(network: str, data: Split, n: int) -> dict[str, float]:
    """Median seconds of a native step's parts; what is around the call in Python is the rest of the whole."""
    model = network_of(network)
    whole = step_of(model, 64, "native", data)
    timed_model = network_of(network).to(memory_format=torch.channels_last)
    native.attach(timed_model)
    library: Any = TimedLibrary(timed_model.forward.library)
    timed_model.forward.library = library
    optimizer = torch.optim.SGD(timed_model.parameters(), lr=0.01, momentum=0.9, fused=True)
    state = TrainState(
        timed_model, optimizer, constant(optimizer, epochs=1, steps_per_epoch=1), None, torch.device("cpu")
    )
    step = Step(state, TrainConfig(1, 64, 1000, 0, Objective()), data, timed_model)
    found = medians({"whole": whole, "timed": lambda: step(torch.randint(0, len(data), (64,)))}, n)
    parts = {name: median(part[name] for part in library.parts[n // 10 :]) for name in library.parts[0]}
    python = found["whole"] - parts.pop("in C")
    return {**parts, "Python around the call": python, "whole step": found["whole"]}


def torch_parts(network: str, data: Split, n: int) -> dict[str, float]:
    """Median seconds of the parts of a step in PyTorch, channels last."""
    model = network_of(network).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    loss_sum, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    times: dict[str, list[float]] = {}

    def until(name: str, began: float) -> float:
        now = time.perf_counter()
        times.setdefault(name, []).append(now - began)
        return now

    for _ in range(n):
        index = torch.randint(0, len(data), (64,))
        start = began = time.perf_counter()
        images, labels = data.images.index_select(0, index), data.labels.index_select(0, index)
        began = until("images and labels of the batch", began)
        logits = model(images)
        began = until("forward pass", began)
        loss = F.cross_entropy(logits, labels)
        began = until("cross entropy", began)
        optimizer.zero_grad()
        loss.backward()
        began = until("backward pass", began)
        optimizer.step()
        began = until("optimizer", began)
        with torch.no_grad():
            loss_sum += loss * len(index)
            correct += (logits.argmax(dim=1) == labels).sum()
        until("loss and accuracy of the epoch", began)
        until("whole step", start)
    return {name: median(values[n // 10 :]) for name, values in times.items()}


def parts(repetitions: int) -> list[Row]:
    """Where a step of 64 images goes, with both backends."""
    data = Split(torch.randn(20_000, 1, 28, 28), torch.randint(0, 10, (20_000,)))
    n, rows = 60 * repetitions, []
    for network in NETWORKS:
        for backend, measure in (("torch", torch_parts), ("native", native_parts)):
            for name, seconds in measure(network, data, n).items():
                rows.append(row_of("part", network, name, backend, n, 1e6 * seconds))
                print(f"  {NETWORKS[network]}, {BACKENDS[backend]}: {name} {1e6 * seconds:.1f} µs", flush=True)
    return rows


def train(*overrides: str) -> float:
    """Wall seconds of an mnist-train of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mnist_exp.cli.train", *overrides, "trainer.device=cpu", "logger=none"]
        return seconds_of(lambda: execute(command, folder))


def processes(repetitions: int) -> list[Row]:
    """Whole runs of one epoch by number of training images, and sweeps of such runs by number of runs."""
    cores, rows = available_cores(), []
    common = ("trainer.epochs=1", "trainer.threads=1")
    every_way: dict[tuple[str, str, int, str], tuple[str, ...]] = {}
    for images in IMAGES:
        for network in NETWORKS:
            for backend in BACKENDS:
                own = (f"model={network}", f"trainer.backend={backend}", f"data.limit={images}")
                every_way["data", network, images, backend] = own
    for runs in RUNS:
        sweep = ("-m", "data=mnist5k", f"seed=range({runs})")
        every_way["runs", "lenet5", runs, "one process"] = sweep
        every_way["runs", "lenet5", runs, f"{cores} processes"] = (
            *(*sweep, "hydra/launcher=joblib", f"hydra.launcher.n_jobs={cores}"),
        )
    times: dict[tuple[str, str, int, str], list[float]] = {key: [] for key in every_way}
    train(*common, "data.limit=1000")
    named = {str(key): (key, overrides) for key, overrides in every_way.items()}
    for _, _, (key, overrides) in turns(named, repetitions):
        times[key].append(train(*common, *overrides))
        print(f"  {' '.join(map(str, key))}: {times[key][-1]:.2f} s", flush=True)
    for (kind, network, x, way), values in times.items():
        rows.append(row_of(kind, network, x, way, repetitions, median(values), "s"))
    return rows


def growth(repetitions: int) -> list[Row]:
    """All rows of docs/results/speed_growth.csv."""
    return [*floor(repetitions), *steps(repetitions), *parts(repetitions), *processes(repetitions)]
