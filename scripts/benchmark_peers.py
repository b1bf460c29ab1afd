"""mnist-train and other ways to train the same two networks by the same recipe on one core, each in processes of its own.

What is trained by others is in scripts/peers, a file each. All read the same files, train epochs of batches of 64 by SGD
(0.01, momentum 0.9) and classify the test images after each epoch.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_common import NETWORKS, turns

from mnist_exp.runs import read_run

PEERS = Path(__file__).parent / "peers"
INSTALL = "pip install -e '.[bench]'"
WARM_UP = 1280  # images of the run before the first turn, which fills the system's cache of files
# One thread of everybody: OpenMP's and the products' of PyTorch, NumPy and scikit-learn; XLA's products. XLA's own pool has
# as many threads as the process may use cores, and every process is bound to one.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}
COMPILE = """
import sys, time
from mnist_exp import models, native
model = {"lenet5": models.LeNet5, "mlp": models.MLP}[sys.argv[1]]()
began = time.perf_counter()
native.attach(model)
print(time.perf_counter() - began)
"""
Result = dict[str, Any]


class PeerFailed(Exception):
    """A candidate ended with an error. The message is the last line that it wrote."""


@dataclass(frozen=True)
class Peer:
    """A candidate.

    Attributes:
        run: takes the folder of the data, ``lenet5`` or ``mlp``, and the number of epochs; returns what ``peers/peer.py``
            says a program prints, and ``wall_seconds`` of its process.
        packages: that it is measured with; their versions go into the results.
        networks: that it can train.
    """

    run: Callable[[Path, str, int], Result]
    packages: tuple[str, ...]
    networks: tuple[str, ...] = tuple(NETWORKS)


def process(command: Sequence[str | Path], **environment: str) -> tuple[str, float]:
    """Run on one core; returns standard output and wall seconds."""
    core = {min(os.sched_getaffinity(0))} if hasattr(os, "sched_getaffinity") else None
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env={**os.environ, **ONE_THREAD, **environment},
            capture_output=True,
            text=True,
            check=False,
            # Nothing of this program runs in threads, so code between fork and exec is safe.
            preexec_fn=None if core is None else partial(os.sched_setaffinity, 0, core),
        )
        wall = time.perf_counter() - began
    if done.returncode != 0:
        raise PeerFailed(next(iter(done.stderr.strip().splitlines()[-1:]), f"exit status {done.returncode}"))
    return done.stdout, wall


def program(file: str, *arguments: str) -> Callable[[Path, str, int], Result]:
    def run(folder: Path, network: str, epochs: int) -> Result:
        out, wall = process([PEERS / f"{file}.py", folder, network, str(epochs), *arguments])
        return {**json.loads(out.splitlines()[-1]), "wall_seconds": wall}

    return run


def mnist_train(backend: str) -> Callable[[Path, str, int], Result]:
    def run(folder: Path, network: str, epochs: int) -> Result:
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "run"
            own = [f"model={network}", f"trainer.backend={backend}", f"trainer.epochs={epochs}", "trainer.threads=1"]
            data = ["data=mnist", f"data.root={folder}", "data.download=null"]
            where = ["trainer.device=cpu", "logger=none", f"hydra.run.dir={out}"]
            _, wall = process(["-m", "mnist_exp.cli.train", *own, *data, *where])
            metrics = read_run(out).metrics
        names = ("train_seconds", "train_loss", "test_accuracy")
        return {"epochs": [{name: row[name] for name in names} for row in metrics], "wall_seconds": wall}

    return run


REFERENCE, NATIVE = "PyTorch, bare loop", "mnist-train, native"
CANDIDATES = {
    NATIVE: Peer(mnist_train("native"), ("torch",)),
    "mnist-train, PyTorch": Peer(mnist_train("torch"), ("torch",)),
    REFERENCE: Peer(program("bare_torch"), ("torch",)),
    "PyTorch, DataLoader": Peer(program("dataloader"), ("torch", "torchvision")),
    "Lightning": Peer(program("lightning_trainer"), ("lightning", "torch", "torchvision")),
    "JAX, jitted step": Peer(program("jax_flax", "step"), ("jax", "flax")),
    "JAX, scan over the epoch": Peer(program("jax_flax", "scan"), ("jax", "flax")),
    "scikit-learn": Peer(program("scikit_learn"), ("scikit-learn",), ("mlp",)),
}
MODULES = {"scikit-learn": "sklearn"}


def missing() -> dict[str, str]:
    """How to install what a candidate needs and what is not there, by its name."""
    absent = {
        name: [package for package in peer.packages if find_spec(MODULES.get(package, package)) is None]
        for name, peer in CANDIDATES.items()
    }
    return {name: f"needs {' and '.join(packages)}: {INSTALL}" for name, packages in absent.items() if packages}


def peers(
    networks: Sequence[str], only: Sequence[str], repetitions: int, images: int
) -> tuple[list[Result], dict[tuple[str, str], str]]:
    """Rows of docs/results/speed_peers.csv, one for a candidate's turn; by network and name, the last line of what failed."""
    from mnist_exp.data import idx_folder

    rows: list[Result] = []
    failures: dict[tuple[str, str], str] = {}
    able = {
        name: peer
        for name, peer in CANDIDATES.items()
        if name not in missing() and (not only or any(part in name for part in only))
    }
    digits = idx_folder(root=os.environ.get("MNIST_DIR"), download="MNIST", mean=[0.0], std=[1.0])
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        for to, limit in ((few, WARM_UP), (many, images)):
            write_files(to / "MNIST" / "raw", digits, limit)
        for network in networks:
            of_network = {name: peer for name, peer in able.items() if network in peer.networks}
            for name in list(of_network):
                try:
                    of_network[name].run(few, network, 1)
                except PeerFailed as failed:
                    failures[network, name] = str(failed)
                    del of_network[name]
            for turn, name, peer in turns(of_network, repetitions):
                row = one_turn(name, peer, network, many, Path(folder) / f"cache {turn}")
                rows.append({"network": network, "candidate": name, "turn": turn, "images": images, **row})
                print(f"  turn {turn + 1}, {network}, {name}: {row['second_epoch_seconds']:.3f} s", flush=True)
    return rows, failures


