"""A profile of the first epoch of a run: ``profile.txt`` and ``trace.json.gz`` in the run directory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from mnist_exp.runs import write_atomically
from mnist_exp.training import Callback, EpochMetrics, TrainingEnded, TrainingStarted

ROWS = 40


class Profiler(Callback):
    """Profiles the first epoch, with its evaluation and checkpoint.

    Args:
        directory: the run directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._profile: profile | None = None

    def on_start(self, event: TrainingStarted) -> None:
        gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *gpu])
        self._profile.start()

    def on_epoch(self, event: EpochMetrics) -> None:
        if self._profile is None:
            return
        self._profile.stop()
        table = self._profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=ROWS)
        write_atomically(self._directory / "profile.txt", f"epoch {event.epoch}\n{table}".encode())
        self._profile.export_chrome_trace(str(self._directory / "trace.json.gz"))
        self._profile = None

    def on_end(self, event: TrainingEnded) -> None:
        if self._profile is not None:  # the first epoch did not end
            self._profile.stop()
            self._profile = None
