"""Where the cache is, and that it is whole or absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mnist_exp.data import cache_directory
from mnist_exp.data.files import Labelled, load_cached, store_cached


def test_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.setenv("MNIST_EXP_CACHE", "~/own")
    assert cache_directory() == Path("/home/somebody/own")
    monkeypatch.setenv("MNIST_EXP_CACHE", "")
    assert cache_directory() == Path("/elsewhere/mnist-exp")
    monkeypatch.delenv("MNIST_EXP_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path("/home/somebody/.cache/mnist-exp")


def test_every_flipped_byte_of_the_content_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "digits.npz"
    store_cached(path, Labelled(np.arange(784, dtype=np.uint8).reshape(1, 28, 28), np.array([7], np.uint8)))
    whole = path.read_bytes()
    start = whole.index(bytes(range(256)))
    for position in (start, start + 400, start + 783):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert load_cached(path) is None
    path.write_bytes(whole)
    assert load_cached(path) is not None


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": np.zeros((2, 28, 28), np.uint8)},
        {"images": np.zeros((2, 28, 28), np.uint8), "labels": np.zeros(3, np.uint8)},
        {"images": np.zeros((2, 28, 28), np.float32), "labels": np.zeros(2, np.uint8)},
        {"images": np.array([None, {}], dtype=object), "labels": np.zeros(2, np.uint8)},
    ],
)
def test_an_archive_of_something_else_is_no_cache(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "digits.npz", **arrays)
    assert load_cached(tmp_path / "digits.npz") is None


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(file: object, **arrays: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store_cached(tmp_path / "digits.npz", Labelled(np.zeros((1, 28, 28), np.uint8), np.zeros(1, np.uint8)))
    assert list(tmp_path.iterdir()) == []
