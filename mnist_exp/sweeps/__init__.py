"""Sweeps that finish: every job is a run directory that waits, and whoever launches it only says which one."""

from mnist_exp.sweeps.callback import FinishSweep

__all__ = ["FinishSweep"]
