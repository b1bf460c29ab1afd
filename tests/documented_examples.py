"""Makes the things that documented lines name: run directories, sweeps, pictures, folders of data sets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

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


class Examples:
    """Makes each thing once, in its own folder, and copies it to the folder in which a line is run.

    Args:
        folder: for the things made.
        cache: may be shared with other processes; the first process fills it.
        commands: used to make the things.

    ``environment`` is the environment of the lines: the commands are first on the path, and the cache holds MNIST,
    FashionMNIST and KMNIST as if they had been downloaded. All three contain the bundled digits, 10,000 to train (so
    that 5,000 can be held out) and 1,000 to test.
    """

    def __init__(self, folder: Path, cache: Path, commands: WarmCommands) -> None:
        self._folder = folder
        stopped = folder / "stopped.py"
        stopped.write_text(STOPPED)
        commands.add("mnist-train-stopped", stopped)
        commands.add("python", None)
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
        ]:
            for name in re.findall(pattern, line):
                if not (where / name).exists():
                    shutil.copytree(make(name), where, dirs_exist_ok=True, symlinks=True)

    # Cached without limit on purpose (B019): the one object of this class exists until the test process ends.
    @cache  # noqa: B019
    def finished_run(self, name: str) -> Path:
        return self._copy(self._four_runs() / "four" / "lenet5-0", name)

    @cache  # noqa: B019
    def unfinished_run(self, name: str) -> Path:
        return self._run(f"mnist-train-stopped {SMALL} hydra.run.dir={name}", status=143)

    @cache  # noqa: B019
    def unfinished_sweep(self, name: str) -> Path:
        return self._run(f"mnist-train-stopped -m seed=0,1 {SMALL} hydra.sweep.dir={name}", status=None)

    @cache  # noqa: B019
    def runs(self, name: str) -> Path:
        return self._copy(self._four_runs() / "four", name)

    @cache  # noqa: B019
    def _four_runs(self) -> Path:
        each = [f"model={model} seed={seed}" for model in ("lenet5", "mlp") for seed in (0, 1)]
        return self._run(
            *(f"mnist-train {SMALL} {run} hydra.run.dir=four/{run[6:].replace(' seed=', '-')}" for run in each)
        )

    @cache  # noqa: B019
    def dated_runs(self, name: str) -> Path:
        return self._run(*(f"mnist-train {SMALL} seed={seed}" for seed in (0, 1)))

    @cache  # noqa: B019
    def idx(self, name: str) -> Path:
        write_idx(self._empty() / name)
        return self._latest

    @cache  # noqa: B019
    def pictures_by_label(self, name: str) -> Path:
        digits = mnist5k(mean=0.0, std=1.0)
        for split, labelled in (("train", digits.train), ("test", digits.test)):
            folder = (self._empty() if split == "train" else self._latest) / name / split
            folder.mkdir(parents=True)
            for number in range(200):
                pixels = (labelled.images[number] * 255).round().byte().numpy().reshape(28, 28)
                Image.fromarray(pixels).save(folder / f"{number}_{labelled.labels[number]}.png")
        return self._latest

    @cache  # noqa: B019
    def picture(self, name: str) -> Path:
        write_one(self._empty() / name)
        return self._latest

    @cache  # noqa: B019
    def pictures(self, name: str) -> Path:
        (self._empty() / name).mkdir()
        write_one(self._latest / name / "one.png")
        return self._latest

    @cache  # noqa: B019
    def scripts(self, name: str) -> Path:
        """A copy of the checkout, because scripts write documents into their own checkout."""
        folder = self._empty()
        for part in (name, "docs", "conf", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        return folder

    def _empty(self) -> Path:
        self._latest = self._folder / f"example-{len(list(self._folder.iterdir()))}"
        self._latest.mkdir()
        return self._latest

    def _copy(self, what: Path, name: str) -> Path:
        folder = self._empty()
        shutil.copytree(what, folder / name)
        return folder

    def _run(self, *lines: str, status: int | None = 0) -> Path:
        folder = self._empty()
        for line in lines:
            done = subprocess.run(
                line.split(), cwd=folder, env=self.environment, capture_output=True, text=True, check=False
            )
            assert status is None or done.returncode == status, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return folder


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
