"""Where the cache is, and that it is whole or absent."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from mnist_exp.data import cache_directory, files
from mnist_exp.data.files import DataError, Labelled, load_cached, read_bytes, store_cached


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


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match="is a pipe or a device, not a file"):
        read_bytes(tmp_path / "train-images-idx3-ubyte")


def test_a_device_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "endless").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is a pipe or a device, not a file"):
        read_bytes(tmp_path / "endless")


@pytest.mark.parametrize("name", ["digits", "digits.gz"])
def test_sizes_are_bounded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST", 100_000)
    for size, refused in ((100_000, False), (100_001, True), (10_000_000, True)):
        content = bytes(size)
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        if refused:
            with pytest.raises(DataError, match=f"{name}: more than 100000 bytes"):
                read_bytes(tmp_path / name)
        else:
            assert read_bytes(tmp_path / name) == content


def test_a_cache_that_claims_too_much_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_cached(tmp_path / "digits.npz", Labelled(np.zeros((9, 28, 28), np.uint8), np.zeros(9, np.uint8)))
    assert load_cached(tmp_path / "digits.npz") is not None
    monkeypatch.setattr(files, "LARGEST", 5000)
    assert load_cached(tmp_path / "digits.npz") is None


def test_a_cache_of_another_user_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_cached(tmp_path / "digits.npz", Labelled(np.zeros((9, 28, 28), np.uint8), np.zeros(9, np.uint8)))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert load_cached(tmp_path / "digits.npz") is None
