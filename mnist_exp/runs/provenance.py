"""Where a result comes from: code, versions, machine, memory."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("mnist-exp", "torch", "torchvision", "numpy", "hydra-core", "omegaconf", "wandb")


def provenance(source: Path) -> dict[str, Any]:
    """Code, versions and machine, as ``run.json`` records them.

    Args:
        source: a file or folder of the code, whose git commit is recorded; null where it is in no checkout.
    """
    return {
        "git": git_state(source),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": {"machine": platform.machine(), "system": platform.system(), "cpu": _cpu(), "cores": cores()},
    }


def git_state(source: Path) -> dict[str, Any] | None:
    """The commit of the checkout that ``source`` lies in, and whether tracked files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # A package installed into an environment inside some other project's checkout is not that project's code.
        if not git("ls-files", "--", str(source / "__init__.py")):
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def reset_peak_memory() -> None:
    """Start measuring this process's peak memory afresh, so that the second run of a sweep has a figure of its own."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux, or not allowed: peak_memory then covers the whole process


def peak_memory() -> int:
    """Largest resident memory of this process in bytes, since ``reset_peak_memory`` where the system can."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
