"""How the jobs of a sweep share the cores of a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from mnist_exp.compose import BASIC_LAUNCHER
from mnist_exp.errors import UsageError, as_typed, report
from mnist_exp.runs.provenance import available_cores, cores
from mnist_exp.sweeps.progress import count


@dataclass(frozen=True)
class Shares:
    """How the jobs of a sweep share this machine.

    Attributes:
        at_once: jobs that run at once on this machine; None if it is one, or not known.
        capped: whether we must limit the jobs to ``at_once``, because the launcher starts all of them at once.
        threads: of a job that does not set ``trainer.threads``; None: the default.
    """

    at_once: int | None = None
    capped: bool = False
    threads: int | None = None


def shares_of(inner: DictConfig, jobs: int) -> Shares:
    """Read the shares from the settings of any launcher.

    Two pools of threads on the same cores are several times slower than one, so each job gets its own part of the cores. A
    launcher without a known setting may start all jobs at once on this machine.

    Args:
        inner: configuration of the launcher.
        jobs: number of jobs in the sweep.

    Raises:
        UsageError: a setting that should be a number is not one.
    """
    available = available_cores()
    if inner._target_ == BASIC_LAUNCHER:
        return Shares()
    if "n_jobs" in inner:  # joblib's: -1 is all cores, -2 all but one
        at_once = _number(inner, "n_jobs")
        at_once = at_once if at_once > 0 else max(1, available + 1 + at_once)
        return Shares(at_once, threads=min(cores(), max(1, available // at_once)))
    if "cpus_per_task" in inner:  # submitit's
        threads = _number(inner, "cpus_per_task") or _number(inner, "cpus_per_gpu") or 1
        if is_of_slurm(inner):
            return Shares(threads=threads)
        return Shares(max(1, available // threads), capped=True, threads=threads)
    if "ray" in inner:
        return Shares(threads=max(1, _number(inner, "ray.remote.num_cpus")))
    return Shares(threads=min(cores(), max(1, available // max(1, jobs))))


def _number(inner: DictConfig, key: str) -> int:
    """A number in a launcher's settings, rounded down; 0 if it is not set.

    Raises:
        UsageError: it is not a number.
    """
    value = OmegaConf.select(inner, key)
    try:
        return int(value or 0)
    except (TypeError, ValueError):
        raise UsageError(f"hydra.launcher.{key}={as_typed(value)} should be a number") from None


def is_of_slurm(inner: DictConfig) -> bool:
    """Whether a launcher submits its jobs to Slurm: only then it has the setting ``partition``."""
    return "partition" in inner


def warn_of_too_many_threads(at_once: int, wanted: Sequence[int | None]) -> None:
    """Warn if the jobs that run at once have more threads than there are cores.

    Args:
        at_once: number of jobs that run at once.
        wanted: ``trainer.threads`` of each job.
    """
    at_once = min(at_once, len(wanted))
    threads = max((number or 1 for number in wanted), default=1)
    available = available_cores()
    if at_once > 1 and threads > 1 and at_once * threads > available:
        report(
            UsageError(
                f"{at_once} jobs at once with trainer.threads={threads} each on {count(available, 'core')}: training may "
                f"be many times slower than with trainer.threads={max(1, available // at_once)}"
            )
        )
