"""Files below a run directory, which may be somebody else's: opened without following links, regular files only.

A path alone follows what lies there: ``train.log`` as a link would write into any file of the user's. The directory itself
may be a link, because users link ``outputs/``; nothing below it may. A hard link cannot be told from a file.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from mnist_exp.errors import UsageError

NO_LINK = getattr(
    os, "O_NOFOLLOW", 0
)  # Windows has neither this nor dir_fd: there each part is looked at before it is opened
HAS_DIR_FD = os.open in os.supports_dir_fd and bool(NO_LINK)
FOLDERS = ("checkpoints", ".hydra")
LARGEST = 2**30  # bytes of any file that is read whole; MNIST has 47 million
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}")  # how write_atomically names a file until it is whole
# Links that W&B makes itself, and replaces without following them.
WANDB_LINKS = {"latest-run", "debug.log", "debug-internal.log", "debug-core.log"}


class RunDirectoryError(UsageError):
    """The directory cannot be used as asked."""


def open_file(path: Path, mode: str = "rb", *, below: Path | None = None) -> IO[Any]:
    """``open`` (text is UTF-8) for a regular file that is reached without a link.

    Args:
        below: the directory below which no part of ``path`` may be a link; default: the one that the file lies in.

    Raises:
        RunDirectoryError: the file, or a folder between, is a link, a pipe, a device or a socket.
        OSError: as ``open`` does.
    """

    def opener(name: str, flags: int) -> int:
        return _descriptor(path, flags, below or path.parent)

    return open(path, mode, encoding=None if "b" in mode else "utf-8", opener=opener)


def exists(path: Path, *, below: Path | None = None) -> bool:
    """Whether there is such a file.

    Args:
        below: as for ``open_file``.

    Raises:
        RunDirectoryError: as for ``open_file``.
    """
    for part in [*reversed([p for p in path.parents if below in p.parents]), path] if below else [path]:
        try:
            _refuse_unless_regular(part, os.lstat(part).st_mode, folder_too=part != path)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def write_atomically(path: Path, content: bytes, *, below: Path | None = None, keep: str | None = None) -> None:
    """Write a file that is, at any moment and after any crash, either the old one or the new one.

    Args:
        below: as for ``open_file``.
        keep: the name, in the same folder, that the old file gets; where the file system has no hard links, it is lost.

    Raises:
        RunDirectoryError: as for ``open_file``.
    """
    below = below or path.parent
    exists(path, below=below)
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}")
    folder = _folder(path.parent, below)
    try:
        descriptor = _open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if keep is not None:
                _keep(path, keep, folder)
            if folder is None:
                os.replace(temporary, path)
            else:
                os.replace(temporary.name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            if folder is None:
                temporary.unlink(missing_ok=True)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(temporary.name, dir_fd=folder)
            raise
    finally:
        if folder is not None:
            os.close(folder)


def remove_temporaries(directory: Path, folders: Iterable[str] = FOLDERS) -> None:
    """Remove what killed writes left in a directory whose lock is held, so that nobody writes there now.

    Args:
        folders: in it, that are cleaned as well.
    """
    for folder in (directory, *(directory / name for name in folders)):
        with suppress(FileNotFoundError, NotADirectoryError):
            for name in filter(TEMPORARY.fullmatch, os.listdir(folder)):
                if exists(folder / name, below=directory):
                    (folder / name).unlink(missing_ok=True)


def _keep(path: Path, name: str, folder: int | None) -> None:
    """Give a file a second name in its folder, in place of what had that name."""
    with suppress(FileNotFoundError):
        os.unlink(path.with_name(name) if folder is None else name, dir_fd=folder)
    with suppress(OSError):  # there is no file yet, or this file system has no hard links
        if folder is None:
            os.link(path, path.with_name(name))
        else:
            os.link(path.name, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)


def refuse_links(directory: Path, folders: Iterable[str] = FOLDERS) -> None:
    """Check that a run or sweep directory holds regular files and folders, before something that follows links writes
    there: a library's lock, log or database.

    Args:
        folders: in it, that are looked into as well.

    Raises:
        RunDirectoryError: something there is a link, a pipe, a device or a socket.
    """
    for folder in (directory, *(directory / name for name in folders)):
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False):
                    raise _refusal(Path(entry.path), entry.is_symlink())


def refuse_links_for_wandb(directory: Path) -> None:
    """Check that ``wandb/`` of a run directory leads nowhere else, before W&B writes or reads there.

    Raises:
        RunDirectoryError: something there is a link of somebody else's, a pipe, a device or a socket; or settings, which
            W&B would obey.
    """
    refuse_links(directory, folders=())
    for root in ("wandb", ".wandb"):
        for folder, names, files in os.walk(directory / root, followlinks=False):
            for name in [*names, *files]:
                path = Path(folder, name)
                mode = os.lstat(path).st_mode
                if not stat.S_ISLNK(mode) or name not in WANDB_LINKS:
                    _refuse_unless_regular(path, mode, folder_too=True)
        settings = directory / root / "settings"
        if os.path.lexists(settings):
            raise RunDirectoryError(f"{settings} would tell W&B where to send runs; remove it")


def _descriptor(path: Path, flags: int, below: Path) -> int:
    folder = _folder(path.parent, below)
    try:
        descriptor = _open(path, flags, folder)
    finally:
        if folder is not None:
            os.close(folder)
    try:
        _refuse_unless_regular(path, os.fstat(descriptor).st_mode)
    except RunDirectoryError:
        os.close(descriptor)
        raise
    return descriptor


def _folder(path: Path, below: Path) -> int | None:
    """A descriptor of the folder ``path``, which is ``below`` or lies below it; None where files are opened by path."""
    if not HAS_DIR_FD:
        parts = [path, *path.parents]
        for part in parts[: parts.index(below)]:
            if part.is_symlink():
                raise _refusal(part, True)
        return None
    if path == below:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    above = _folder(path.parent, below)
    try:
        return _open(path, os.O_RDONLY | os.O_DIRECTORY, above)
    finally:
        if above is not None:
            os.close(above)


def _open(path: Path, flags: int, folder: int | None) -> int:
    """Open the last part of ``path`` in ``folder``; a link is refused, a pipe without a reader does not hang."""
    flags |= NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if folder is None and path.is_symlink():
        raise _refusal(path, True)
    try:
        return os.open(path if folder is None else path.name, flags, 0o666, dir_fd=folder)
    except OSError as error:
        # The system's word for a link is not the same everywhere.
        if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.EMLINK, errno.ENXIO} and os.path.lexists(path):
            _refuse_unless_regular(path, os.lstat(path).st_mode, folder_too=True)
        error.filename = str(path)
        raise


def _refuse_unless_regular(path: Path, mode: int, *, folder_too: bool = False) -> None:
    if not stat.S_ISREG(mode) and not (stat.S_ISDIR(mode) and folder_too):
        raise _refusal(path, stat.S_ISLNK(mode))


def _refusal(path: Path, is_link: bool) -> RunDirectoryError:
    if is_link:
        return RunDirectoryError(f"{path} is a link, which is not followed: put what it leads to in its place")
    return RunDirectoryError(f"{path} is no regular file; take it away")
