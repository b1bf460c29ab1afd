"""The commands of docs/reports.md do what it says."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_exp import predict, report

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "reports.md").read_text()
COMMANDS = [line for block in re.findall(r"^```\n(.*?)^```", TEXT, re.M | re.S) for line in block.splitlines()]
TRAINING = [
    "data=mnist5k",
    "data.limit=320",
    "trainer.epochs=1",
    "trainer.threads=1",
    "trainer.device=cpu",
    "quiet=true",
]


def test_commands(mnist_train: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for model in ("lenet5", "mlp"):
        for seed in range(2):
            place = [f"model={model}", f"seed={seed}", f"hydra.run.dir=runs/{model}-{seed}"]
            assert mnist_train(*TRAINING, *place) == 0
    pixels = np.zeros((60, 60), dtype=np.uint8)
    pixels[10:50, 28:33] = 255
    Image.fromarray(pixels).save("digit.png")

    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        if program == "mnist-report":
            matched = [str(path) for text in arguments for path in sorted(Path().glob(text)) or [text]]
            report.main(arguments if "'" in command else matched)
        elif program == "mnist-predict":
            predict.main(arguments)
        else:
            assert (program, arguments[0]) == ("python", "scripts/draw.py")
            monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
            import draw

            draw.main(arguments[1:])
    assert len(COMMANDS) == 8
    assert Path("comparison/report.html").exists()
    assert Path("everything/results.csv").exists()
    assert Path("outputs/report/wandb_report.json").exists()
    assert Path("lenet5.png").exists()


def test_pictures_exist() -> None:
    pictures = re.findall(r"\]\((pictures/[^)]+)\)", TEXT)
    assert {Path(picture).name for picture in pictures} == {path.name for path in (ROOT / "docs/pictures").iterdir()}
