"""Where a network is computed: the device, this process's settings of PyTorch, PyTorch or native kernels."""

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
        UsageError: there is no such device here.
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
    """Settings that hold for the whole process; returns the number of CPU threads.

    Args:
        threads: of an earlier part of the same run, whose bits are only repeated with as many.
    """
    threads = threads or trainer.threads or cores()
    torch.set_num_threads(threads)
    keep_freed_memory()
    if device.type == "cuda":
        # Same seed, same bits: refuses kernels whose result depends on timing.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch leaves it out
        torch.backends.cudnn.benchmark = False
    return threads


def keep_freed_memory() -> None:
    """Let a freed tensor's memory wait for the next one, where the C library is glibc.

    It would give large blocks back to the kernel and get them again, page by page, in every step: a tenth to a quarter of
    a step's time on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 * 2**20)  # the largest that every version takes
        libc.mallopt(trim_threshold, 2**30)


def device_name(device: torch.device) -> str:
    """What ``run.json`` calls the device: its type, and a GPU's name."""
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def use_backend(model: nn.Module, trainer: Trainer, device: torch.device, begun_with: str | None = None) -> str:
    """Give the model's forward and backward pass to the native kernels, where they are wanted and can be had.

    Args:
        begun_with: the backend of an earlier part of the same run, whose bits are only repeated with the same one.

    Returns:
        ``native`` or ``torch``, what does the work.

    Raises:
        UsageError: native kernels are asked for, or the run began with them, and they cannot be had.
    """
    wanted = begun_with or trainer.backend
    if wanted == "torch":
        return "torch"
    try:
        if device.type != "cpu" or trainer.precision != "float32" or trainer.compile:
            raise native.NotCovered("they compute in float32 on a CPU, without trainer.compile")
        native.attach(model)
    except native.NativeUnavailable as error:
        if begun_with:
            raise UsageError(f"this run began with native kernels, which cannot be had here: {error}") from error
        if wanted == "native":
            raise UsageError(f"trainer.backend=native cannot be: {error}; use trainer.backend=torch") from error
        if not isinstance(error, native.NotCovered):
            _say_once(f"mnist-train: PyTorch instead of native kernels, which cannot be had here: {error}")
        return "torch"
    return "native"


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)
