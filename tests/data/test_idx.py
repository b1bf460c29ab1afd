"""The four IDX files: read as they are, and refused by name where they are damaged."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mnist_exp.data import DataError, idx_folder
from mnist_exp.data.files import Labelled

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def refusal(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        idx_folder(root=str(root), download=None, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
def test_pixels_and_labels_are_those_of_the_files(
    idx: Callable[..., Path], stored: dict[str, Labelled], gz: bool, dotted: bool
) -> None:
    dataset = idx_folder(root=str(idx(gz=gz, dotted=dotted)), download=None, mean=0.0, std=1.0)
    for split, expected in ((dataset.train, stored["train"]), (dataset.test, stored["test"])):
        assert split.images.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        assert torch.equal(split.images, torch.from_numpy(expected.images).unsqueeze(1) / 255)
        assert split.labels.tolist() == expected.labels.tolist()
        assert len(split) == len(expected.labels)
    assert dataset.val is None


def test_a_plain_file_goes_before_a_gzipped_one(idx: Callable[..., Path]) -> None:
    root = idx()
    (root / f"{IMAGES}.gz").write_bytes(b"never read")
    assert len(idx_folder(root=str(root), download=None).train) == 60


def test_home_is_expanded(idx: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idx(folder="digits")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(idx_folder(root="~/digits", download=None).train) == 60


def test_without_a_root_files_are_taken_from_the_cache(idx: Callable[..., Path], cache: Path) -> None:
    cache.mkdir()
    idx().rename(cache / "KMNIST")
    assert len(idx_folder(root=None, download="KMNIST").train) == 60


def test_a_damaged_file_is_reported_and_left_alone_even_where_it_could_be_downloaded(idx: Callable[..., Path]) -> None:
    path = idx(gz=True) / f"{IMAGES}.gz"
    path.write_bytes(b"not gzip")  # a page with an error message, for instance
    with pytest.raises(DataError) as caught:
        idx_folder(root=str(path.parent), download="MNIST")
    assert str(caught.value) == f"{path}: is not gzip, though its name says so"
    assert path.read_bytes() == b"not gzip"


@pytest.mark.parametrize(
    ("name", "damage", "problem"),
    [
        (IMAGES, lambda b: b"\x00\x00\x08\x01" + b[4:], "wrong magic number 0x00000801, expected 0x00000803"),
        (
            LABELS,
            gzip.compress,
            "wrong magic number 0x1f8b0800, expected 0x00000801; it is gzip, so let its name end in .gz",
        ),
        (LABELS, lambda b: b"\x89PNG" + b[4:], "wrong magic number 0x89504e47, expected 0x00000801"),
        (IMAGES, lambda b: b[:-1], "truncated: 47055 bytes, expected 47056"),
        (IMAGES, lambda b: b[:12], "truncated: 12 bytes, the header alone has 16"),
        (LABELS, lambda b: b"", "truncated: 0 bytes, the header alone has 8"),
        (LABELS, lambda b: b + b"\0\0", "trailing bytes: 70 bytes, expected 68"),
        (LABELS, lambda b: struct.pack(">2I", 0x801, 59) + b[8:-1], f"59 labels, but 60 images in {IMAGES}"),
        (LABELS, lambda b: b[:11] + b"\x0c" + b[12:], "label 12 at index 3 is no digit 0..9"),
        (IMAGES, lambda b: struct.pack(">4I", 0x803, 30, 56, 28) + b[16:], "images of 56x28 pixels, expected 28x28"),
        (IMAGES, lambda b: struct.pack(">4I", 0x803, 0, 28, 28), "no images"),
        (
            IMAGES,
            lambda b: struct.pack(">4I", 0x803, *[2**32 - 1] * 3) + b[16:],
            f"truncated: 47056 bytes, expected {16 + (2**32 - 1) ** 3}",
        ),
    ],
)
def test_what_is_wrong_with_a_file(
    idx: Callable[..., Path], cache: Path, name: str, damage: Callable[[bytes], bytes], problem: str
) -> None:
    path = idx() / name
    path.write_bytes(damage(path.read_bytes()))
    assert refusal(path.parent) == f"{path}: {problem}"
    assert not cache.exists()


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-9], lambda b: b[:40] + b"\xff\xff" + b[42:], lambda b: b[:2] + b"no" + b[4:], lambda b: b + b"junk"],
)
def test_damaged_gzip(idx: Callable[..., Path], damage: Callable[[bytes], bytes]) -> None:
    path = idx(gz=True) / f"{LABELS}.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert refusal(path.parent) == f"{path}: damaged gzip"


def test_gzip_hides_no_truncation(idx: Callable[..., Path]) -> None:
    path = idx(gz=True) / f"{LABELS}.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    assert refusal(path.parent) == f"{path}: truncated: 67 bytes, expected 68"


def test_missing_files_are_listed(idx: Callable[..., Path]) -> None:
    root = idx()
    (root / IMAGES).unlink()
    (root / "t10k-labels-idx1-ubyte").unlink()
    assert refusal(root) == (
        f"{root}: missing {IMAGES}, t10k-labels-idx1-ubyte (plain or .gz); it holds t10k-images-idx3-ubyte, {LABELS}"
    )


def test_a_folder_that_is_none(idx: Callable[..., Path], tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: does not exist"
    path = idx() / LABELS
    assert refusal(path) == f"{path}: is not a folder"
    path.unlink()
    path.mkdir()
    assert refusal(path.parent).startswith(
        f"{path.parent}: missing {LABELS} (plain or .gz); it holds {LABELS}/, t10k-im"
    )
    path.rmdir()
    path.symlink_to(tmp_path / "nowhere")
    assert refusal(path.parent) == f"{path}: does not exist"
    assert refusal(Path("~nobody-here/x")) == "data.root=~nobody-here/x: ~nobody-here is nobody's home here"


def test_no_permission(idx: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = idx()

    def forbidden(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")  # what root, who runs tests in containers, never sees

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", forbidden)
        assert refusal(root) == f"{root / IMAGES}: no permission"
    monkeypatch.setattr(os, "scandir", forbidden)
    assert refusal(root) == f"{root}: no permission"


def test_nothing_says_where_the_digits_are() -> None:
    with pytest.raises(DataError) as caught:
        idx_folder(root=None, download=None)
    assert str(caught.value) == (
        "data.root and data.download are both null; set data.root to a folder with the four IDX files"
    )


def test_an_unknown_download() -> None:
    with pytest.raises(DataError) as caught:
        idx_folder(root=None, download="EMNIST")
    assert str(caught.value) == "data.download=EMNIST is not one of MNIST, FashionMNIST, KMNIST or null"


def test_the_whole_mnist(mnist_dir: Path) -> None:
    start = time.process_time()
    dataset = idx_folder(root=str(mnist_dir), download=None)
    seconds = time.process_time() - start
    assert dataset.train.images.shape == (60000, 1, 28, 28)
    assert dataset.test.images.shape == (10000, 1, 28, 28)
    assert dataset.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert dataset.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # 0.1307 and 0.3081 are the training pixels' mean and standard deviation to four places.
    assert abs(dataset.train.images.mean().item()) < 2e-4
    assert dataset.train.images.std().item() == pytest.approx(1, abs=2e-4)
    assert dataset.train.images.min().item() == dataset.background
    assert seconds < 5  # under 1.5 s on two idle cores


def spread(source: Path, root: Path, where: Callable[[str], str]) -> Path:
    """The files of ``source`` below ``root``, each where its name says."""
    for path in source.iterdir():
        target = root / where(path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return root


@pytest.mark.parametrize(
    "where",
    [
        lambda name: f"{name}/{name}",
        lambda name: f"{name}/{name.replace('-idx', '.idx')}",  # as 7-Zip unpacks
        lambda name: f"{name.replace('-idx', '.idx')}/{name}",
        lambda name: f"MNIST/raw/{name}",
        lambda name: f"KMNIST/raw/{name}",
        lambda name: f"raw/{name}",
        lambda name: f"any folder/{name}",
        lambda name: f"archive/{name}/{name}",
    ],
)
@pytest.mark.parametrize("gz", [False, True])
def test_layouts_that_are_known(
    idx: Callable[..., Path], tmp_path: Path, stored: dict[str, Labelled], where: Callable[[str], str], gz: bool
) -> None:
    root = spread(idx(gz=gz), tmp_path / "root", where)
    (root / ".hidden").mkdir()
    spread(idx(folder="other"), root, lambda name: f"__MACOSX/{name}")
    dataset = idx_folder(root=str(root), download=None)
    assert dataset.train.labels.tolist() == stored["train"].labels.tolist()
    assert dataset.test.labels.tolist() == stored["test"].labels.tolist()


def test_a_file_goes_before_a_folder_of_its_name(idx: Callable[..., Path]) -> None:
    """The best known MNIST on Kaggle has each file, and a folder of the same name that holds it again."""
    root = idx(dotted=True)
    for path in list(root.iterdir()):
        folder = root / path.name.replace(".idx", "-idx")
        folder.mkdir()
        (folder / folder.name).write_bytes(b"never read")
    assert len(idx_folder(root=str(root), download=None).train) == 60


def test_several_data_sets_below(idx: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for MNIST gets what is called so; who does not say which is asked."""
    fetched = []
    monkeypatch.setattr(
        "mnist_exp.data.idx.fetch", lambda dataset, names, folder: fetched.append((dataset, len(names)))
    )
    root = spread(idx(), tmp_path / "root", lambda name: f"FashionMNIST/raw/{name}")
    with pytest.raises(DataError, match="does not exist"):
        idx_folder(root=str(root), download="MNIST")
    assert fetched == [("MNIST", 4)], "other pictures under the same names are not MNIST"
    spread(tmp_path / "idx", root, lambda name: f"MNIST/raw/{name}")
    assert len(idx_folder(root=str(root), download="MNIST").train) == 60
    assert len(idx_folder(root=str(root), download="FashionMNIST").train) == 60
    assert refusal(root) == (
        f"{root}: MNIST/raw/, FashionMNIST/raw/ hold such files each; set data.root to one of them"
    )

    root = spread(tmp_path / "idx", tmp_path / "second", lambda name: f"a/{name}")
    spread(tmp_path / "idx", root, lambda name: f"fashion_mnist/{name}")
    assert len(idx_folder(root=str(root), download="MNIST").train) == 60
    spread(tmp_path / "idx", root, lambda name: f"b/{name}")
    with pytest.raises(DataError, match="a/, b/ hold such files each"):
        idx_folder(root=str(root), download="MNIST")
    assert len(idx_folder(root=str(root), download="FashionMNIST").train) == 60
    assert len(fetched) == 1


def test_what_is_found_instead_is_said(tmp_path: Path, png: Callable[..., Path]) -> None:
    files = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"
    assert refusal(tmp_path) == f"{tmp_path}: missing {files} (plain or .gz); it is empty"
    root = png()
    assert refusal(root) == (
        f"{root}: missing {files} (plain or .gz); it holds test/, train/; data=png reads PNG files"
    )
    for name in ("mnist.npz", "Thumbs.db", "a", "b", "c"):
        (root / name).touch()
    assert "; it holds test/, train/, a, b, c and 1 more" in refusal(root)


def test_torchvision_s_folder_as_typed(
    idx: Callable[..., Path], tmp_path: Path, mnist_train_process: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Nothing is downloaded again, and the console says where the files are."""
    root = spread(idx(gz=True), tmp_path / "root", lambda name: f"MNIST/raw/{name}")
    result = mnist_train_process(f"data.root={root}", "trainer.epochs=1", "logger=none", "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"data: the files are in {root / 'MNIST' / 'raw'}\n")
    assert "Downloading" not in result.stderr
