"""Digits as PNG files, in folders and in tar archives."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_exp.data import DataError, Dataset, idx_folder, png_folder
from mnist_exp.data.files import Labelled
from mnist_exp.data.png import Member, _pixels


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        png_folder(root=str(root))
    message = str(caught.value)
    assert "\n" not in message
    return message


def equal(first: Dataset, second: Dataset) -> bool:
    pairs = [(first.train, second.train), (first.test, second.test)]
    return all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs)


def cached(cache: Path) -> list[Path]:
    return sorted((cache / "png").glob("*")) if (cache / "png").exists() else []


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize(
    ("archive", "inside"), [(None, ""), (".tar", ""), (".tar", "./train/"), (".tar.gz", "some/where/"), (".tgz", "")]
)
def test_the_same_digits_as_idx_give_the_same_tensors(
    idx: Callable[..., Path], png: Callable[..., Path], archive: str | None, inside: str, size: int
) -> None:
    root = png(archive=archive, inside=inside)
    expected = idx_folder(root=str(idx()), download=None, image_size=size)
    assert equal(png_folder(root=str(root), image_size=size), expected)
    assert equal(png_folder(root=str(root), image_size=size), expected), "from the cache"
    assert sorted(path.name for path in root.rglob("*") if path.is_dir()) == ([] if archive else ["test", "train"])


def test_the_whole_test_set_of_mnist(mnist_dir: Path, tmp_path: Path, png_bytes: Callable[[np.ndarray], bytes]) -> None:
    expected = idx_folder(root=str(mnist_dir), download=None, mean=0.0, std=1.0).test
    pixels = (expected.images[:, 0] * 255).round().to(torch.uint8).numpy()
    for split, count in (("train", 1), ("test", 10000)):
        (tmp_path / split).mkdir()
        for number in range(count):
            name = f"{number}_{expected.labels[number]}.png"  # no leading zeros: 10 comes after 9, not after 1
            (tmp_path / split / name).write_bytes(png_bytes(pixels[number]))
    digits = png_folder(root=str(tmp_path), mean=0.0, std=1.0).test
    assert torch.equal(digits.images, expected.images)
    assert torch.equal(digits.labels, expected.labels)


def test_decoded_once(png: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = png()
    first = png_folder(root=str(root))
    assert len(cached(cache)) == 2
    with monkeypatch.context() as patch:
        patch.setattr("mnist_exp.data.png._decode", None)
        assert equal(png_folder(root=str(root)), first)
        root = root.rename(root.with_name("moved"))
        assert equal(png_folder(root=str(root)), first), "the key is the content, not the place"

    image = next((root / "test").glob("*_3.png"))
    other = next((root / "test").glob("*_4.png")).read_bytes()
    image.write_bytes(other)
    assert not equal(png_folder(root=str(root)), first), "another content, another key"
    image.rename(image.with_name(image.name.replace("_3", "_5")))
    assert png_folder(root=str(root)).test.labels[int(image.name[:5])] == 5, "another name, another key"


def test_a_damaged_cache_is_built_again(png: Callable[..., Path], cache: Path) -> None:
    root = png(archive=".tar")
    first = png_folder(root=str(root))
    for path in cached(cache):
        path.write_bytes(path.read_bytes()[:-100])
    assert equal(png_folder(root=str(root)), first)


def test_equal_channels_count_as_grey(png: Callable[..., Path]) -> None:
    root = png()
    first = png_folder(root=str(root))
    path = next((root / "train").iterdir())
    Image.open(path).convert("RGB").save(path)
    assert equal(png_folder(root=str(root)), first)


def test_what_no_person_put_there_is_passed_over(png: Callable[..., Path]) -> None:
    root = png(folder="folders")
    first = png_folder(root=str(root))
    for name in (".DS_Store", "._00000_5.png", "Thumbs.db", "desktop.ini", "Icon\r"):
        (root / "train" / name).write_bytes(b"junk")
        (root / name).write_bytes(b"junk")
    (root / "train" / "__MACOSX").mkdir()
    (root / "train" / "__MACOSX" / "readme").write_bytes(b"junk")
    assert equal(png_folder(root=str(root)), first)

    root = png(archive=".tar", inside="./train/", folder="archives")
    with tarfile.open(root / "train.tar", "a") as tar:
        for name in ("train/._00000_5.png", "__MACOSX/00000_5.png", "./.DS_Store", "train/Thumbs.db"):
            tar.addfile(tarfile.TarInfo(name))
        folder = tarfile.TarInfo("train/")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert equal(png_folder(root=str(root)), first)


def test_a_folder_goes_before_an_archive(png: Callable[..., Path]) -> None:
    root = png()
    (root / "train.tar").write_bytes(b"never read")
    assert len(png_folder(root=str(root)).train) == 60


def saved(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


GREY = saved(Image.fromarray(np.random.default_rng(1).integers(0, 256, (28, 28), dtype=np.uint8)))
COLOUR = Image.new("RGB", (28, 28), (9, 9, 8))


@pytest.mark.parametrize("archive", [None, ".tar"])
@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("7.png", GREY, "not named {number}_{label}.png, nor in a folder named 0 to 9"),
        ("seven_7.png", GREY, "not named {number}_{label}.png, nor in a folder named 0 to 9"),
        ("00007_7.jpg", GREY, "not named {number}_{label}.png, nor in a folder named 0 to 9"),
        ("00007_12.png", GREY, "label 12 is no digit 0..9"),
        ("1000_7.png", b"", "is empty, though its name says so"),
        ("1000_7.png", b"\xff\xd8\xff\xe0 a photograph", "is not a PNG file, though its name says so"),
        ("1000_7.png", GREY[:-40], "unreadable PNG (damaged or truncated)"),
        ("1000_7.png", GREY[:-5], "unreadable PNG (damaged or truncated)"),
        ("1000_7.png", saved(Image.new("L", (28, 32))), "28x32 pixels, expected 28x28"),
        ("1000_7.png", saved(Image.new("L", (1, 1))), "1x1 pixels, expected 28x28"),
        ("1000_7.png", saved(COLOUR), "not grey: mode RGB, expected 8-bit grey (L)"),
        ("1000_7.png", saved(COLOUR.convert("RGBA")), "not grey: mode RGBA, expected 8-bit grey (L)"),
        ("1000_7.png", saved(COLOUR.convert("P")), "not grey: mode P, expected 8-bit grey (L)"),
        ("1000_7.png", saved(Image.new("LA", (28, 28))), "transparent pixels, expected 8-bit grey (L)"),
        ("1000_7.png", saved(Image.new("I;16", (28, 28))), "16 bits a pixel, expected 8-bit grey (L)"),
        ("1/1000_7.png", GREY, "label 7 by its name, 1 by its folder"),
        ("7/1000.png", GREY, "not named {number}_{label}.png, though 00000_{first}.png lies in no folder of its label"),
        ("7/1000.jpg", GREY, "not named *.png"),
        ("12/1000.png", GREY, "not named {number}_{label}.png, nor in a folder named 0 to 9"),
        ("seven/1000.png", GREY, "not named {number}_{label}.png, nor in a folder named 0 to 9"),
        ("00003_{same}.png", GREY, "number 3 occurs twice, also as 00003_{old}.png"),
    ],
)
def test_what_is_wrong_with_an_image(
    png: Callable[..., Path],
    stored: dict[str, Labelled],
    cache: Path,
    archive: str | None,
    name: str,
    content: bytes,
    problem: str,
) -> None:
    root = png(archive=archive)
    old = int(stored["train"].labels[3])
    problem = problem.replace("{first}", str(stored["train"].labels[0]))
    if "{same}" in name:
        name = name.format(same=9)
        problem = problem.format(old=old)
        assert old != 9
    if archive:
        where = f"{root / 'train.tar'}: {name}"
        with tarfile.open(root / "train.tar", "a") as tar:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    else:
        path = root / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        where = str(path)
    if name.startswith("7/1000.png") and archive:  # as it lies in the archive: the others come in another order
        assert refusal(root).startswith(f"{where}: not named {{number}}_{{label}}.png, though 000")
    else:
        assert refusal(root) == f"{where}: {problem}"
    assert cached(cache) == []


def test_no_flipped_byte_of_a_png_goes_unnoticed() -> None:
    """Pillow decodes some damaged pixel data without a word; such an image must not become another digit."""
    original = np.asarray(Image.open(io.BytesIO(GREY)))
    refused = 0
    for position in range(len(GREY)):
        damaged = GREY[:position] + bytes([GREY[position] ^ 0x55]) + GREY[position + 1 :]
        try:
            pixels = _pixels(Member(PurePosixPath("0_0.png"), "0_0.png", damaged))
        except DataError:
            refused += 1
        else:
            assert (pixels == original).all(), position
    assert refused > 0.9 * len(GREY)


def test_an_empty_split(png: Callable[..., Path], tmp_path: Path, cache: Path) -> None:
    root = png()
    for path in (root / "test").iterdir():
        path.unlink()
    (root / "test" / ".DS_Store").touch()
    assert refusal(root) == f"{root / 'test'}: no images"
    (root / "test" / ".DS_Store").unlink()
    (root / "test").rmdir()
    with tarfile.open(root / "test.tar", "w"):
        pass
    assert refusal(root) == f"{root / 'test.tar'}: no images"


def test_a_split_that_is_not_there(png: Callable[..., Path], tmp_path: Path) -> None:
    root = png(archive=".tar")
    (root / "test.tar").unlink()
    problem = f"{root}: no folder, .tar, .tar.gz or .tgz named test or testing; it holds"
    assert refusal(root) == f"{problem} train.tar"
    (root / "test.tar").mkdir()
    (root / "test").touch()
    assert refusal(root) == f"{problem} test.tar/, test, train.tar"
    (root / "t10k-images-idx3-ubyte").touch()
    assert refusal(root) == f"{problem} test.tar/, t10k-images-idx3-ubyte, test, train.tar; data=idx reads IDX files"
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: does not exist"


@pytest.mark.parametrize("cut", [0, 100, 512, 5000, 512 * 30 + 7])
def test_a_truncated_archive(png: Callable[..., Path], cache: Path, cut: int) -> None:
    path = png(archive=".tar") / "train.tar"
    path.write_bytes(path.read_bytes()[:cut])
    assert refusal(path.parent) == f"{path}: damaged tar archive"
    assert cached(cache) == []


def test_an_archive_cut_between_two_images_does_not_pass_for_a_smaller_one(png: Callable[..., Path]) -> None:
    path = png(archive=".tar") / "train.tar"
    with tarfile.open(path) as tar:
        boundary = tar.getmembers()[30].offset
    whole = path.read_bytes()
    path.write_bytes(whole[:boundary])
    assert refusal(path.parent) == f"{path}: damaged tar archive"
    path.write_bytes(whole[:boundary] + b"x" + whole[boundary + 1 :])  # a header that no longer adds up
    assert refusal(path.parent) == f"{path}: damaged tar archive"


def test_other_damaged_archives(png: Callable[..., Path]) -> None:
    path = png(archive=".tgz") / "train.tgz"
    path.write_bytes(path.read_bytes()[:-20])
    assert refusal(path.parent) == f"{path}: damaged gzip"
    path = path.rename(path.with_name("train.tar"))
    assert refusal(path.parent) == f"{path}: damaged tar archive"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("0_0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "elsewhere"
        tar.addfile(link)
    assert refusal(path.parent) == f"{path}: 0_0.png: not a plain file"


def test_an_archive_of_one_header_that_claims_a_tebibyte(png: Callable[..., Path]) -> None:
    path = png(archive=".tar") / "train.tar"
    header = tarfile.TarInfo("0_0.png")
    header.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"%011o\0" % 2**32  # the size with all zeros, of which nothing is stored
    block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]
    path.write_bytes(bytes(block) + bytes(1024))
    assert refusal(path.parent) == f"{path}: 0_0.png: not a plain file"


def test_no_permission(png: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = png()
    forbidden = root / "train" / "sub"
    forbidden.mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path) == forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal(root) == f"{forbidden}: no permission"


def test_one_line_where_there_is_no_terminal(png: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    root = png()
    png_folder(root=str(root))
    captured = capsys.readouterr()
    assert captured.err == f"Decoding 60 images of {root / 'train'}\nDecoding 20 images of {root / 'test'}\n"
    assert captured.out == ""
    png_folder(root=str(root))
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(png: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "300")
    png_folder(root=str(png()))
    assert "100%" in terminal.getvalue()


def by_class(root: Path, names: dict[str, str], stored: dict[str, Labelled], archive: str | None, name: str) -> Path:
    """Both splits with a folder for each digit; ``name`` is filled in with the image's index and its place in its class."""
    for split, (images, labels) in stored.items():
        seen = [0] * 10
        files = {}
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = f"{label}/{name.format(index=index, place=seen[label], label=label)}"
            files[place] = saved(Image.fromarray(image))
            seen[label] += 1
        root.mkdir(exist_ok=True, parents=True)
        if archive:
            with tarfile.open(root / f"{names[split]}{archive}", "w" if archive == ".tar" else "w:gz") as tar:
                for place, content in sorted(files.items(), reverse=True):
                    info = tarfile.TarInfo(f"{names[split]}/{place}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        else:
            for place, content in files.items():
                path = root / names[split] / place
                path.parent.mkdir(exist_ok=True, parents=True)
                path.write_bytes(content)
    return root


@pytest.mark.parametrize("archive", [None, ".tar", ".tgz"])
@pytest.mark.parametrize("name", ["{index}.png", "img_{index}.PNG", "{index:05d}_{label}.png"])
def test_a_folder_for_each_digit(
    idx: Callable[..., Path], stored: dict[str, Labelled], tmp_path: Path, archive: str | None, name: str
) -> None:
    """Where files are named by their place in MNIST, the order is MNIST's."""
    expected = idx_folder(root=str(idx()), download=None)
    names = {"train": "training", "test": "Testing"}
    assert equal(png_folder(root=str(by_class(tmp_path / "first", names, stored, archive, name))), expected)
    names = {"train": "train", "test": "test"}
    by_class(tmp_path / "second" / "mnist_png", names, stored, archive, name)
    (tmp_path / "second" / "notes").mkdir()
    assert equal(png_folder(root=str(tmp_path / "second")), expected)


def test_names_that_repeat_from_class_to_class(stored: dict[str, Labelled], tmp_path: Path) -> None:
    names = {"train": "train", "test": "test"}
    digits = png_folder(root=str(by_class(tmp_path / "root", names, stored, None, "{place}.png")), mean=0.0, std=1.0)
    images, labels = stored["train"]
    expected = [np.flatnonzero(labels == label)[place] for place in range(6) for label in range(10)]
    assert digits.train.labels.tolist() == list(range(10)) * 6
    assert torch.equal(digits.train.images[:, 0], torch.from_numpy(images[expected]) / 255)


def test_what_is_there_twice_is_refused(png: Callable[..., Path], stored: dict[str, Labelled], tmp_path: Path) -> None:
    root = png()
    (root / "training").mkdir()
    assert refusal(root) == f"{root}: train and training are both there; keep one of them"
    (root / "training").rmdir()
    for name in ("a", "b"):
        (tmp_path / "above" / name).mkdir(parents=True)
        for split in ("train", "test"):
            (tmp_path / "above" / name / split).mkdir()
    above = tmp_path / "above"
    assert refusal(above) == f"{above}: a/, b/ hold train and test each; set data.root to one of them"

    names = {"train": "train", "test": "test"}
    root = by_class(tmp_path / "twice", names, stored, ".tar", "{index}.png")
    with tarfile.open(root / "train.tar", "a") as tar:
        info = tarfile.TarInfo(f"./train/{stored['train'].labels[0]}/0.png")
        info.size = len(GREY)
        tar.addfile(info, io.BytesIO(GREY))
    assert refusal(root) == f"{root / 'train.tar'}: {info.name}: occurs twice"


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGB", "RGBA"])
def test_grey_however_it_is_stored(png: Callable[..., Path], mode: str) -> None:
    root = png()
    path = min((root / "train").iterdir())
    image = Image.open(path).point(lambda value: 255 * (value > 99))
    image.save(path)
    first = png_folder(root=str(root))
    image.convert(mode).save(path)
    assert equal(png_folder(root=str(root)), first)


def test_class_folders_that_are_links(stored: dict[str, Labelled], tmp_path: Path) -> None:
    root = by_class(tmp_path / "root", {"train": "train", "test": "test"}, stored, None, "{index}.png")
    (root / "train" / "7").rename(tmp_path / "seven")
    (root / "train" / "7").symlink_to(tmp_path / "seven")
    assert len(png_folder(root=str(root)).train) == 60


def test_class_folders_as_typed(
    stored: dict[str, Labelled],
    tmp_path: Path,
    mnist_train_process: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    root = by_class(tmp_path / "root", {"train": "training", "test": "testing"}, stored, None, "{index}.png")
    (root / "training" / "7" / "Thumbs.db").touch()
    command = ["data=png", f"data.root={root}", "trainer.epochs=1", "logger=none"]
    result = mnist_train_process(*command, "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    assert "Decoding 60 images of" in result.stderr
    (root / "training" / "7" / "notes.txt").touch()
    result = mnist_train_process(*command, "hydra.run.dir=run2")
    assert result.returncode == 2
    assert result.stderr == f"mnist-train: {root / 'training' / '7' / 'notes.txt'}: not named *.png\n"
