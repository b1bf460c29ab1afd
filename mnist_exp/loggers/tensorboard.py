"""The run's curves for TensorBoard, in ``tensorboard/`` of the run directory: ``tensorboard --logdir outputs``.

The curves have the same names as in W&B, and their step is the epoch. An error is printed in one line, and training goes
on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_exp.errors import UsageError
from mnist_exp.runs.files import refuse_links
from mnist_exp.training.events import Callback, EpochMetrics, TrainingEnded, TrainingStarted

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG = logging.getLogger(__name__)


class TensorBoardLogger(Callback):
    """Writes a run's curves as TensorBoard events.

    Args:
        directory: the run directory.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, *, directory: Path) -> None:
        if find_spec("tensorboard") is None:
            raise UsageError("logger=tensorboard needs TensorBoard: pip install 'mnist-exp[tensorboard]'")
        self._directory = directory
        self._writer: SummaryWriter | None = None
        self._warned = False

    def on_start(self, event: TrainingStarted) -> None:
        """Start an event file; epochs that are trained again replace the earlier ones."""
        with self._guarded():
            from torch.utils.tensorboard import SummaryWriter

            refuse_links(self._directory, folders=("tensorboard",))
            self._writer = SummaryWriter(str(self._directory / "tensorboard"), purge_step=event.first_epoch)

    def on_epoch(self, event: EpochMetrics) -> None:
        """Write one point of each curve."""
        if self._writer is not None:
            with self._guarded():
                for name, value in event.as_curves().items():
                    if name != "epoch":
                        self._writer.add_scalar(name, value, event.epoch)
                self._writer.flush()

    def on_end(self, event: TrainingEnded) -> None:
        """Close the file."""
        if self._writer is not None:
            with self._guarded():
                self._writer.close()
            self._writer = None

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            level = logging.DEBUG if self._warned else logging.WARNING
            LOG.log(
                level, "TensorBoard: %s; training is not affected", " ".join(str(error).split()) or type(error).__name__
            )
            self._warned = True
