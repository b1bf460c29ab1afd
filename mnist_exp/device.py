"""The device, PyTorch's settings for this process, and the choice between PyTorch and native kernels."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys

import torch
from torch import nn

from mnist_exp import native
from mnist_exp.config import Trainer
from mnist_exp.errors import UsageError
from mnist_exp.runs.provenance import cores


def choose_device(name: str) -> torch.device:
    """The device that ``trainer.device`` names.

    Raises:
        UsageError: this machine has no such device.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available[:0] = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise UsageError(f"trainer.device={name} is not there; this machine has {', '.join(available)}")
    return torch.device(name)


def prepare_torch(trainer: Trainer, device: torch.device, threads: int | None) -> int:
    """Set up PyTorch for the whole process; returns the number of CPU threads.

    Args:
        threads: number in an earlier part of the same run; the results are bit-identical only with the same number.
    """
    threads = threads or trainer.threads or cores()
    torch.set_num_threads(threads)
    keep_freed_memory()
    if device.type == "cuda":
        # Same seed, same bits: no kernels whose results depend on timing.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # not in torch's type annotations
        torch.backends.cudnn.benchmark = False
    return threads


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors for the next ones; no effect with another C library.

    By default glibc returns large blocks to the kernel and gets them again in every step, which takes 10 to 25 % of a
    step's time on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 * 2**20)  # the largest value that all versions accept
        libc.mallopt(trim_threshold, 2**30)


def device_name(device: torch.device) -> str:
    """The device's name in ``run.json``: its type, and a GPU's model."""
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def use_backend(model: nn.Module, trainer: Trainer, device: torch.device, first_backend: str | None = None) -> str:
    """Attach the native kernels to the model, if they are requested and can be used.

    Args:
        first_backend: the backend of an earlier part of the same run; the results are bit-identical only with the same one.

    Returns:
        ``native`` or ``torch``, the backend in use.

    Raises:
        UsageError: native kernels are requested, or the run began with them, and they cannot be used.
    """
    wanted = first_backend or trainer.backend
    if wanted == "torch":
        return "torch"
    try:
        if device.type != "cpu" or trainer.precision != "float32" or trainer.compile:
            raise native.NotCovered("they compute in float32 on a CPU, without trainer.compile")
        native.attach(model)
    except native.NativeUnavailable as error:
        if first_backend:
            raise UsageError(f"this run began with native kernels, which cannot be had here: {error}") from error
        if wanted == "native":
            raise UsageError(f"trainer.backend=native cannot be: {error}; use trainer.backend=torch") from error
        if not isinstance(error, native.NotCovered):
            _warn_once(f"mnist-train: PyTorch instead of native kernels, which cannot be had here: {error}")
        return "torch"
    return "native"


@functools.cache
def _warn_once(line: str) -> None:
    print(line, file=sys.stderr)
