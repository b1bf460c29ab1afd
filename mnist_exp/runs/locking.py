"""The lock of a run directory: only one process at a time may write there."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from mnist_exp.runs.files import RunDirectoryError, exists, open_file, remove_temporaries


def acquire(path: Path, name: str = ".lock") -> FileLock:
    """Acquire the lock, and remove incomplete files of killed processes.

    Args:
        name: of the file that is locked.

    Raises:
        RunDirectoryError: another process holds the lock, or the directory cannot be written to.
    """
    lock = FileLock(path / name, timeout=0.5)  # is_locked of another process may hold it for a moment
    try:
        lock.acquire()
    except Timeout as error:
        raise RunDirectoryError(f"{path} is in use by another process") from error
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be written to: {error.strerror or error}") from error
    remove_temporaries(path)
    return lock


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock. Needs no permission to write.

    Raises:
        RunDirectoryError: the lock is no regular file.
    """
    lock = path / ".lock"
    if not exists(lock):
        return False
    try:
        import fcntl
    except ImportError:  # Windows
        return not _can_be_acquired(lock)
    try:
        with open_file(lock) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # held, or not readable; then the status in the record is used
    return False


def _can_be_acquired(path: Path) -> bool:
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return False
    lock.release()
    return True
