"""Digits as PNG files, in folders or tar archives."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray

from mnist_exp.data.files import (
    DataError,
    Labelled,
    Listing,
    cache_directory,
    describe,
    folder_of,
    is_system_file,
    listing,
    load_cached,
    read_bytes,
    store_cached,
)
from mnist_exp.data.splits import Dataset, Preparation, prepare
from mnist_exp.runs.provenance import available_cores

LOG = logging.getLogger("mnist_exp")
SPLITS = {"train": ("train", "training"), "test": ("test", "testing")}  # names of folders and archives, in any case
ARCHIVES = (".tar", ".tar.gz", ".tgz")
SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK = 512  # images a thread decodes at a time


class Member(NamedTuple):
    """A file of a split: its path inside the folder or archive, its name in error messages, and its bytes."""

    path: PurePosixPath
    where: str
    content: bytes


def png_folder(*, root: str, **preparation: Unpack[Preparation]) -> Dataset:
    """Digits from 28x28 grey PNG files, named ``{number}_{label}.png`` or in a folder named after their label.

    Numbered files are sorted by number; files in folders by name in natural order (``2`` before ``10``), then by label.
    They are decoded once; the result is stored in the cache under a hash of all names and bytes of the source.

    Args:
        root: holds ``train`` (or ``training``) and ``test`` (or ``testing``), each a folder or a ``.tar``, ``.tar.gz`` or
            ``.tgz``; or a single folder that holds both. A folder is preferred to an archive. Subfolders are searched;
            system files are ignored.
        preparation: see ``mnist_exp.data.splits.prepare``.

    Raises:
        DataError: a split is missing, ambiguous, empty or unreadable; a file has another name, is not a PNG, not 28x28 or
            not grey; or its name and its folder give different labels.
    """
    folder = folder_of(root)
    listed = listing(folder)
    sources = _sources(folder, listed)
    if len(sources) < len(SPLITS):
        below = [folder / name for name in sorted(listed.folders) if name.lower() not in sum(SPLITS.values(), ())]
        complete = [path for path in below if len(_sources(path, listing(path))) == len(SPLITS)]
        if len(complete) > 1:
            several = ", ".join(f"{path.name}/" for path in complete)
            raise DataError(f"{folder}: {several} hold train and test each; set data.root to one of them")
        if not complete:
            split = next(split for split in SPLITS if split not in sources)
            hint = "; data=idx reads IDX files" if any("ubyte" in name for name in listed.files) else ""
            raise DataError(
                f"{folder}: no folder, .tar, .tar.gz or .tgz named {' or '.join(SPLITS[split])}; {listed}{hint}"
            )
        LOG.info("data: the images are in %s", complete[0])
        sources = _sources(complete[0], listing(complete[0]))
    return prepare(_read_split(sources["train"]), _read_split(sources["test"]), **preparation)


def _sources(root: Path, listed: Listing) -> dict[str, Path]:
    """The folder or archive of each split that exists.

    Raises:
        DataError: a split has more than one name.
    """
    sources = {}
    for split, stems in SPLITS.items():
        found: dict[str, list[Path]] = {}  # by stem, folders before archives
        for suffix in ("", *ARCHIVES):
            for name in sorted(listed.files if suffix else listed.folders):
                stem = name[: len(name) - len(suffix)]
                if stem.lower() in stems and name == stem + suffix:
                    found.setdefault(stem, []).append(root / name)
        if len(found) > 1:
            several = " and ".join(paths[0].name for paths in found.values())
            raise DataError(f"{root}: {several} are both there; keep one of them")
        if found:
            ((sources[split], *_),) = found.values()
    return sources


def _read_split(source: Path) -> Labelled:
    members = list(_files(source)) if source.is_dir() else None
    if members is not None:
        # With the lengths, two sources whose names and bytes join to the same text have different keys.
        parts = (b"%s\0%d\0%s" % (os.fsencode(str(m.path)), len(m.content), m.content) for m in members)
        key = _digest(b"folder 2", parts)
    else:
        archive = read_bytes(source)
        key = _digest(b"tar 2", [archive])

    cache = cache_directory() / "png" / f"{key}.npz"
    digits = load_cached(cache)
    if digits is None:
        digits = _decode(source, list(_archived(source, archive)) if members is None else members)
        store_cached(cache, digits)
    return digits


def _digest(kind: bytes, parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256(kind)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Member]:
    """The files of a folder and its subfolders, sorted by path."""

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: {describe(error)}") from error

    paths = []
    for parent, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        folders[:] = [name for name in folders if not is_system_file(PurePath(name))]
        paths += [Path(parent, name) for name in names if not is_system_file(PurePath(name))]
    for path in sorted(paths):
        yield Member(PurePosixPath(path.relative_to(folder).as_posix()), str(path), read_bytes(path))


def _archived(path: Path, content: bytes) -> Iterator[Member]:
    """The files of a tar archive, without unpacking it to disk."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for info in tar:
                inside = PurePosixPath(info.name)
                if info.isdir() or is_system_file(inside):
                    continue
                # A small sparse file can expand to any number of zeros.
                file = tar.extractfile(info) if info.isfile() and not info.issparse() else None
                if file is None:
                    raise DataError(f"{path}: {info.name}: not a plain file")
                yield Member(inside, f"{path}: {info.name}", file.read())
            end = content[tar.offset :]
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{path}: damaged tar archive") from error
    # tarfile stops silently at a damaged header; a complete archive ends with blocks of zeros (POSIX.1-2001, pax).
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise DataError(f"{path}: damaged tar archive")


