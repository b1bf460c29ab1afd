"""What the framework around the training loop costs, how fast the command line answers, and how fast a network can learn.

    python scripts/benchmark.py            # loop and startup, about three minutes on two cores
    python scripts/benchmark.py loop --threads 1
    python scripts/benchmark.py startup
    python scripts/benchmark.py speedrun
    python scripts/benchmark.py recipe --experiment record/lenet5 --images 10000
    python scripts/benchmark.py peers --model mlp --images 6400 --repetitions 1   # a quick try, about three minutes
    python scripts/benchmark.py peers growth --write    # the figures and tables of docs/speed.md: about 50 minutes
    python scripts/benchmark.py --document              # measure nothing, write docs/speed.md from docs/results

Times on one machine are only comparable side by side, so every figure is a ratio of medians of runs that took turns.

loop     `mnist_exp.training.fit` with its bookkeeping (order of images, metrics, events, checkpoint of every epoch) against
         a bare PyTorch loop on the same resident tensors, each with both backends and memory formats; evaluation is left
         out of all. Beside them a DataLoader with torchvision transforms, what most code does. SGD 0.01/0.9, batch 64;
         LeNet-5, or the MLP 784-71-71-10 with --model mlp.
startup  `mnist-train --help` and a mistyped key against a program that imports Hydra and composes the same configuration.
speedrun experiment=record/speedrun, all of it, against the first epoch of the default recipe; full MNIST, the seconds of
         import, data, training and evaluation each on their own.
recipe   an experiment with PyTorch alone and with native kernels: second epoch, and whole process of two epochs.
peers    mnist-train against PyTorch loops, Lightning, JAX and scikit-learn on one core: whole process of one epoch, and
         second epoch; both networks, or that of --model. Each is a program in scripts/peers; needs the extra `bench`.
growth   microseconds of a step by network, batch, width, threads and backend, and its parts; whole runs by number of images
         and of runs; speed of a matrix product and of memory on this machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from benchmark_common import NETWORKS, execute, keep, load, processor, take_turns
from benchmark_document import write
from benchmark_peers import missing, peers, table

from mnist_exp.cli.ending import exit_status, printing


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
                execute(command)
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
                execute([*command, f"trainer.backend={backend}", f"hydra.run.dir={path}"])
                whole[backend].append(time.perf_counter() - began)
                seconds[backend].append(read_run(path).metrics[1]["train_seconds"])
    print(f"{name}: {images:,} images, {threads} threads, {repetitions} repetitions in turns, medians")
    for backend, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["torch"], values, strict=True))
        print(
            f"  {backend:8s} second epoch {statistics.median(values):7.3f} s ({ratio:4.2f} times as fast as torch), "
            f"whole process {statistics.median(whole[backend]):7.3f} s"
        )


def measure_peers(options: argparse.Namespace) -> bool:
    """Print a table for each network; false where a candidate failed."""
    before, networks = load(), [options.model] if options.model else list(NETWORKS)
    rows, failures = peers(networks, options.only, options.repetitions, options.images)
    print(f"\n{processor()}, one core; load {before} before, {load()} after; {options.images:,} images, turns, medians")
    for network in networks:
        failed = {name: why for (of, name), why in failures.items() if of == network}
        print("", *table(rows, network, missing() | failed), sep="\n")
    if options.write and not failures:
        keep("peers", rows, before)
    return not failures


def measure_growth(options: argparse.Namespace) -> None:
    from benchmark_growth import growth

    before = load()
    rows = growth(options.repetitions)
    print(f"{processor()}; load {before} before, {load()} after")
    if options.write:
        keep("growth", rows, before)


@exit_status("benchmark.py")
@printing()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ["all", "loop", "startup", "speedrun", "recipe", "peers", "growth"]
    parser.add_argument("what", nargs="*", choices=known, default="all", help="one or several; all: loop and startup")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--model", choices=list(NETWORKS), help="of the loop (lenet5) and of peers (both)")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="peers whose names contain it")
    parser.add_argument("--experiment", default="record/lenet5", help="of recipe")
    parser.add_argument("--no-loader", action="store_true", help="leave the DataLoader out of the loop")
    parser.add_argument(
        "--write", action="store_true", help="keep what peers and growth find in docs/results, and write docs/speed.md"
    )
    parser.add_argument(
        "--document", action="store_true", help="measure nothing, write docs/speed.md from docs/results"
    )
    options = parser.parse_args()
    what = {options.what} if isinstance(options.what, str) else set(options.what)
    if (options.write or options.document) and find_spec("matplotlib") is None:
        parser.error("the figures need matplotlib: pip install 'mnist-exp[figures]'")
    if options.write and (options.only or options.model):
        parser.error("--write keeps all candidates and both networks: leave out --only and --model")
    if options.write and "peers" in what and (absent := missing()):
        parser.error(f"--write keeps all candidates: {next(iter(absent.values()))}")
    if options.document:
        return write()
    if what & {"all", "startup"}:
        startup(options.repetitions)
    if what & {"all", "loop"}:
        from benchmark_loop import loop

        loop(options.repetitions, options.threads, options.images, not options.no_loader, options.model or "lenet5")
    if "recipe" in what:
        recipe(options.experiment, options.repetitions, options.threads, options.images)
    if "speedrun" in what:
        speedrun(options.repetitions, options.threads, options.images)
    if "growth" in what:
        measure_growth(options)
    complete = measure_peers(options) if "peers" in what else True
    if options.write:
        write()
    if not complete:
        sys.exit(1)
    return None


if __name__ == "__main__":
    main()
