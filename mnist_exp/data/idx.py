"""Reading of IDX files, the format of MNIST and similar data sets.

The format: http://yann.lecun.com/exdb/mnist/. Big-endian 32-bit header: a magic number (0x0803 images, 0x0801 labels),
then the size of each dimension; then unsigned bytes, last dimension fastest.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from mnist_exp.data.download import DOWNLOADABLE, fetch
from mnist_exp.data.files import DataError, Labelled, Listing, cache_directory, folder_of, listing, read_bytes
from mnist_exp.data.splits import Dataset, Preparation, prepare

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
# Data sets with the same file names, by the names of their folders in lower case without punctuation.
OTHER_DATA_SETS = frozenset({"mnist", "fashionmnist", "fashion", "kmnist", "kuzushijimnist", "emnist", "notmnist"})
LOG = logging.getLogger("mnist_exp")


def idx_folder(*, root: str | None, download: str | None, **preparation: Unpack[Preparation]) -> Dataset:
    """Digits from four IDX files, plain or gzipped.

    Args:
        root: the folder that holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``
            and ``t10k-labels-idx1-ubyte``, with or without ``.gz``; ``train-images.idx3-ubyte`` is accepted too, and each
            file may be in a folder of its own name. If they are not there, torchvision's ``MNIST/raw`` below it is
            used, or the only folder below it that has them. None: a folder of the cache, named after ``download``.
        download: the data set to download into ``root`` if files are missing: ``MNIST``, ``FashionMNIST`` or ``KMNIST``.
            None: no download.
        preparation: see ``mnist_exp.data.splits.prepare``.

    Raises:
        DataError: files are missing and cannot be downloaded, or are unreadable, damaged or inconsistent; or several folders
            hold such files.
    """
    if download is not None and download not in DOWNLOADABLE:
        raise DataError(f"data.download={download} is not one of {', '.join(DOWNLOADABLE)} or null")
    if root:
        folder = folder_of(root)
    elif download:
        folder = cache_directory() / download
    else:
        raise DataError("data.root and data.download are both null; set data.root to a folder with the four IDX files")

    listed = listing(folder, may_be_absent=download is not None)
    paths = _files_in(folder, listed)
    if len(paths) < len(FILES) and root and (below := _folder_below(folder, listed, download)):
        LOG.info("data: the files are in %s", below)
        paths = _files_in(below, listing(below))
    if missing := [file for file in FILES if file not in paths]:
        if download is None:
            hint = (
                "; data=png reads PNG files" if any(split in listed.folders for split in ("train", "training")) else ""
            )
            raise DataError(f"{folder}: missing {', '.join(missing)} (plain or .gz); {listed}{hint}")
        fetch(download, [f"{file}.gz" for file in missing], folder)
        paths |= {file: folder / f"{file}.gz" for file in missing}
    images, labels, test_images, test_labels = (paths[file] for file in FILES)
    return prepare(_read_pair(images, labels), _read_pair(test_images, test_labels), **preparation)


def _files_in(folder: Path, listed: Listing) -> dict[str, Path]:
    """The path of each of ``FILES`` found in the folder, or in a folder of its own name, as some archives unpack."""
    found = {}
    for file in FILES:
        names = _spellings(file)
        paths = [folder / name for name in names if name in listed.files]
        for name in () if paths else listed.folders.intersection(names):
            inside = listing(folder / name).files
            paths += [folder / name / spelling for spelling in names if spelling in inside]
        if paths:
            found[file] = paths[0]
    return found


def _folder_below(folder: Path, listed: Listing, download: str | None) -> Path | None:
    """The subfolder that holds all files: torchvision's, else one directly below; None if there is none.

    Args:
        download: the data set, if known; folders named after another data set are ignored then.

    Raises:
        DataError: several subfolders hold all files.
    """

    def holding_all(names: Iterable[str]) -> list[str]:
        present = [name for name in names if name.partition("/")[0] in listed.folders and (folder / name).is_dir()]
        return [name for name in present if len(_files_in(folder / name, listing(folder / name))) == len(FILES)]

    others = OTHER_DATA_SETS - {_plain(download)} if download else frozenset()
    found = holding_all(f"{name}/raw" for name in ([download] if download else DOWNLOADABLE))
    if not (download and found):  # else torchvision's folder of the requested data set is used
        found += holding_all(sorted(name for name in listed.folders if _plain(name) not in others))
    if len(found) > 1:
        own = [name for name in found if download and _plain(name) == _plain(download)]
        if len(own) != 1:
            several = ", ".join(f"{name}/" for name in found)
            raise DataError(f"{folder}: {several} hold such files each; set data.root to one of them")
        found = own
    return folder / found[0] if found else None


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _spellings(file: str) -> list[str]:
    dotted = file.replace("-idx", ".idx")
    return [file, f"{file}.gz", dotted, f"{dotted}.gz"]


def _read_pair(image_path: Path, label_path: Path) -> Labelled:
    images, labels = _read(image_path, dimensions=3), _read(label_path, dimensions=1)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{image_path}: images of {images.shape[1]}x{images.shape[2]} pixels, expected 28x28")
    if len(images) == 0:
        raise DataError(f"{image_path}: no images")
    if len(labels) != len(images):
        raise DataError(f"{label_path}: {len(labels)} labels, but {len(images)} images in {image_path.name}")
    if (wrong := np.flatnonzero(labels > 9)).size:
        raise DataError(f"{label_path}: label {labels[wrong[0]]} at index {wrong[0]} is no digit 0..9")
    return Labelled(images, labels)


def _read(path: Path, dimensions: int) -> NDArray[np.uint8]:
    content = read_bytes(path)
    header = 4 * (1 + dimensions)
    magic = 0x0800 + dimensions
    if len(content) >= 4 and (found := int.from_bytes(content[:4], "big")) != magic:
        hint = "; it is gzip, so let its name end in .gz" if found >> 16 == 0x1F8B else ""
        raise DataError(f"{path}: wrong magic number 0x{found:08x}, expected 0x{magic:08x}{hint}")
    if len(content) < header:
        raise DataError(f"{path}: truncated: {len(content)} bytes, the header alone has {header}")
    shape = [int(size) for size in np.frombuffer(content, ">u4", count=dimensions, offset=4)]
    expected = header + math.prod(shape)
    if len(content) != expected:
        problem = "truncated" if len(content) < expected else "trailing bytes"
        raise DataError(f"{path}: {problem}: {len(content)} bytes, expected {expected}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
