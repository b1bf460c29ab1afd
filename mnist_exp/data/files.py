"""Reading of data files, with errors that name the file, and the cache of decoded images."""

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

# Files that Windows, macOS and file servers add to folders and archives; hidden files are handled separately.
SYSTEM_FILES = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("__macosx", "icon\r", "@eadir", "lost+found"),
}


class DataError(Exception):
    """The data cannot be loaded. The message is one line that names the file and the problem."""


class Labelled(NamedTuple):
    """Stored images: ``images`` (N, S, S) or (N, S, S, C), uint8, 0 is background; ``labels`` (N,), integers."""

    images: NDArray[np.uint8]
    labels: NDArray[np.integer[Any]]


def describe(error: OSError) -> str:
    """A short description of an error of the operating system."""
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
    """The content of a file, decompressed if its name ends in ``.gz`` or ``.tgz``.

    Raises:
        DataError: the file cannot be read, is not a regular file, has more than ``LARGEST`` bytes (compressed or not),
            or is not valid gzip.
    """
    try:
        # O_NONBLOCK: opening a pipe without a writer would wait for ever.
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
    """The decompressed content, at most ``LARGEST`` + 1 bytes."""
    if not content.startswith(b"\x1f\x8b"):
        raise DataError(f"{path}: is not gzip, though its name says so")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            return file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip") from error


def is_system_file(path: PurePath) -> bool:
    """Whether a file was made by an operating system or a file manager, not by a user.

    Args:
        path: relative to the folder or archive that is read, so that a hidden parent folder has no effect.
    """
    return any(
        part.lower() in SYSTEM_FILES or (part.startswith(".") and part not in {".", ".."}) for part in path.parts
    )


class Listing(NamedTuple):
    """The names in a folder, without system files."""

    files: frozenset[str]
    folders: frozenset[str]

    def __str__(self) -> str:
        names = [*sorted(f"{name}/" for name in self.folders), *sorted(self.files)]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return f"it holds {', '.join(names[:5])}{more}" if names else "it is empty"


def listing(folder: Path, *, may_be_absent: bool = False) -> Listing:
    """The names in a folder; empty if it does not exist and ``may_be_absent``. A broken link is listed as a file.

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
    """``data.root`` as a path, with a leading ``~`` or ``~user`` replaced by the home folder.

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


def is_private(folder: Path) -> bool:
    """Whether ``folder`` is a folder, not a link, to which only this user can write; who can is not known on Windows."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    is_own = not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o022)
    return stat.S_ISDIR(found.st_mode) and is_own


def load_cached(path: Path) -> Labelled | None:
    """Read what ``store_cached`` wrote; None if ``path`` is missing, damaged or owned by another user."""
    try:
        if hasattr(os, "geteuid") and path.stat().st_uid != os.geteuid():
            return None
        with zipfile.ZipFile(path) as claimed:
            if sum(part.file_size for part in claimed.infolist()) > LARGEST:
                return None
        with path.open("rb") as file, np.load(file) as archive:
            images, labels = archive["images"], archive["labels"]
    except (
        Exception
    ):  # zipfile, zlib and numpy have no common exception; after any of them the images are decoded again
        return None
    whole = images.dtype == labels.dtype == np.uint8 and images.shape == (len(labels), 28, 28)
    return Labelled(images, labels) if whole else None


def store_cached(path: Path, digits: Labelled) -> None:
    """Write ``digits`` atomically to ``path``. If it cannot be written, print a line and continue."""
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