def write_files(folder: Path, digits: Any, limit: int) -> None:
    """The four IDX files with the first ``limit`` training images and all test images of a data set with pixels in [0, 1]."""
    folder.mkdir(parents=True)
    for split, labelled, count in (("train", digits.train, limit), ("t10k", digits.test, len(digits.test))):
        images = (labelled.images[:count] * 255).round().byte().numpy().reshape(-1, 28, 28)
        labels = labelled.labels[:count].byte().numpy()
        for content, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
            header = np.array([0x0800 + content.ndim, *content.shape], ">u4").tobytes()
            (folder / f"{split}-{kind}-ubyte").write_bytes(header + content.tobytes())


def one_turn(name: str, peer: Peer, network: str, folder: Path, cache: Path) -> Result:
    """A process of one epoch for its wall time, and one of two epochs for what the second takes."""
    whole = peer.run(folder, network, 1)
    two = peer.run(folder, network, 2)
    compile_seconds = two.get("compile_seconds")
    if name == NATIVE:  # compiled once for a machine and kept, so not within the process measured
        out, _ = process(["-c", COMPILE, network], MNIST_EXP_CACHE=str(cache / network))
        compile_seconds = float(out)
    second = two["epochs"][1]
    return {
        "whole_seconds": round(whole["wall_seconds"], 3),
        "compile_seconds": "" if compile_seconds is None else round(compile_seconds, 3),
        "first_epoch_seconds": round(two["epochs"][0]["train_seconds"], 4),
        "second_epoch_seconds": round(second["train_seconds"], 4),
        "train_loss": round(second["train_loss"], 4),
        "test_accuracy": round(second["test_accuracy"], 4),
        "versions": " ".join(f"{package} {version(package).partition('+')[0]}" for package in peer.packages),
    }


def table(rows: Sequence[Result], network: str, absent: Mapping[str, str]) -> list[str]:
    """Medians of a network's candidates as a table in Markdown, and why there are none of those in ``absent``."""
    lines = [
        f"| {NETWORKS[network]} | n | second epoch, s | times as fast as the bare loop | whole process, s "
        "| of it compiling, s | loss | test accuracy |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    mine = [row for row in rows if row["network"] == network]
    base = {row["turn"]: float(row["second_epoch_seconds"]) for row in mine if row["candidate"] == REFERENCE}
    for name in CANDIDATES:
        if own := [row for row in mine if row["candidate"] == name]:
            ratios = [base[row["turn"]] / float(row["second_epoch_seconds"]) for row in own if row["turn"] in base]
            ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
            compiling = "-" if own[0]["compile_seconds"] == "" else f"{middle(own, 'compile_seconds'):.1f}"
            if name == NATIVE:
                compiling = f"({compiling}, once)"
            lines.append(
                f"| {name} | {len(own)} | {middle(own, 'second_epoch_seconds'):.3f} | {ratio} "
                f"| {middle(own, 'whole_seconds'):.2f} | {compiling} | {middle(own, 'train_loss'):.3f} "
                f"| {100 * middle(own, 'test_accuracy'):.2f} % |"
            )
        elif name in absent and network in CANDIDATES[name].networks:
            lines.append(f"| {name} | 0 | {absent[name]} | | | | | |")
    return lines


def middle(rows: Sequence[Result], column: str) -> float:
    return statistics.median(float(row[column]) for row in rows)
