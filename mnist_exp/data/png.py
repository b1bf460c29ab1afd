"""Digits as PNG files, in folders or tar archives."""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray

from mnist_exp.data.files import (
    DataError,
    Labelled,
    cache_directory,
    describe,
    load_cached,
    names_in,
    read_bytes,
    store_cached,
)
from mnist_exp.data.splits import Digits, Preparation, prepare

CHUNK = 512  # images a thread decodes at a time


class Member(NamedTuple):
    """A file of a split: its path inside the folder or archive, what an error calls it, and its bytes."""

    path: PurePosixPath
    where: str
    content: bytes


def png_folder(*, root: str, **preparation: Unpack[Preparation]) -> Digits:
    """Digits from 28x28 grey PNG files named ``{number}_{label}.png``, in the order of their numbers.

    They are decoded once; the result is kept in the cache under a key of every name and byte of the source.

    Args:
        root: holds ``train`` and ``test``, each a folder or a ``.tar``, ``.tar.gz`` or ``.tgz``. A folder goes first
            where both are there. Sub-folders are searched; hidden files and ``__MACOSX`` are passed over.
        preparation: see ``mnist_exp.data.splits.prepare``.

    Raises:
        DataError: a split is missing, empty or unreadable; a file has another name, is no PNG, not 28x28 or not grey.
    """
    folder = Path(root).expanduser()
    names = names_in(folder)
    return prepare(_read_split(folder, "train", names), _read_split(folder, "test", names), **preparation)


def _read_split(root: Path, split: str, names: set[str]) -> Labelled:
    if split in names:
        source = root / split
        members = list(_files(source))
        # Lengths keep two sources apart whose names and bytes run together to the same text.
        parts = (b"%s\0%d\0%s" % (os.fsencode(str(m.path)), len(m.content), m.content) for m in members)
        key = _digest(b"folder", parts)
    elif archives := [name for suffix in (".tar", ".tar.gz", ".tgz") if (name := split + suffix) in names]:
        source = root / archives[0]
        archive = read_bytes(source)
        members = None
        key = _digest(b"tar", [archive])
    else:
        raise DataError(f"{root}: no {split} folder, {split}.tar, {split}.tar.gz or {split}.tgz")

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
    """The files of a folder and its sub-folders, sorted by path."""

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: {describe(error)}") from error

    paths = sorted(Path(parent, name) for parent, _, names in os.walk(folder, onerror=stop) for name in names)
    for path in paths:
        inside = PurePosixPath(path.relative_to(folder).as_posix())
        if not _ignored(inside):
            yield Member(inside, str(path), read_bytes(path))


def _archived(path: Path, content: bytes) -> Iterator[Member]:
    """The files of a tar archive, which is never unpacked to disk."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for info in tar:
                inside = PurePosixPath(info.name)
                if info.isdir() or _ignored(inside):
                    continue
                file = tar.extractfile(info) if info.isfile() else None
                if file is None:
                    raise DataError(f"{path}: {info.name}: not a plain file")
                yield Member(inside, f"{path}: {info.name}", file.read())
            end = content[tar.offset :]
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{path}: damaged tar archive") from error
    # tarfile takes a damaged or cut header for the end; a whole archive ends with blocks of zeros (POSIX.1-2001, pax).
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise DataError(f"{path}: damaged tar archive")


def _ignored(path: PurePosixPath) -> bool:
    """What a Mac leaves beside the files that were meant: ``.DS_Store``, ``._00000_5.png``, ``__MACOSX``."""
    return any(part == "__MACOSX" or (part.startswith(".") and part not in {".", ".."}) for part in path.parts)


def _decode(source: Path, members: Sequence[Member]) -> Labelled:
    if not members:
        raise DataError(f"{source}: no images")
    numbered: dict[int, tuple[int, Member]] = {}
    for member in members:
        name = re.fullmatch(r"([0-9]+)_([0-9]+)\.png", member.path.name)
        if name is None:
            raise DataError(f"{member.where}: not named {{number}}_{{label}}.png")
        number, label = int(name[1]), int(name[2])
        if label > 9:
            raise DataError(f"{member.where}: label {label} is no digit 0..9")
        if number in numbered:
            raise DataError(f"{member.where}: number {number} occurs twice, also as {numbered[number][1].path.name}")
        numbered[number] = label, member

    ordered = [numbered[number] for number in sorted(numbered)]
    labels = np.array([label for label, _ in ordered], dtype=np.uint8)
    chunks = [[member for _, member in ordered[i : i + CHUNK]] for i in range(0, len(ordered), CHUNK)]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        decoded = pool.map(lambda chunk: np.stack([_pixels(member) for member in chunk]), chunks)
        images = np.concatenate(
            list(_with_progress(decoded, len(chunks), f"Decoding {len(ordered)} images of {source}"))
        )
    return Labelled(images, labels)


def _pixels(member: Member) -> NDArray[np.uint8]:
    """(28, 28) uint8."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(member.content), formats=["PNG"]) as image:
            image.verify()  # decoding alone does not look at the checksums of pixel data
        with Image.open(io.BytesIO(member.content), formats=["PNG"]) as image:
            size, mode = image.size, image.mode
            pixels = np.asarray(image) if size == (28, 28) and mode in {"L", "RGB"} else None
    except Exception as error:  # Pillow has no common base: OSError, SyntaxError, ValueError, zlib.error, struct.error
        raise DataError(f"{member.where}: unreadable PNG (damaged or truncated)") from error
    if size != (28, 28):
        raise DataError(f"{member.where}: {size[0]}x{size[1]} pixels, expected 28x28")
    if pixels is not None and mode == "RGB" and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if pixels is None or pixels.ndim != 2:
        raise DataError(f"{member.where}: not grey: mode {mode}, expected 8-bit grey (L)")
    return pixels


def _with_progress(parts: Iterator[NDArray[np.uint8]], total: int, description: str) -> Iterator[NDArray[np.uint8]]:
    """Pass ``parts`` on; meanwhile a bar on a terminal, one line elsewhere."""
    if not sys.stderr.isatty():
        print(description, file=sys.stderr)
        yield from parts
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(parts, description, total, transient=True, console=Console(stderr=True))