def _decode(source: Path, members: Sequence[Member]) -> Labelled:
    if not members:
        raise DataError(f"{source}: no images")
    ordered = _labelled(members)
    labels = np.array([label for label, _ in ordered], dtype=np.uint8)
    chunks = [[member for _, member in ordered[i : i + CHUNK]] for i in range(0, len(ordered), CHUNK)]
    with ThreadPoolExecutor(max_workers=min(8, available_cores())) as pool:
        decoded = pool.map(lambda chunk: np.stack([_pixels(member) for member in chunk]), chunks)
        images = np.concatenate(
            list(_with_progress(decoded, len(chunks), f"Decoding {len(ordered)} images of {source}"))
        )
    return Labelled(images, labels)


def _labelled(members: Sequence[Member]) -> list[tuple[int, Member]]:
    """Members with their labels, sorted by number, or by name if all are in folders of their labels.

    Raises:
        DataError: a member has no label or two labels; a number or a path occurs twice; or only some have numbers.
    """
    labels, numbers, foldered = [], [], []
    for member in members:
        name = re.fullmatch(r"([0-9]+)_([0-9]+)\.png", member.path.name, re.IGNORECASE)
        folder = member.path.parent.name if re.fullmatch("[0-9]", member.path.parent.name) else None
        if name is None and folder is None:
            raise DataError(f"{member.where}: not named {{number}}_{{label}}.png, nor in a folder named 0 to 9")
        if name is None and member.path.suffix.lower() != ".png":
            raise DataError(f"{member.where}: not named *.png")
        if name is not None and int(name[2]) > 9:
            raise DataError(f"{member.where}: label {int(name[2])} is no digit 0..9")
        if name is not None and folder is not None and int(name[2]) != int(folder):
            raise DataError(f"{member.where}: label {int(name[2])} by its name, {folder} by its folder")
        labels.append(int(name[2] if name is not None else folder or 0))
        numbers.append(None if name is None else int(name[1]))
        foldered.append(folder is not None)

    if all(foldered):
        keys = [
            (_natural(member.path.stem), label, str(member.path)) for member, label in zip(members, labels, strict=True)
        ]
        if twice := _repeated([member.path for member in members]):
            raise DataError(f"{members[twice[1]].where}: occurs twice")
        order = sorted(range(len(members)), key=keys.__getitem__)
    else:
        if None in numbers:
            unnumbered, loose = members[numbers.index(None)], members[foldered.index(False)]
            raise DataError(
                f"{unnumbered.where}: not named {{number}}_{{label}}.png, though {loose.path} lies in no folder of its label"
            )
        if twice := _repeated(numbers):
            first, second = (members[index] for index in twice)
            raise DataError(f"{second.where}: number {numbers[twice[1]]} occurs twice, also as {first.path.name}")
        order = sorted(range(len(members)), key=lambda index: numbers[index] or 0)
    return [(labels[index], members[index]) for index in order]


def _natural(name: str) -> list[str | int]:
    """A key that sorts ``2`` before ``10``; text and numbers alternate, so that keys can be compared."""
    return [int(part) if part.isdecimal() and part.isascii() else part for part in re.split("([0-9]+)", name)]


def _repeated(values: Sequence[object]) -> tuple[int, int] | None:
    """The two indices of the first value that occurs twice; None if there is none."""
    first: dict[object, int] = {}
    for index, value in enumerate(values):
        if value in first:
            return first[value], index
        first[value] = index
    return None


def _pixels(member: Member) -> NDArray[np.uint8]:
    """The pixels (28, 28), uint8."""
    from PIL import Image

    if not member.content.startswith(SIGNATURE):
        raise DataError(
            f"{member.where}: {'is not a PNG file' if member.content else 'is empty'}, though its name says so"
        )
    try:
        with Image.open(io.BytesIO(member.content), formats=["PNG"]) as image:
            image.verify()  # decoding alone does not check the checksums of pixel data
        with Image.open(io.BytesIO(member.content), formats=["PNG"]) as image:
            size, mode = image.size, image.mode
            pixels = np.asarray(image if mode == "L" else image.convert("RGBA")) if size == (28, 28) else None
    except (
        Exception
    ) as error:  # Pillow has no common exception: OSError, SyntaxError, ValueError, zlib.error, struct.error
        raise DataError(f"{member.where}: unreadable PNG (damaged or truncated)") from error
    if pixels is None:
        raise DataError(f"{member.where}: {size[0]}x{size[1]} pixels, expected 28x28")
    if mode.startswith("I"):
        raise DataError(f"{member.where}: 16 bits a pixel, expected 8-bit grey (L)")
    if mode == "L":
        return pixels
    if (pixels[..., 3] != 255).any():
        raise DataError(f"{member.where}: transparent pixels, expected 8-bit grey (L)")
    if (pixels[..., :3] != pixels[..., :1]).any():
        raise DataError(f"{member.where}: not grey: mode {mode}, expected 8-bit grey (L)")
    return pixels[..., 0]


def _with_progress(parts: Iterator[NDArray[np.uint8]], total: int, description: str) -> Iterator[NDArray[np.uint8]]:
    """Yield ``parts`` with a progress bar on a terminal, or one line elsewhere."""
    if not sys.stderr.isatty():
        print(description, file=sys.stderr)
        yield from parts
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(parts, description, total, transient=True, console=Console(stderr=True))
