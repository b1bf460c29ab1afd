"""Makes the things that documented lines name: run directories, sweeps, pictures, folders of data sets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from urllib.parse import quote

import numpy as np
from documented_lines import ROOT
from filelock import FileLock
from PIL import Image
from warm_commands import WarmCommands

from mnist_exp.data.embedded import mnist5k

SMALL = "data.limit=128 trainer.epochs=1 trainer.threads=1 trainer.device=cpu logger.mode=offline"
# mnist-train with a request to stop before its first step.
STOPPED = """\
import sys
from mnist_exp import signals
from mnist_exp.cli.train import main
signals.StopRequest.__call__ = lambda request: setattr(request, "signal", 15) is None
sys.exit(main())
"""


def made_once(make: Callable[[Examples, Path, str], None]) -> Callable[[Examples, str], Path]:
    """A method that makes a thing in a folder of its own, once for all test processes, and returns this folder."""

    @wraps(make)
    def made(examples: Examples, name: str) -> Path:
        folder = examples.folder / f"{make.__name__}-{quote(name, safe='')}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                unfinished = folder.with_name(f"{folder.name}.unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)  # of an attempt that failed
                unfinished.mkdir()
                make(examples, unfinished, name)
                unfinished.rename(folder)
        return folder

    return made


class Examples:
    """Makes each thing once, in its own folder, and copies it to the folder in which a line is run.

    Args:
        folder: for the things made; shared by all test processes.
        cache: also shared; the first process fills it.
        commands: used to make the things.

    ``environment`` is the environment of the lines: the commands are first on the path, and the cache holds MNIST,
    FashionMNIST and KMNIST as if they had been downloaded. All three contain the bundled digits, 10,000 to train (so
    that 5,000 can be held out) and 1,000 to test.
    """

    def __init__(self, folder: Path, cache: Path, commands: WarmCommands) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        stopped = commands.bin / "stopped.py"
        stopped.write_text(STOPPED)
        commands.add("mnist-train-stopped", stopped)
        hidden = ("MNIST_DIR", "WANDB_", "HYDRA_", "PYTEST_")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(hidden)},
            "PATH": os.pathsep.join([str(commands.bin), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "MNIST_EXP_CACHE": str(cache),
        }
        with FileLock(f"{cache}.lock"):
            for name in ("MNIST", "FashionMNIST", "KMNIST"):
                if not (cache / name).exists():
                    write_idx(cache / name)

    def provide(self, line: str, where: Path) -> None:
        """Put the things that ``line`` names into the folder ``where``."""
        reads_runs = not line.startswith(("mnist-train", "python"))
        for pattern, make in [
            (r"sweep\.resume=([\w./-]+)", self.unfinished_sweep),
            (r"(?<!sweep\.)\bresume=([\w./-]+)", self.finished_run if "epochs=" in line else self.unfinished_run),
            (r"(?:teachers=\[|init_from=)([\w./-]+)", self.finished_run),
            (r"data=(?:idx|fashion_mnist).* data\.root=([\w./-]+)", self.idx),
            (r"data=png.* data\.root=([\w./-]+)", self.pictures_by_label),
            *(
                [(r"(?<![\w/=])(DIR|runs/lenet5-0|outputs/[\d-]+/lenet5-\w+)\b", self.finished_run)]
                if reads_runs
                else []
            ),
            *([(r"(?<![\w/=])(runs|outputs/sweeps/\w+)(?![\w/-]*lenet5-0)\b", self.runs)] if reads_runs else []),
            *([(r"'(outputs)/\*\*", self.dated_runs)] if reads_runs else []),
            *([(r"(?<= )([\w-]+\.(?:png|jpg))\b", self.picture)] if line.startswith("mnist-predict") else []),
            (r"predict \S+ (?:.* )?(\w+)/", self.pictures),
            (r"^python (scripts)/", self.scripts),
            (r"^mnist-audit (claims|examples)\b", self.claims),
        ]:
            for name in re.findall(pattern, line):
                if not (where / name).exists():
                    shutil.copytree(make(name), where, dirs_exist_ok=True, symlinks=True)

    @made_once
    def finished_run(self, folder: Path, name: str) -> None:
        shutil.copytree(self._four_runs("") / "four" / "lenet5-0", folder / name)

    @made_once
    def unfinished_run(self, folder: Path, name: str) -> None:
        self._run(f"mnist-train-stopped {SMALL} hydra.run.dir={name}", folder, status=143)

    @made_once
    def unfinished_sweep(self, folder: Path, name: str) -> None:
        self._run(f"mnist-train-stopped -m seed=0,1 {SMALL} hydra.sweep.dir={name}", folder, status=None)

    @made_once
    def runs(self, folder: Path, name: str) -> None:
        shutil.copytree(self._four_runs("") / "four", folder / name)

    @made_once
    def _four_runs(self, folder: Path, name: str) -> None:
        for model in ("lenet5", "mlp"):
            for seed in (0, 1):
                self._run(f"mnist-train {SMALL} model={model} seed={seed} hydra.run.dir=four/{model}-{seed}", folder)

    @made_once
    def dated_runs(self, folder: Path, name: str) -> None:
        for seed in (0, 1):
            self._run(f"mnist-train {SMALL} seed={seed}", folder)

    @made_once
    def idx(self, folder: Path, name: str) -> None:
        write_idx(folder / name)

    @made_once
    def pictures_by_label(self, folder: Path, name: str) -> None:
        digits = mnist5k(mean=0.0, std=1.0)
        for split, labelled in (("train", digits.train), ("test", digits.test)):
            (folder / name / split).mkdir(parents=True)
            for number in range(200):
                pixels = (labelled.images[number] * 255).round().byte().numpy().reshape(28, 28)
                Image.fromarray(pixels).save(folder / name / split / f"{number}_{labelled.labels[number]}.png")

    @made_once
    def picture(self, folder: Path, name: str) -> None:
        write_one(folder / name)

    @made_once
    def pictures(self, folder: Path, name: str) -> None:
        (folder / name).mkdir()
        write_one(folder / name / "one.png")

    @made_once
    def scripts(self, folder: Path, name: str) -> None:
        """A copy of the checkout, because scripts write documents into their own checkout."""
        for part in (name, "docs", "conf", "claims", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))

    @made_once
    def claims(self, folder: Path, name: str) -> None:
        shutil.copytree(ROOT / name, folder / name)

    def _run(self, line: str, folder: Path, status: int | None = 0) -> None:
        done = subprocess.run(
            line.split(), cwd=folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert status is None or done.returncode == status, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"


def write_idx(folder: Path) -> None:
    """Write four files in MNIST's format with the bundled digits."""
    digits = mnist5k(mean=0.0, std=1.0)
    folder.mkdir(parents=True)
    for split, labelled, count in (("train", digits.train, 10_000), ("t10k", digits.test, 1_000)):
        images = np.resize((labelled.images * 255).round().byte().numpy(), (count, 28, 28))
        labels = np.resize(labelled.labels.byte().numpy(), count)
        for content, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
            header = np.array([0x0800 + content.ndim, *content.shape], ">u4").tobytes()
            (folder / f"{split}-{kind}-ubyte").write_bytes(header + content.tobytes())


def write_one(path: Path) -> None:
    """Write a picture of a one, light on dark."""
    pixels = np.zeros((60, 60), dtype=np.uint8)
    pixels[10:50, 28:33] = 255
    Image.fromarray(pixels).save(path)
