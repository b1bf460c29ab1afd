"""What the framework around the training loop costs, how fast the command line answers, and how fast a network can learn.

    python scripts/benchmark.py            # loop and startup, about three minutes on two cores
    python scripts/benchmark.py loop --threads 1
    python scripts/benchmark.py startup
    python scripts/benchmark.py speedrun
    python scripts/benchmark.py recipe --experiment record/lenet5 --images 10000

Times on one machine are only comparable side by side, so every figure is a ratio of medians of runs that took turns.

loop     `mnist_exp.training.fit` with its bookkeeping (order of images, metrics, events, checkpoint of every epoch) against
         a bare PyTorch loop on the same resident tensors, each with both backends and memory formats; evaluation is left
         out of all. Beside them a DataLoader with torchvision transforms, what most code does. SGD 0.01/0.9, batch 64;
         LeNet-5, or the MLP 784-71-71-10 with --model mlp.
startup  `mnist-train --help` and a mistyped key against a program that imports Hydra and composes the same configuration.
speedrun experiment=record/speedrun, all of it, against the first epoch of the default recipe; full MNIST, the seconds of
         import, data, training and evaluation each on their own.
recipe   an experiment with PyTorch alone and with native kernels: second epoch, and whole process of two epochs.
growth   microseconds of a step by network, batch and backend; speed of a matrix product and of memory on this machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

EPOCHS = 1
BATCH = 64


def loop(repetitions: int, threads: int, images: int, with_loader: bool, kind: str) -> None:
    import torch
    import torch.nn.functional as F
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

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (images, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(0, 10, (images,))
    normalised = (pixels / 255 - 0.1307) / 0.3081
    one = Split(normalised[:1], labels[:1])
    dataset = Dataset(train=Split(normalised, labels), val=None, test=one, background=-0.4242)

    def network(memory_format: torch.memory_format) -> tuple[LeNet5 | MLP, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = {"lenet5": LeNet5, "mlp": MLP}[kind]().to(memory_format=memory_format)
        return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)

    def ours(backend: str) -> float:
        model, optimizer = network(torch.channels_last)
        if backend == "native":
            native.attach(model)
        scheduler = constant(optimizer, epochs=EPOCHS, steps_per_epoch=-(-images // BATCH))
        state = TrainState(model, optimizer, scheduler, None, torch.device("cpu"))
        train_config = TrainConfig(EPOCHS, BATCH, 1000, 0, Objective())
        with tempfile.TemporaryDirectory() as folder:

            def save(state: TrainState, metrics: EpochMetrics | None, is_best: bool) -> None:
                save_checkpoint(Path(folder) / "last.pt", state.state_dict())

            began = time.perf_counter()
            fit(state, dataset, train_config, callbacks=[Callback(), Callback()], save=save)
            return time.perf_counter() - began

    def bare(memory_format: torch.memory_format) -> float:
        model, optimizer = network(memory_format)
        began = time.perf_counter()
        loss_sum, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for index in torch.randperm(images).split(BATCH):
            batch, targets = normalised[index], labels[index]
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

    class Pictures(TorchDataset[tuple[torch.Tensor, int]]):
        def __init__(self) -> None:
            from torchvision import transforms

            steps = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
            self.transform = transforms.Compose(steps)

        def __len__(self) -> int:
            return images

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            from PIL import Image

            return self.transform(Image.fromarray(pixels[index, 0].numpy())), int(labels[index])

    def loader() -> float:
        model, optimizer = network(torch.contiguous_format)
        began = time.perf_counter()
        total = 0.0
        for batch, targets in DataLoader(Pictures(), batch_size=BATCH, shuffle=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch), targets)
            loss.backward()
            optimizer.step()
            total += loss.item()
        return time.perf_counter() - began

    candidates: dict[str, Callable[[], float]] = {
        "bare loop": lambda: bare(torch.contiguous_format),
        "bare loop, channels last": lambda: bare(torch.channels_last),
        "mnist_exp, torch": lambda: ours("torch"),
        "mnist_exp, native": lambda: ours("native"),
    }
    if with_loader:
        candidates["DataLoader"] = loader
    for candidate in candidates.values():
        candidate()
    take_turns(candidates, repetitions, reference="bare loop", unit=f"s for {images:,} images, {threads} threads")


def startup(repetitions: int) -> None:
    from mnist_exp.compose import CONF

    compose = (
        "import hydra\n"
        "from mnist_exp.compose import CONF\n"
        "with hydra.initialize_config_dir(version_base='1.3', config_dir=str(CONF)):\n"
        "    hydra.compose('train', overrides=['name=benchmark'])\n"
    )
    # Composing alone needs the resolver that conf/ uses, not the schema: take it from the standard library.
    compose = compose.replace(
        "from mnist_exp.compose import CONF\n",
        f"CONF = {str(CONF)!r}\nfrom omegaconf import OmegaConf\nOmegaConf.register_new_resolver('run_token', lambda: '0')\n",
    )

    def command(*arguments: str) -> Callable[[], float]:
        def run() -> float:
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
            return time.perf_counter() - began

        return run

    candidates = {
        "import hydra + compose": command("-c", compose),
        "mnist-train --help": command("-m", "mnist_exp.cli.train", "--help"),
        "mistyped key": command("-m", "mnist_exp.cli.train", "trainer.epoch=3"),
    }
    for candidate in candidates.values():
        candidate()
    take_turns(candidates, repetitions, reference="import hydra + compose", unit="s")


def speedrun(repetitions: int, threads: int, images: int) -> None:
    from mnist_exp.runs import read_run

    recipes = {"first epoch of the default": ["trainer.epochs=1"], "record/speedrun": ["experiment=record/speedrun"]}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in recipes}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(repetitions):
            for name, overrides in recipes.items():
                path = Path(folder) / f"{len(runs[name])}-{name.replace('/', '-')}"
                common = [f"seed={seed}", f"trainer.threads={threads}", f"data.limit={images}", "logger=none"]
                command = [sys.executable, "-m", "mnist_exp.cli.train", *overrides, *common, f"hydra.run.dir={path}"]
                subprocess.run(command, check=True, capture_output=True)
                record = read_run(path).record
                runs[name].append({**record.seconds, "accuracy": record.final["test_accuracy"]})
    print(f"seconds, {threads} threads, {repetitions} repetitions in turns, medians")
    reference = statistics.median(run["train"] for run in runs["first epoch of the default"])
    for name, measured in runs.items():
        middle = {key: statistics.median(run[key] for run in measured) for key in measured[0]}
        phases = "  ".join(f"{key} {middle[key]:6.2f}" for key in ("import", "data", "train", "eval"))
        accuracy = f"accuracy {100 * statistics.fmean(run['accuracy'] for run in measured):.2f} %"
        print(f"  {name:28s} {phases}  train against the first line {middle['train'] / reference:5.2f}  {accuracy}")


def recipe(name: str, repetitions: int, threads: int, images: int) -> None:
    """Whole processes of an experiment with both backends; of each the seconds of its second epoch."""
    from mnist_exp.runs import read_run

    seconds: dict[str, list[float]] = {"torch": [], "native": []}
    whole: dict[str, list[float]] = {"torch": [], "native": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repetitions):
            for backend in seconds:
                path = Path(folder) / f"{backend}{turn}"
                common = [f"trainer.threads={threads}", "trainer.epochs=2", f"data.limit={images}", "quiet=true"]
                command = [sys.executable, "-m", "mnist_exp.cli.train", f"experiment={name}", *common, "logger=none"]
                began = time.perf_counter()
                subprocess.run(
                    [*command, f"trainer.backend={backend}", f"hydra.run.dir={path}"], check=True, capture_output=True
                )
                whole[backend].append(time.perf_counter() - began)
                seconds[backend].append(read_run(path).metrics[1]["train_seconds"])
    print(f"{name}: {images:,} images, {threads} threads, {repetitions} repetitions in turns, medians")
    for backend, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["torch"], values, strict=True))
        print(
            f"  {backend:8s} second epoch {statistics.median(values):7.3f} s ({ratio:4.2f} times as fast as torch), "
            f"whole process {statistics.median(whole[backend]):7.3f} s"
        )


def growth(repetitions: int, threads: int) -> None:
    """Microseconds of a step by network, batch and backend, and what this machine's products and memory allow."""
    import torch

    from mnist_exp import native
    from mnist_exp.data import Split
    from mnist_exp.device import keep_freed_memory
    from mnist_exp.models import MLP, LeNet5
    from mnist_exp.training import Objective, TrainConfig, TrainState, constant
    from mnist_exp.training.train_step import Step

    torch.set_num_threads(threads)
    keep_freed_memory()
    images, labels = torch.randn(20_000, 1, 28, 28), torch.randint(0, 10, (20_000,))

    def steps(model: torch.nn.Module, batch: int, backend: str) -> Callable[[], None]:
        model.to(memory_format=torch.channels_last)
        if backend == "native":
            native.attach(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
        scheduler = constant(optimizer, epochs=1, steps_per_epoch=1)
        state = TrainState(model, optimizer, scheduler, None, torch.device("cpu"))
        step = Step(state, TrainConfig(1, batch, 1000, 0, Objective()), Split(images, labels), model)
        return lambda: step(torch.randint(0, len(labels), (batch,)))

    def median(candidates: dict[str, Callable[[], object]]) -> dict[str, float]:
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(20 * repetitions):
            for name, candidate in candidates.items():
                began = time.perf_counter()
                candidate()
                times[name].append(1e6 * (time.perf_counter() - began))
        return {name: statistics.median(values[repetitions:]) for name, values in times.items()}

    a, b, out = torch.randn(384, 384), torch.randn(384, 384), torch.empty(384, 384)
    floor = median({"product": lambda: torch.mm(a, b, out=out), "copy": lambda: images[:10_000].copy_(images[10_000:])})
    print(
        f"sgemm {2 * 384**3 / floor['product'] / 1e3:.0f} GFLOP/s, memory {8e4 * 784 / floor['copy'] / 1e3:.1f} GB/s copied"
    )
    networks: dict[str, Callable[[], torch.nn.Module]] = {"LeNet-5": LeNet5, "MLP 784-71-71-10": MLP}
    networks |= {f"MLP 784-{width}-{width}-10": lambda width=width: MLP(hidden=[width, width]) for width in (16, 256)}
    for name, make in networks.items():
        for batch in (16, 64, 256):
            found = median({backend: steps(make(), batch, backend) for backend in ("torch", "native")})
            print(
                f"| {name} | {batch} | {found['torch']:.0f} | {found['native']:.0f} | {found['torch'] / found['native']:.1f} |"
            )


def take_turns(candidates: dict[str, Callable[[], float]], repetitions: int, *, reference: str, unit: str) -> None:
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repetitions):
        for name, candidate in candidates.items():
            times[name].append(candidate())
    print(f"{unit}, {repetitions} repetitions in turns")
    for name, values in times.items():
        ratios = [value / base for value, base in zip(values, times[reference], strict=True)]
        print(
            f"  {name:24s} median {statistics.median(values):7.3f}  min {min(values):7.3f}  max {max(values):7.3f}"
            f"  ratio of medians {statistics.median(values) / statistics.median(times[reference]):5.2f}"
            f"  median of ratios {statistics.median(ratios):5.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", nargs="?", choices=["all", "loop", "startup", "speedrun", "recipe", "growth"], default="all"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--model", choices=["lenet5", "mlp"], default="lenet5", help="of the loop")
    parser.add_argument("--experiment", default="record/lenet5", help="of recipe")
    parser.add_argument("--no-loader", action="store_true", help="leave the DataLoader out")
    options = parser.parse_args()
    if options.what in {"all", "startup"}:
        startup(options.repetitions)
    if options.what in {"all", "loop"}:
        loop(options.repetitions, options.threads, options.images, not options.no_loader, options.model)
    if options.what == "recipe":
        recipe(options.experiment, options.repetitions, options.threads, options.images)
    if options.what == "growth":
        growth(options.repetitions, options.threads)
    if options.what == "speedrun":
        speedrun(options.repetitions, options.threads, options.images)


if __name__ == "__main__":
    main()
