"""Log a run to Weights & Biases: online if an API key is configured, else to a file for ``wandb sync``.

W&B never asks the user anything, never delays a run by more than ``timeout_seconds`` (start and end together), and never
makes it fail: the first error is printed in one line, and training goes on.

An empty file ``run-ID.wandb.synced`` beside ``run-ID.wandb``, as W&B writes it, marks what the server has. ``wandb sync``
uploads the rest, and ``mnist-report DIR --wandb-sync`` does so for whole sweeps.

The x axis of the curves is ``epoch``; ``images_seen`` is logged, too, and can be chosen as the x axis of any panel. The W&B
step is the epoch, so an epoch that is trained again after a resume is not logged twice. The summary has the figures of the
result under the names of the curves, and ``val/accuracy.max`` and ``val/loss.min``, the best of any epoch.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from mnist_exp.loggers.wandb_file import finished_within
from mnist_exp.loggers.wandb_place import PROJECT, sync_command
from mnist_exp.loggers.wandb_private import list_packages_once
from mnist_exp.loggers.wandb_service import choose_mode, contained, end_service, service_died, undone_on_failure, within
from mnist_exp.loggers.wandb_upload import (
    code_as_artifact,
    define_metrics,
    errors_as_media,
    files_as_artifact,
    mark_uploaded,
    origin_of,
    summary_of,
)
from mnist_exp.runs.files import refuse_links_for_wandb
from mnist_exp.runs.reading import read_metrics
from mnist_exp.training.events import Callback, EpochMetrics, TrainingEnded, TrainingStarted, curves_of

if TYPE_CHECKING:
    import wandb

LOG = logging.getLogger(__name__)
# Shares of ``timeout_seconds``. REST is for another service, or for a second start, offline, on a busy machine.
START, END, REST = 0.4, 0.55, 0.05
ASK_AGAIN_SECONDS = 300.0

Mode = Literal["auto", "online", "offline", "disabled"]


class WandbLogger(Callback):
    """One W&B run for one training run.

    Args:
        directory: the run directory.
        folder: W&B keeps its own files in ``wandb/`` there; None: the run directory.
        label: of the run, as W&B lists it; WANDB_NAME replaces it, except in jobs of a sweep, which need different names.
        arm: name of the runs with the same settings and any seed, for W&B's configuration, so that W&B can group by it.
        config: the resolved configuration.
        parameters: number of trainable parameters, for the summary.
        run_id: W&B's id of the run that is resumed; None for a new run. A run that ``wandb agent`` started gets the
            agent's id, unless it is a job of one of our sweeps.
        sweep: name of the sweep, the W&B group if ``group`` is None.
        on_identity: called once with ``identity``, when the run has started or has failed to start.
        project, entity, group, job_type, notes, tags: see ``wandb.init``; entity None is the account's default.
        mode: ``auto`` uses WANDB_DISABLED, WANDB_MODE or ``wandb offline``, else it is online if a key is configured.
        save_code: store the code and the resolved configuration as an artifact.
        upload_files: store the run directory's files as an artifact at the end.
        timeout_seconds: the longest wait for the server, start and end together.

    Raises:
        ValueError: ``mode`` is unknown, or ``timeout_seconds`` is not positive.
    """

    # Shared by all runs of the process, so that a sweep of a hundred runs does not wait a hundred times for a dead server.
    _no_answer: ClassVar[str | None] = None  # the reason
    _ask_again: ClassVar[float] = 0.0  # the time of the next attempt, on the monotonic clock
    _told: ClassVar[set[str]] = set()  # why runs of this process are offline; a sweep prints each reason once

    def __init__(
        self,
        *,
        directory: Path,
        label: str,
        config: Mapping[str, Any],
        parameters: int,
        run_id: str | None = None,
        arm: str | None = None,
        sweep: str | None = None,
        on_identity: Callable[[dict[str, str | None]], object] | None = None,
        folder: Path | None = None,
        project: str = PROJECT,
        entity: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        notes: str | None = None,
        tags: Sequence[str] = (),
        mode: Mode = "auto",
        save_code: bool = False,
        upload_files: bool = False,
        timeout_seconds: float = 15.0,
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"logger.mode={mode} is not known; choose one of {', '.join(get_args(Mode))}")
        if timeout_seconds <= 0:
            raise ValueError(f"logger.timeout_seconds={timeout_seconds} must be above 0")
        self._directory = Path(directory).resolve()
        self._folder = self._directory if folder is None else folder.resolve()
        self._config = dict(config)
        self._parameters = parameters
        self._resumed = run_id is not None
        self._on_identity = on_identity
        self._mode: str = mode
        self._name = label if sweep is not None else os.environ.get("WANDB_NAME") or label
        self._arm = arm
        self._in_sweep = sweep is not None
        self._project = str(project)
        self._entity = None if entity is None else str(entity)
        self._group = sweep if group is None else str(group)
        self._tags = tuple(str(tag) for tag in tags)
        self._job_type, self._notes = (None if text is None else str(text) for text in (job_type, notes))
        self._save_code, self._upload_files = save_code, upload_files
        self._timeout = float(timeout_seconds)
        agent = os.environ.get("WANDB_RUN_ID") if sweep is None and "WANDB_SWEEP_ID" in os.environ else None
        self._id = run_id or agent or _new_id()
        self._of_agent = self._id == agent
        self._run: wandb.Run | None = None
        self.problem: str | None = None  # the first error
        self._why_offline: str | None = None
        self._epoch = 0
        # Recorded in run.json. Valid after on_start; mode is online, offline, disabled or failed.
        self.identity: dict[str, str | None] = {
            "id": self._id,
            "mode": "disabled",
            "project": project,
            "entity": entity,
            "group": self._group,
            "url": None,
            "arm": arm,
            "sweep": os.environ["WANDB_SWEEP_ID"] if self._of_agent else None,
        }

    def on_start(self, event: TrainingStarted) -> None:
        """Start the W&B run, offline if online is not possible."""
        deadline = time.monotonic() + self._timeout
        try:
            refuse_links_for_wandb(self._folder)
            with contained():
                try:
                    with undone_on_failure(self._folder):
                        self._start(deadline)
                except Exception as error:
                    if not service_died(error):
                        raise
                    self._run = None
                    end_service()  # an earlier run or a signal of a scheduler ended it: start another one
                    self._start(deadline)
        except Exception as error:
            self._run = None
            self.identity["mode"] = "failed"
            self._warn(f"could not start ({_one_line(error)}); training goes on without it")
        if self._on_identity is not None:
            self._on_identity(self.identity)
        if self._resumed and self.identity["mode"] == "online":
            with self._guarded():
                # Those that W&B lost because its process was killed; it leaves out those that the server has.
                for row in read_metrics(self._directory)[: event.first_epoch - 1]:
                    self.log_row(row["epoch"], curves_of(row))

    def on_epoch(self, event: EpochMetrics) -> None:
        """Log one row of curves."""
        self.log_row(event.epoch, event.as_curves())

    def log_row(self, epoch: int, curves: Mapping[str, float | int]) -> None:
        """Log the values of an epoch, by the names of their curves."""
        if self._run is not None:
            with self._guarded():
                self._run.log(dict(curves), step=epoch)
            self._epoch = epoch

    def on_end(self, event: TrainingEnded) -> None:
        """Write the summary, upload the rest, and mark the run as finished, or as failed if it is not completed."""
        run = self._run
        if run is None:
            return
        deadline = time.monotonic() + (END + REST) * self._timeout
        with self._guarded():
            if event.status == "completed":
                # The step is above the epoch if the run is continued and W&B has the row already.
                media = {"epoch": self._epoch, **errors_as_media(self._directory)}
                run.log(media, step=max(self._epoch, run.step))
        if self._epoch or event.status == "completed":
            with self._guarded():
                run.log({}, commit=True)  # otherwise the last row would replace the summary at the end
        with self._guarded():
            run.summary.update(summary_of(event, self._parameters, best=not self._of_agent))
        if self._upload_files:
            self._log_artifact(lambda: files_as_artifact(self._directory, self._id), 0.4 * END * self._timeout)
        with self._guarded():
            run.finish(exit_code=0 if event.status == "completed" else 1)
            if not run.offline:
                mark_uploaded(Path(run.dir).parent)
        if self._run is not None:  # None if its service has died
            with self._guarded():
                # W&B's service answers before it has written the file; if it ended now, rows would be lost.
                if not finished_within(deadline - time.monotonic(), Path(run.settings.sync_file)):
                    raise TimeoutError("W&B has not written the run's file to its end")
        if self.problem in {None, self._why_offline}:
            self._say_where()
        self._run = None
        if multiprocessing.parent_process() is not None:
            # A child process ends without W&B's exit hook, which ends the service.
            end_service(deadline - time.monotonic())

    def _log_artifact(self, make: Callable[[], wandb.Artifact], seconds: float) -> None:
        run = self._run
        with self._guarded():
            if run is not None and not within(seconds, lambda: run.log_artifact(make())):
                raise TimeoutError(f"files were not accepted within {seconds:.3g} s")

    def _start(self, deadline: float) -> None:
        mode, why_offline = self._choose_mode(deadline)
        if mode == "online":
            still_gone = self._no_answer if time.monotonic() < self._ask_again else None
            why_offline = still_gone or self._start_online(deadline)
        if mode == "disabled":
            return
        run = self._run = self._run or self._init("offline", self._timeout)
        found = {"mode": "offline"} if run.offline else {"mode": "online", "entity": run.entity, "url": run.url}
        self.identity |= {"id": run.id, "project": run.project, **found}
        define_metrics(run, best=not self._of_agent)
        if why_offline:
            self._why_offline = f"{why_offline}; this run is recorded offline, to upload it later: {self._sync_command}"
            self._warn(self._why_offline, repeated=self._in_sweep and why_offline in WandbLogger._told)
            WandbLogger._told.add(why_offline)
        else:
            self._say_where()
        if self._save_code:
            seconds = max(0.5, deadline - time.monotonic() - (1 - START) * self._timeout)
            self._log_artifact(lambda: code_as_artifact(self._config, self._directory, self._id), seconds)

    def _choose_mode(self, deadline: float) -> tuple[str, str | None]:
        """Return online, offline or disabled; and the reason if it is offline without the user's request."""
        mode, why_offline = choose_mode(self._mode, max(0.5, deadline - time.monotonic()))
        begun = self._folder.glob(f"wandb/offline-run-*-{self._id}*") if self._resumed else ()
        if mode == "online" and any(not any(part.glob("*.synced")) for part in begun):
            return "offline", "it began offline"  # a later part must not be uploaded before an earlier one
        return mode, why_offline

    def _start_online(self, deadline: float) -> str | None:
        """Start the run on the server. If that fails, remove its files and return the reason."""
        import wandb

        began = time.monotonic()
        limit = max(0.5, START * (deadline - began))
        try:
            with undone_on_failure(self._folder):
                self._run = self._init("online", limit)
            return None
        except Exception as error:
            server = wandb.setup().settings.base_url
            if time.monotonic() - began > 0.9 * limit:
                why = WandbLogger._no_answer = f"{server} does not answer"
                WandbLogger._ask_again = time.monotonic() + ASK_AGAIN_SECONDS
            else:
                why = f"{server} did not accept the run ({_one_line(error)})"
        # W&B's service keeps the id of a failed attempt in use, so take another id, or another service.
        if self._resumed or self._of_agent:
            end_service(REST * self._timeout)
        else:
            self._id = _new_id()
        return why

    def _init(self, mode: Literal["online", "offline"], timeout: float) -> wandb.Run:
        import wandb

        if not self._of_agent:  # otherwise W&B would use the agent's id
            settings = wandb.setup().settings
            settings.sweep_id = settings.sweep_param_path = None
        list_packages_once()
        return wandb.init(
            project=None if self._of_agent else self._project,  # the agent's sweep has its own
            entity=None if self._of_agent else self._entity,
            group=self._group,
            name=self._name,
            id=None if self._of_agent else self._id,
            resume="allow" if self._resumed and mode == "online" else None,
            job_type=self._job_type,
            notes=self._notes,
            tags=self._tags,
            config={**self._config, **origin_of(self._directory, self._arm)},
            dir=self._folder,
            mode=mode,
            reinit="create_new",  # a process may train several runs, one after the other or at once
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=timeout,
                finish_timeout=(0.6 if self._upload_files else 1.0) * END * self._timeout,
                finish_timeout_raises=True,
            ),
        )

    @property
    def _sync_command(self) -> str:
        """The command that uploads what W&B does not have: of the run, or of its whole sweep."""
        directory = self._directory.parent if self._in_sweep else self._directory
        return sync_command(directory, self._project, self._entity, files=self._upload_files or self._save_code)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._warn(f"{_one_line(error)}; training is not affected, to upload what is missing: {self._sync_command}")
            if service_died(error):
                self._run = None
                end_service()

    def _warn(self, message: str, *, repeated: bool = False) -> None:
        """Print the first error only; later ones are usually its consequences.

        Args:
            repeated: another run of this process has printed it, so only ``train.log`` needs it.
        """
        level = logging.DEBUG if self.problem else logging.INFO if repeated else logging.WARNING
        LOG.log(level, "Weights & Biases: %s", message)
        self.problem = self.problem or message

    def _say_where(self) -> None:
        """Print the address of the run, or the command that uploads it."""
        LOG.info("Weights & Biases: %s", self.identity["url"] or f"offline; to upload: {self._sync_command}")


def _new_id() -> str:
    return secrets.token_hex(5)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
