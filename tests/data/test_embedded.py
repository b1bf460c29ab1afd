"""The 5,000 digits that come with the package."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_exp.data import DataError, embedded, idx_folder, mnist5k


def test_the_split_is_fixed() -> None:
    dataset = mnist5k(mean=0.0, std=1.0)
    assert (len(dataset.train), len(dataset.test)) == (4000, 1000)
    assert dataset.train.labels.tolist() == list(range(10)) * 400
    assert dataset.test.labels.tolist() == list(range(10)) * 100
    pixels = (dataset.test.images * 255).round().to(torch.uint8).numpy().tobytes()
    assert hashlib.sha256(pixels).hexdigest() == "05f16c885f80bb90594fc5376d4c5fdcd5d3fabe6e5d3e6085255628eecfeaa3"


def test_they_are_mnist_training_digits_each_once(mnist_dir: Path) -> None:
    mnist = idx_folder(root=str(mnist_dir), download=None).train
    known = {image.numpy().tobytes(): int(label) for image, label in zip(mnist.images, mnist.labels, strict=True)}
    dataset = mnist5k()
    images = [image.numpy().tobytes() for split in (dataset.train, dataset.test) for image in split.images]
    assert len(set(images)) == 5000
    assert [known[image] for image in images] == list(range(10)) * 500


def test_the_file_is_made_from_mnist(mnist_dir: Path, tmp_path: Path) -> None:
    import make_mnist5k

    make_mnist5k.main(tmp_path / "mnist5k.npz")
    made, shipped = (np.load(path) for path in (tmp_path / "mnist5k.npz", embedded.FILE))
    assert all(np.array_equal(made[name], shipped[name]) for name in ("images", "labels"))


@pytest.mark.parametrize("damage", ["missing", "truncated", "other digits", "no archive"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "mnist5k.npz"
    if damage == "truncated":
        path.write_bytes(embedded.FILE.read_bytes()[:1000])
    elif damage == "other digits":
        np.savez(path, images=np.zeros((5000, 28, 28), np.uint8), labels=np.zeros(5000, np.uint8))
    elif damage == "no archive":
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"install mnist-exp again"):
        embedded.load(path)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from mnist_exp.data import mnist5k; mnist5k(); "
        "print(sorted({'torchvision', 'PIL', 'rich', 'pandas', 'hydra', 'wandb'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
