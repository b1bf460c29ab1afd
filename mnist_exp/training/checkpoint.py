"""Checkpoints: tensors and plain data only, so that reading one cannot run code; with a digest that detects damage.

The digest is the comment at the end of the zip archive that ``torch.save`` writes, which ``torch.load`` skips.
"""

from __future__ import annotations

import hashlib
import io
import logging
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mnist_exp.runs.files import RunDirectoryError, exists, read_file, write_atomically

LOG = logging.getLogger("mnist_exp")
DIGEST_PREFIX = b"sha256 "


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` atomically to ``path``; the old checkpoint is kept as ``previous_checkpoint(path)``.

    Raises:
        RunDirectoryError: ``path`` or its folder, ``checkpoints/``, is a link.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = _with_digest(buffer.getvalue())
    write_atomically(path, content, below=path.parent.parent, keep=previous_checkpoint(path).name)


def previous_checkpoint(path: Path) -> Path:
    """The path of the checkpoint before the one in ``path``."""
    return path.with_suffix(".previous.pt")


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint, with its tensors on ``device``.

    Raises:
        OSError: the file cannot be read.
        RunDirectoryError: it is damaged, or has other objects than tensors and plain data; or ``path`` or its folder,
            ``checkpoints/``, is a link.
    """
    content = read_file(path, below=path.parent.parent)
    try:
        _check_digest(content)
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:
        raise RunDirectoryError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(state, dict):
        raise RunDirectoryError(f"{path} is no checkpoint: it holds a {type(state).__name__}")
    return state


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Within it, the content of a checkpoint is used.

    Raises:
        RunDirectoryError: it lacks something, or has a value of another type or shape.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = f"it has no {reason}" if isinstance(error, KeyError) else reason
        raise RunDirectoryError(f"{path} is not a checkpoint of this run: {reason[:300]}") from error


def load_last_whole(path: Path, device: torch.device) -> dict[str, Any]:
    """Read ``path``; if it is damaged, log a warning and read the checkpoint before it.

    Raises:
        OSError: the file cannot be read.
        RunDirectoryError: both are damaged.
    """
    try:
        return load_checkpoint(path, device)
    except RunDirectoryError as damage:
        before = previous_checkpoint(path)
        if not exists(before, below=path.parent.parent):
            raise
        state = load_checkpoint(before, device)
        LOG.warning("%s; going on from the checkpoint before it, %s", damage, before.name)
        return state


def drop_previous(path: Path, device: torch.device) -> None:
    """Remove the checkpoint before ``path`` after checking that ``path`` can be read.

    Raises:
        RunDirectoryError: ``path`` is damaged.
    """
    load_checkpoint(path, device)
    previous_checkpoint(path).unlink(missing_ok=True)


def _with_digest(archive: bytes) -> bytes:
    """Add the digest of a zip archive to it as its comment."""
    comment = DIGEST_PREFIX + hashlib.sha256(memoryview(archive)[:-2]).hexdigest().encode()
    return archive[:-2] + struct.pack("<H", len(comment)) + comment


def _check_digest(content: bytes) -> None:
    """Compare a checkpoint with its digest; checkpoints of version 0.1 have only the zip archive's checksums.

    Raises:
        ValueError, zipfile.BadZipFile: the checkpoint is damaged.
    """
    length = len(DIGEST_PREFIX) + 64
    comment = content[-length:]
    if comment.startswith(DIGEST_PREFIX):
        if hashlib.sha256(content[: -length - 2]).hexdigest().encode() != comment[len(DIGEST_PREFIX) :]:
            raise ValueError("it is damaged: its digest is another one")
        return
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if archive.comment or archive.testzip() is not None:
            raise ValueError("it is damaged: its checksum is another one")
