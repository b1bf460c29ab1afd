"""The lock of a run directory: one process at a time trains there, and anybody may ask whether one does."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from mnist_exp.runs.files import RunDirectoryError, exists, open_file, remove_temporaries


def acquire(path: Path) -> FileLock:
    """Take the lock, and remove what writes that were killed have left.

    Raises:
        RunDirectoryError: another process has it, or the directory cannot be written to.
    """
    lock = FileLock(path / ".lock", timeout=0.5)  # is_locked holds it, too, for a moment
    try:
        lock.acquire()
    except Timeout as error:
        raise RunDirectoryError(f"{path} is in use by another process") from error
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be written to: {error.strerror or error}") from error
    remove_temporaries(path)
    return lock


def is_locked(path: Path) -> bool:
    """Whether a living process trains in this directory. Asking needs no permission to write.

    Raises:
        RunDirectoryError: its lock is no regular file.
    """
    lock = path / ".lock"
    if not exists(lock):
        return False
    try:
        import fcntl
    except ImportError:  # Windows
        return _can_be_taken(lock) is False
    try:
        with open_file(lock) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # it is held; or it may not be read, and what the record says stands
    return False


def _can_be_taken(lock: Path) -> bool:
    taken = FileLock(lock, timeout=0)
    try:
        taken.acquire()
    except (Timeout, OSError):
        return False
    taken.release()
    return True
