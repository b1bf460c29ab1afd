"""Log a run to Weights & Biases: online if an API key is configured, else to a file for ``wandb sync``.

W&B never asks the user anything, never delays a run by more than ``timeout_seconds`` (start and end together), and never
makes it fail: the first error is printed in one line, and training goes on.

An empty file ``run-ID.wandb.synced`` beside ``run-ID.wandb``, as W&B writes it, marks what the server has. ``wandb sync``
uploads the rest, and ``mnist-report DIR --wandb-sync`` does so for whole sweeps.

The x axis of the curves is ``epoch``; ``images_seen`` is logged, too, and can be chosen as the x axis of any panel. The W&B
step is the epoch, so an epoch that is trained again after a resume is not logged twice.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from mnist_exp.loggers.wandb_file import finished_within
from mnist_exp.loggers.wandb_private import list_packages_once
from mnist_exp.loggers.wandb_service import (
    contained,
    end_service,
    service_died,
    start_service,
    within,
)
from mnist_exp.loggers.wandb_upload import errors_as_media, files_as_artifact, mark_uploaded
from mnist_exp.runs.files import refuse_links_for_wandb
from mnist_exp.training.events import Callback, EpochMetrics, TrainingEnded, TrainingStarted

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
        directory: the run directory; W&B keeps its own files in ``wandb/`` there.
        name: of the run, as W&B lists it.
        config: the resolved configuration.
        parameters: number of trainable parameters, for the summary.
        run_id: W&B's id of the run that is resumed; None for a new run. A run that ``wandb agent`` started gets the
            agent's id, unless it is a job of one of our sweeps.
        sweep: name of the sweep, the W&B group if ``group`` is None.
        on_identity: called once with ``identity``, when the run has started or has failed to start.
        project, entity, group, tags: see ``wandb.init``; entity None is the account's default.
        mode: ``auto`` uses WANDB_DISABLED, WANDB_MODE or ``wandb offline``, else it is online if a key is configured.
        upload_files: store the run directory's files as an artifact at the end.
        timeout_seconds: the longest wait for the server, start and end together.

    Raises:
        ValueError: ``mode`` is unknown, or ``timeout_seconds`` is not positive.
    """

    # Shared by all runs of the process, so that a sweep of a hundred runs does not wait a hundred times for a dead server.
    _no_answer: ClassVar[str | None] = None  # the reason
    _ask_again: ClassVar[float] = 0.0  # the time of the next attempt, on the monotonic clock

    def __init__(
        self,
        *,
        directory: Path,
        name: str,
        config: Mapping[str, Any],
        parameters: int,
        run_id: str | None = None,
        sweep: str | None = None,
        on_identity: Callable[[dict[str, str | None]], object] | None = None,
        project: str = "mnist-exp",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        mode: Mode = "auto",
        upload_files: bool = False,
        timeout_seconds: float = 15.0,
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"logger.mode={mode} is not known; choose one of {', '.join(get_args(Mode))}")
        if timeout_seconds <= 0:
            raise ValueError(f"logger.timeout_seconds={timeout_seconds} must be above 0")
        self._directory = Path(directory).resolve()
        self._config = dict(config)
        self._parameters = parameters
        self._resumed = run_id is not None
        self._on_identity = on_identity
        self._mode: str = mode
        self._name = name
        self._project = str(project)
        self._entity = None if entity is None else str(entity)
        self._group = sweep if group is None else str(group)
        self._tags = tuple(str(tag) for tag in tags)
        self._upload_files = upload_files
        self._timeout = float(timeout_seconds)
        agent = os.environ.get("WANDB_RUN_ID") if sweep is None and "WANDB_SWEEP_ID" in os.environ else None
        self._id = run_id or agent or _new_id()
        self._of_agent = self._id == agent
        self._run: wandb.Run | None = None
        self._warned = False
        self._epoch = 0
        # Recorded in run.json. Valid after on_start; mode is online, offline, disabled or failed.
        self.identity: dict[str, str | None] = {
            "id": self._id,
            "mode": "disabled",
            "project": project,
            "entity": entity,
            "group": self._group,
            "url": None,
        }

    def on_start(self, event: TrainingStarted) -> None:
        """Start the W&B run, offline if online is not possible."""
        deadline = time.monotonic() + self._timeout
        try:
            refuse_links_for_wandb(self._directory)
            with contained():
                try:
                    with self._undone_on_failure():
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

    def on_epoch(self, event: EpochMetrics) -> None:
        """Log one row of curves."""
        if self._run is not None:
            with self._guarded():
                self._run.log(event.as_curves(), step=event.epoch)
            self._epoch = event.epoch

    def on_end(self, event: TrainingEnded) -> None:
        """Write the summary, upload the rest, and mark the run as finished, or as failed if it is not completed."""
        run = self._run
        if run is None:
            return
        deadline = time.monotonic() + (END + REST) * self._timeout
        if event.status == "completed":
            with self._guarded():
                if media := errors_as_media(self._directory):
                    run.log(media, step=self._epoch)
        with self._guarded():
            run.summary.update({**event.summary, "status": event.status, "parameters": self._parameters})
        if self._upload_files:
            seconds = 0.4 * END * self._timeout
            with self._guarded():
                if not within(seconds, lambda: run.log_artifact(files_as_artifact(self._directory, self._id))):
                    raise TimeoutError(f"the run's files were not accepted within {seconds:g} s")
        with self._guarded():
            run.finish(exit_code=0 if event.status == "completed" else 1)
            if not run.offline:
                mark_uploaded(Path(run.dir).parent)
        if self._run is not None:  # None if its service has died
            with self._guarded():
                # W&B's service answers before it has written the file; if it ended now, rows would be lost.
                if not finished_within(deadline - time.monotonic(), Path(run.settings.sync_file)):
                    raise TimeoutError("W&B has not written the run's file to its end")
        self._run = None
        if multiprocessing.parent_process() is not None:
            # A child process ends without W&B's exit hook, which ends the service.
            end_service(deadline - time.monotonic())

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
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        if why_offline:
            self._warn(f"{why_offline}; this run is recorded offline, to upload it later: {self._sync_command}")

    def _choose_mode(self, deadline: float) -> tuple[str, str | None]:
        """Return online, offline or disabled; and the reason if it is offline without the user's request."""
        import wandb

        if self._mode == "disabled" or (self._mode == "auto" and _is_true(os.environ.get("WANDB_DISABLED"))):
            return "disabled", None
        settings = start_service(max(0.5, deadline - time.monotonic()))
        mode = settings.mode if self._mode == "auto" else self._mode
        if mode == "disabled":
            return "disabled", None
        if mode in {"offline", "dryrun"}:
            return "offline", None
        begun = self._directory.glob(f"wandb/offline-run-*-{self._id}*") if self._resumed else ()
        if any(not any(part.glob("*.synced")) for part in begun):
            return "offline", "it began offline"  # a later part must not be uploaded before an earlier one
        try:
            # Checked here, because wandb.init would ask the user.
            if wandb.login(prompt=False, verify=False):
                return "online", None
            return "offline", "no API key is configured (wandb login)"
        except wandb.errors.Error as error:
            return "offline", f"the API key cannot be used ({_one_line(error)})"

    def _start_online(self, deadline: float) -> str | None:
        """Start the run on the server. If that fails, remove its files and return the reason."""
        import wandb

        began = time.monotonic()
        limit = max(0.5, START * (deadline - began))
        try:
            with self._undone_on_failure():
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
            tags=self._tags,
            config=self._config,
            dir=self._directory,
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
        """The command that uploads what is missing: every part of an offline run, the last part of an online one."""
        if self._run is not None and not self._run.offline:
            return f"wandb sync --include-online {shlex.quote(str(Path(self._run.dir).parent))}"
        return f"wandb sync {shlex.quote(str(self._directory / 'wandb'))}/offline-run-*-{self._id}*"

    @contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        """Delete the files of an attempt that failed."""
        folder = self._directory / "wandb"
        before = set(folder.glob("*run-*"))
        try:
            yield
        except Exception:
            for attempt in set(folder.glob("*run-*")) - before:
                shutil.rmtree(attempt, ignore_errors=True)
            raise

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._warn(f"{_one_line(error)}; training is not affected, to upload what is missing: {self._sync_command}")
            if service_died(error):
                self._run = None
                end_service()

    def _warn(self, message: str) -> None:
        """Print the first error only; later ones are usually its consequences."""
        LOG.log(logging.DEBUG if self._warned else logging.WARNING, "Weights & Biases: %s", message)
        self._warned = True


def _new_id() -> str:
    return secrets.token_hex(5)


def _is_true(value: str | None) -> bool:
    return (value or "").strip().lower() in {"1", "true", "yes", "on"}


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
