"""Open files in a run directory without following links, and regular files only.

Somebody else may have made the directory: if ``train.log`` were a link, a run would write into any file of the user. The
directory itself may be a link, because users link ``outputs/``. A hard link cannot be recognised.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mnist_exp.errors import UsageError

# Windows has neither this nor dir_fd; there each folder of a path is checked before a file is opened.
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
HAS_DIR_FD = os.open in os.supports_dir_fd and bool(NO_LINK)
FOLDERS = ("checkpoints", ".hydra")
LARGEST = 2**30  # bytes of a file that is read at once; MNIST's largest has 47 million
LARGEST_TEXT = 2**26  # of JSON and YAML, which need many times their size in memory
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}")  # names of incomplete files of write_atomically
# Links that W&B creates itself, and replaces without following them.
WANDB_LINKS = {"latest-run", "debug.log", "debug-internal.log", "debug-core.log"}


class RunDirectoryError(UsageError):
    """The directory cannot be used as asked."""


def open_file(path: Path, mode: str = "rb", *, below: Path | None = None) -> IO[Any]:
    """``open`` (text is UTF-8) for a regular file, without following links.

    Args:
        below: a parent folder; no part of ``path`` after it may be a link. Default: the folder of the file.

    Raises:
        RunDirectoryError: the file or one of these folders is a link, a pipe, a device or a socket.
        OSError: as for ``open``.
    """

    def opener(name: str, flags: int) -> int:
        return _descriptor(path, flags, below or path.parent)

    return open(path, mode, encoding=None if "b" in mode else "utf-8", opener=opener)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add ``path`` to an error of the operating system that names no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def read_file(path: Path, largest: int = LARGEST, *, below: Path | None = None) -> bytes:
    """The content of a file.

    Args:
        below: as for ``open_file``.

    Raises:
        RunDirectoryError: as for ``open_file``, or the file has more than ``largest`` bytes.
        OSError: as ``open`` does.
    """
    with open_file(path, below=below) as file:
        content: bytes = file.read(largest + 1)
    if len(content) > largest:
        raise RunDirectoryError(f"{path} cannot be read: it has more than {largest} bytes")
    return content


def exists(path: Path, *, below: Path | None = None) -> bool:
    """Whether the file exists.

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
    """Write a file. At any moment, and after a crash, the path has either the old or the new content.

    Args:
        below: as for ``open_file``.
        keep: a name in the same folder for the old file, which is lost if the file system has no hard links.

    Raises:
        RunDirectoryError: as for ``open_file``.
        OSError: it cannot be written; it names the file.
    """
    below = below or path.parent
    exists(path, below=below)
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}")
    folder = _folder(path.parent, below)
    try:
        descriptor = _open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, folder)
        try:
            with naming(path), os.fdopen(descriptor, "wb") as file:
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
    """Remove incomplete files of killed processes. The caller must hold the lock of the directory.

    Args:
        folders: subfolders to clean as well.
    """
    for folder in (directory, *(directory / name for name in folders)):
        with suppress(FileNotFoundError, NotADirectoryError):
            for name in filter(TEMPORARY.fullmatch, os.listdir(folder)):
                if exists(folder / name, below=directory):
                    (folder / name).unlink(missing_ok=True)


def _keep(path: Path, name: str, folder: int | None) -> None:
    """Give a file a second name in its folder, and replace a file of that name."""
    with suppress(FileNotFoundError):
        os.unlink(path.with_name(name) if folder is None else name, dir_fd=folder)
    with suppress(OSError):  # there is no file yet, or this file system has no hard links
        if folder is None:
            os.link(path, path.with_name(name))
        else:
            os.link(path.name, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)


def refuse_links(directory: Path, folders: Iterable[str] = FOLDERS) -> None:
    """Check that a run or sweep directory holds regular files and folders only.

    Needed before a library that follows links writes a lock, a log or a database there.

    Args:
        folders: subfolders to check as well.

    Raises:
        RunDirectoryError: something there is a link, a pipe, a device or a socket.
    """
    for folder in (directory, *(directory / name for name in folders)):
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False):
                    raise _refusal(Path(entry.path), entry.is_symlink())


def refuse_links_for_wandb(directory: Path) -> None:
    """Check that ``wandb/`` of a run directory holds no links except W&B's own, before W&B reads or writes there.

    Raises:
        RunDirectoryError: something there is another link, a pipe, a device or a socket, or a settings file, which W&B
            would read.
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
            raise RunDirectoryError(f"{settings} would change where W&B sends runs; remove it")


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
    """A descriptor of the folder ``path``, which is ``below`` or inside it; None on systems without ``dir_fd``."""
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
    """Open the last part of ``path`` in ``folder``. Refuse a link, and do not wait for a pipe."""
    flags |= NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if folder is None and path.is_symlink():
        raise _refusal(path, True)
    try:
        return os.open(path if folder is None else path.name, flags, 0o666, dir_fd=folder)
    except OSError as error:
        # The error number for a link depends on the system.
        if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.EMLINK, errno.ENXIO} and os.path.lexists(path):
            _refuse_unless_regular(path, os.lstat(path).st_mode, folder_too=True)
        error.filename = str(path)
        raise


def _refuse_unless_regular(path: Path, mode: int, *, folder_too: bool = False) -> None:
    if not stat.S_ISREG(mode) and not (stat.S_ISDIR(mode) and folder_too):
        raise _refusal(path, stat.S_ISLNK(mode))


def _refusal(path: Path, is_link: bool) -> RunDirectoryError:
    if is_link:
        return RunDirectoryError(f"{path} is a link, and links are not followed here: replace it by a copy of the file")
    return RunDirectoryError(f"{path} is no regular file; remove it")
