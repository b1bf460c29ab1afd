"""Checkpoints: tensors and plain data only, so that reading one cannot run code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from mnist_exp.runs.files import open_file, write_atomically


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` so that at any moment ``path`` holds a whole checkpoint, the old one or the new one.

    Raises:
        RunDirectoryError: ``path`` or its folder, ``checkpoints/``, is a link.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue(), below=path.parent.parent)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what ``save_checkpoint`` wrote.

    Raises:
        OSError: the file cannot be read.
        RunDirectoryError: ``path`` or its folder, ``checkpoints/``, is a link.
        pickle.UnpicklingError, RuntimeError: it is damaged or holds more than tensors and plain data.
    """
    with open_file(path, below=path.parent.parent) as file:
        state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
    return state
