"""The example that writes a trained network as an ONNX file: run unchanged, and evaluated on the test images of the run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from documented_lines import ROOT
from warm_commands import WarmCommands

from mnist_exp.data import mnist5k
from mnist_exp.runs import read_run

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize("model", ["lenet5", "mlp"])
def test_an_exported_network_answers_as_ours(
    model: str, trained: Callable[..., Path], small: list[str], tmp_path: Path, warm_commands: WarmCommands
) -> None:
    run = trained("run", *small, f"model={model}", "regularization=dropout_batch_norm")
    command = [warm_commands.bin / "python", ROOT / "examples" / "export_onnx.py", "run", "network.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, _, difference = done.stdout.splitlines()[-1].rpartition(" ")
    assert said == "network.onnx: the largest difference from PyTorch's logits is"
    assert float(difference) < 1e-5
    assert [file.name for file in tmp_path.glob("network*")] == ["network.onnx"]
    data = read_run(run).config.data
    images = mnist5k().test.images.numpy() * np.float32(data.std) + np.float32(data.mean)
    (logits,) = onnxruntime.InferenceSession("network.onnx").run(["logits"], {"images": images})
    recorded = np.load(run / "predictions.npz")["logits"]
    np.testing.assert_allclose(logits, recorded, atol=1e-4)
