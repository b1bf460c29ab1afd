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
        at_once: jobs that run at once here; None where the launcher decides it, or it is the only one.
        capped: the launcher would start all at once, so that we must see to it.
        threads: of a job that says nothing else; None: what it finds.
    """

    at_once: int | None = None
    capped: bool = False
    threads: int | None = None


def shares_of(inner: DictConfig, jobs: int) -> Shares:
    """What a launcher's own settings say of it, whoever wrote it.

    Two pools of threads on the same cores are several times slower than one, so nobody but the only job of a machine takes
    what it finds. A launcher that says nothing may start all jobs at once, here.

    Args:
        inner: configuration of the launcher.
        jobs: of the sweep.
    """
    available = available_cores()
    if inner._target_ == BASIC_LAUNCHER:
        return Shares()
    if "n_jobs" in inner:  # as joblib counts: -1 is all cores
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
    """A whole number of a launcher's settings, rounded down; 0 where it is not set.

    Raises:
        UsageError: it is something else.
    """
    value = OmegaConf.select(inner, key)
    try:
        return int(value or 0)
    except (TypeError, ValueError):
        raise UsageError(f"hydra.launcher.{key}={as_typed(value)} should be a number") from None


def is_of_slurm(inner: DictConfig) -> bool:
    """Whether a launcher hands its jobs to Slurm: only there they go into a partition."""
    return "partition" in inner


def warn_of_too_many_threads(at_once: int, wanted: Sequence[int | None]) -> None:
    """Say where jobs that run at once were given more threads than there are cores.

    Args:
        at_once: jobs that run at once.
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
