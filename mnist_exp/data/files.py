"""Reading files with errors that name them, and the cache of what is slow to read."""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
import uuid
import zipfile
import zlib
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist_exp.runs.files import LARGEST

# What Windows, macOS and file servers put into folders and archives, beside files whose names begin with a dot.
SYSTEM_FILES = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("__macosx", "icon\r", "@eadir", "lost+found"),
}


class DataError(Exception):
    """Digits cannot be had as asked. The message is one line that names the file and what is wrong with it."""


class Labelled(NamedTuple):
    """Images as they are stored: ``images`` (N, S, S) or (N, S, S, C), uint8, 0 is background; ``labels`` (N,), integers."""

    images: NDArray[np.uint8]
    labels: NDArray[np.integer[Any]]


def describe(error: OSError) -> str:
    """What the operating system said, in plain words."""
    match error:
        case FileNotFoundError():
            return "does not exist"
        case NotADirectoryError() | FileExistsError():
            return "is not a folder"
        case IsADirectoryError():
            return "is a folder, not a file"
        case PermissionError():
            return "no permission"
        case _:
            return error.strerror or str(error) or type(error).__name__


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed where its name ends in ``.gz`` or ``.tgz``.

    Raises:
        DataError: the file cannot be read, is no regular file, has more than ``LARGEST`` bytes, compressed or not, or is no
            gzip or a damaged one.
    """
    try:
        # Not to wait: a pipe in place of a file has perhaps nobody at its other end.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DataError(f"{path}: is a pipe or a device, not a file")
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise DataError(f"{path}: {describe(error)}") from error
    is_packed = path.suffix in {".gz", ".tgz"}
    if is_packed:
        content = _decompressed(path, content)
    if len(content) > LARGEST:
        raise DataError(f"{path}: more than {LARGEST} bytes{', decompressed' if is_packed else ''}")
    return content


def _decompressed(path: Path, content: bytes) -> bytes:
    """At most one byte more than ``LARGEST``."""
    if not content.startswith(b"\x1f\x8b"):
        raise DataError(f"{path}: is not gzip, though its name says so")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            return file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip") from error


def is_system_file(path: PurePath) -> bool:
    """Whether an operating system or a file manager put this there, and no person.

    Args:
        path: relative to the folder or archive that is read, so that a hidden folder above that does not count.
    """
    return any(
        part.lower() in SYSTEM_FILES or (part.startswith(".") and part not in {".", ".."}) for part in path.parts
    )


class Listing(NamedTuple):
    """The names in a folder, apart from what ``is_system_file``."""

    files: frozenset[str]
    folders: frozenset[str]

    def __str__(self) -> str:
        names = [*sorted(f"{name}/" for name in self.folders), *sorted(self.files)]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return f"it holds {', '.join(names[:5])}{more}" if names else "it is empty"


def listing(folder: Path, *, may_be_absent: bool = False) -> Listing:
    """What lies in a folder; nothing where it is absent and may be. A link that leads nowhere counts as a file.

    Raises:
        DataError: the folder cannot be read.
    """
    files, folders = set(), set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_system_file(PurePath(entry.name)):
                    continue
                if entry.is_dir():
                    folders.add(entry.name)
                elif entry.is_symlink() or entry.is_file():
                    files.add(entry.name)
    except OSError as error:
        if not (may_be_absent and isinstance(error, FileNotFoundError)):
            raise DataError(f"{folder}: {describe(error)}") from error
    return Listing(frozenset(files), frozenset(folders))


def folder_of(root: str) -> Path:
    """``data.root`` as a path, with a leading ``~`` or ``~user`` replaced by that home.

    Raises:
        DataError: there is no such user.
    """
    try:
        return Path(root).expanduser()
    except RuntimeError as error:
        raise DataError(f"data.root={root}: {root.split('/')[0]} is nobody's home here") from error


def cache_directory() -> Path:
    """``$MNIST_EXP_CACHE``, else ``$XDG_CACHE_HOME/mnist-exp``, else ``~/.cache/mnist-exp``. It need not exist."""
    if own := os.environ.get("MNIST_EXP_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "mnist-exp"


def load_cached(path: Path) -> Labelled | None:
    """What ``store_cached`` wrote to ``path``; None where there is nothing, nothing whole, or another user's."""
    try:
        if hasattr(os, "geteuid") and path.stat().st_uid != os.geteuid():
            return None
        with zipfile.ZipFile(path) as claimed:
            if sum(part.file_size for part in claimed.infolist()) > LARGEST:
                return None
        with path.open("rb") as file, np.load(file) as archive:
            images, labels = archive["images"], archive["labels"]
    except Exception:  # a damaged archive raises what zipfile, zlib and numpy please, and each means: build it again
        return None
    whole = images.dtype == labels.dtype == np.uint8 and images.shape == (len(labels), 28, 28)
    return Labelled(images, labels) if whole else None


def store_cached(path: Path, digits: Labelled) -> None:
    """Write ``digits`` so that ``path`` is whole or absent. Without a writable cache, say so and go on."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                np.savez(file, images=digits.images, labels=digits.labels)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        print(f"{path}: not cached: {describe(error)}", file=sys.stderr)
