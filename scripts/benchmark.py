"""What the framework around the training loop costs, how fast the command line answers, and how fast a network can learn.

    python scripts/benchmark.py            # loop and startup, about three minutes on two cores
    python scripts/benchmark.py loop --threads 1
    python scripts/benchmark.py startup
    python scripts/benchmark.py speedrun

Times on one machine are only comparable side by side, so every figure is a ratio of medians of runs that took turns.

loop     `mnist_exp.training.fit` with its bookkeeping (order of images, metrics, events, checkpoint of every epoch) against
         a bare PyTorch loop on the same resident tensors, each with both backends and memory formats; evaluation is left
         out of all. Beside them a DataLoader with torchvision transforms, what most code does. SGD 0.01/0.9, batch 64;
         LeNet-5, or the MLP 784-71-71-10 with --model mlp.
startup  `mnist-train --help` and a mistyped key against a program that imports Hydra and composes the same configuration.
speedrun experiment=record/speedrun, all of it, against the first epoch of the default recipe; full MNIST, the seconds of
         import, data, training and evaluation each on their own.
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

    class Pictures(TorchDataset):  # type: ignore[type-arg]
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
    parser.add_argument("what", nargs="?", choices=["all", "loop", "startup", "speedrun"], default="all")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--model", choices=["lenet5", "mlp"], default="lenet5", help="of the loop")
    parser.add_argument("--no-loader", action="store_true", help="leave the DataLoader out")
    options = parser.parse_args()
    if options.what in {"all", "startup"}:
        startup(options.repetitions)
    if options.what in {"all", "loop"}:
        loop(options.repetitions, options.threads, options.images, not options.no_loader, options.model)
    if options.what == "speedrun":
        speedrun(options.repetitions, options.threads, options.images)


if __name__ == "__main__":
    main()
