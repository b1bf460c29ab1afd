"""Sweeps that can be finished: every job is stored as a run directory, and launchers get only its path."""

from mnist_exp.sweeps.callback import FinishSweep

__all__ = ["FinishSweep"]
