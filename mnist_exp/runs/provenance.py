"""The origin of a result: commit, versions, machine; and the memory of the process."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

PACKAGES = ("mnist-exp", "torch", "torchvision", "numpy", "hydra-core", "omegaconf", "wandb")


def provenance(source: Path) -> dict[str, Any]:
    """Fields of ``run.json``: git commit, versions and hardware.

    Args:
        source: folder of the package, whose commit is recorded; None if it is not in a git checkout.
    """
    return {
        "git": git_state(source),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": {"machine": platform.machine(), "system": platform.system(), "cpu": _cpu(), "cores": cores()},
    }


@cache
def git_state(source: Path) -> dict[str, Any] | None:
    """The commit of the checkout that contains ``source``, and whether tracked files differ from it; None without one.

    Read once: a process keeps the code that it has imported.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An environment may be inside the checkout of another project, which does not track this package.
        if not git("ls-files", "--", str(source / "__init__.py")):
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def cores() -> int:
    """CPU cores that this process should use: the available ones, at most ``OMP_NUM_THREADS``."""
    text = (
        os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    )  # may be a list, a number for each nesting level
    limit = int(text) if text.isdecimal() else 0
    return min(available_cores(), limit or sys.maxsize)


def available_cores() -> int:
    """CPU cores on which this process may run, at most its quota of CPU time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cpu_quota(process: Path = Path("/proc/self")) -> float | None:
    """The quota of CPU time of Linux's control groups, in cores; None without a limit.

    A container has such a quota, and may nevertheless run on all cores. See cgroups(7).

    Args:
        process: folder with the files ``cgroup`` and ``mountinfo``, as proc(5) describes them.
    """
    try:
        groups = [line.split(":", 2) for line in (process / "cgroup").read_text(errors="surrogateescape").splitlines()]
        mounts = (process / "mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    quotas = []
    for mount in mounts:
        fields, _, filesystem = mount.partition(" - ")
        kind, _, options = filesystem.split(" ", 2)
        controllers = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
        if controllers is None or (kind == "cgroup" and "cpu" not in options.split(",")):
            continue
        # Spaces in paths are written as \040.
        root, point = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), path) for path in fields.split()[3:5])
        for path in (PurePosixPath(path) for _, names, path in groups if controllers in names.split(",")):
            below = path.is_relative_to(root) and ".." not in path.parts
            inside = path.relative_to(root).parts if below else ()
            levels = (Path(point, *inside[:depth]) for depth in range(len(inside) + 1))
            quotas += [quota for level in levels for quota in _quota_of(level)]
    return min(quotas, default=None)


def _quota_of(group: Path) -> Iterator[float]:
    """The quota of one control group, in cores; nothing without one."""
    for quota_file, period_file in (("cpu.max", "cpu.max"), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota = int((group / quota_file).read_text().split()[0])
            period = int((group / period_file).read_text().split()[-1])
        except (OSError, ValueError, IndexError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:
            yield quota / period


def reset_peak_memory() -> None:
    """Reset the peak memory of this process, so that each run of a sweep has its own value."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux, or not allowed: peak_memory is then that of the whole process


def peak_memory() -> int | None:
    """Largest resident memory of this process in bytes, on Linux since ``reset_peak_memory``; None if unknown (Windows)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@cache
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
