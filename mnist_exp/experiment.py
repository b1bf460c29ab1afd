"""One run: build its parts, train, save, and record how it ended. Importing this module imports torch."""

from __future__ import annotations

import io
import logging
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from mnist_exp.build import Parts, build
from mnist_exp.components import DataRefused, callback_arguments
from mnist_exp.compose import CONF
from mnist_exp.config import Wandb
from mnist_exp.data import Dataset
from mnist_exp.data.splits import pixels_of
from mnist_exp.device import device_name
from mnist_exp.errors import RunFailed, RunInterrupted, UsageError
from mnist_exp.loggers.console import Console
from mnist_exp.models import count_parameters
from mnist_exp.runs import RunDirectory, Status, write_atomically
from mnist_exp.runs.directory import resume_command
from mnist_exp.runs.files import exists
from mnist_exp.runs.provenance import available_cores, peak_memory, reset_peak_memory
from mnist_exp.runs.reading import read_overrides
from mnist_exp.signals import StopRequest
from mnist_exp.stored import describe_data
from mnist_exp.training import (
    Callback,
    Diverged,
    EpochMetrics,
    Interrupted,
    TrainingEnded,
    TrainState,
    drop_previous,
    fit,
    fitting,
    load_checkpoint,
    load_last_whole,
    predict,
    save_checkpoint,
    score,
)
from mnist_exp.training.events import Pruned
from mnist_exp.trust import logger_to_use, own_packages

LOG = logging.getLogger("mnist_exp")
WORST_DIGITS = 100  # images kept in predictions.npz: a LeNet-5 misclassifies about 100 of MNIST's 10,000 test images


def run_experiment(
    run: RunDirectory,
    stop: StopRequest,
    parts: Parts | None = None,
    *,
    import_seconds: float = 0.0,
    in_sweep: bool = False,
) -> float | None:
    """Train the run from its last checkpoint, or from the start if it has none, and record how it ended.

    Args:
        parts: of a new run, which are built before its directory exists; None: build them here.
        in_sweep: the console shows the progress of the whole sweep, so print no lines for this run.

    Returns:
        validation accuracy of the result, a fraction, the objective of a search; None without validation data.

    Raises:
        UsageError: the data, the device or an argument is not possible.
        RunFailed: the run diverged or failed; the traceback is in ``train.log``.
        RunInterrupted: a signal arrived. The last step is saved, except after a second SIGINT.
    """
    began = time.perf_counter() - import_seconds - (parts.build_seconds if parts else 0.0)
    options = _options_to_resume(run)
    with Console(run.path, quiet=run.config.quiet, in_sweep=in_sweep, options=options) as console:
        ending = _Ending(run, began, {**run.record.seconds, "import": import_seconds}, [console])
        try:
            result = _build_and_fit(run, stop, console, ending, parts)
        except UsageError as error:
            ending.record(Status.FAILED, error)
            raise
        except Pruned as error:
            ending.record(Status.PRUNED, error)
            return None
        except (Interrupted, KeyboardInterrupt) as error:
            ending.record(Status.INTERRUPTED, error)
            number = (stop.signal if isinstance(error, Interrupted) else None) or signal.SIGINT
            message = f"{run.path} is interrupted; to continue it: {resume_command(run.path)}"
            raise RunInterrupted(message, number) from error
        except Diverged as error:
            ending.record(Status.DIVERGED, error)
            raise RunFailed(f"{run.path} diverged: {error}") from error
        except Exception as error:
            ending.record(Status.FAILED, error)
            raise RunFailed(f"{run.path} failed: {type(error).__name__}: {error}; see train.log there") from error
        ending.record(Status.COMPLETED, **result)
    return cast("float | None", result["final"].get("val_accuracy"))


def _options_to_resume(run: RunDirectory) -> list[str]:
    """The options that ``mnist-train resume=DIR`` needs to send this run to the same logger and to trust the same packages."""
    default = OmegaConf.to_container(OmegaConf.load(CONF / "logger" / "wandb.yaml"), resolve=True)
    _, settings = logger_to_use(run.config.logger, Wandb.model_validate(default), ())
    return settings + [word for package in sorted(own_packages(run.config)) for word in ("--trust", package)]


@dataclass
class _Ending:
    """Records how a run ended: in ``run.json``, then with ``on_end`` of its callbacks.

    Attributes:
        began: value of ``time.perf_counter`` when this part of the run began.
        seconds: by phase; ``total`` is that of earlier parts of the run until ``record`` adds this one.
    """

    run: RunDirectory
    began: float
    seconds: dict[str, float]
    callbacks: list[Callback]

    def record(self, status: Status, error: BaseException | None = None, **result: Any) -> None:
        """Record the end.

        Raises:
            RunFailed: the run was completed, and then a callback failed.
        """
        run, total = self.run, self.seconds.get("total", 0.0) + time.perf_counter() - self.began
        seconds = {**self.seconds, "total": total}
        run.end(status, error, seconds=seconds, peak_memory_bytes=peak_memory(), **result)
        summary = {"parameters": run.record.parameters or 0, "seconds": total, **result.get("final", {})}
        # The user's callbacks first: our loggers then receive the status that a failure of theirs leaves.
        for callback in sorted(self.callbacks, key=lambda callback: type(callback).__module__.startswith("mnist_exp.")):
            try:
                callback.on_end(TrainingEnded(run.record.status.value, run.record.error, summary))
            except Exception as failure:
                if status != Status.COMPLETED:  # the first error stays in the record
                    LOG.warning("%s.on_end failed", type(callback).__name__, exc_info=failure)
                elif run.record.status == Status.COMPLETED:
                    run.end(Status.FAILED, failure)
        if status != run.record.status:
            raise RunFailed(f"{run.path} failed: {run.record.error}; see train.log there")


def _build_and_fit(
    run: RunDirectory, stop: Callable[[], bool], console: Console, ending: _Ending, parts: Parts | None
) -> dict[str, Any]:
    """Build the parts, train, and return the fields of ``run.json`` that describe the result.

    Adds the callbacks and the seconds of each phase to ``ending`` as soon as they exist, because a failure needs them too.
    """
    reset_peak_memory()
    has_checkpoint = exists(run.last_checkpoint, below=run.path)
    parts = parts or _build(run, has_checkpoint)
    for message in parts.messages:
        LOG.handle(message)
    ending.seconds["data"] = parts.data_seconds
    _warn_of_too_many_threads(parts)
    _compare_data(run, parts.dataset, has_checkpoint)
    if run.config.show_layers:
        console.print_layers(parts.layers)
    if has_checkpoint:
        checkpoint = load_last_whole(run.last_checkpoint, parts.state.device)
        with fitting(run.last_checkpoint):
            parts.state.load_state_dict(checkpoint)
    rows = run.keep_metrics(parts.state.epoch)
    _record_parts(run, parts, has_checkpoint)
    parts.on_identity = lambda identity: run.update(wandb=identity)
    ending.callbacks += parts.callbacks
    ending.callbacks += _further_callbacks(run, rows[-1] if rows and not parts.state.step else None)
    save = partial(_save_epoch, run)
    fit(parts.state, parts.dataset, parts.train_config, callbacks=ending.callbacks, save=save, stop=stop)
    return _result(run, parts, ending.seconds)


def _build(run: RunDirectory, has_checkpoint: bool) -> Parts:
    """Build the parts of a run that is resumed, or that waited.

    Raises:
        UsageError: something is not possible. If it is the data, the message shows how to name their new folder.
    """
    # Runs of versions that recorded no backend used PyTorch.
    backend = run.record.backend or ("torch" if has_checkpoint else None)
    try:
        return build(
            run.config,
            trusted=run.trusted,
            may_download=run.may_download,
            threads=run.record.threads,
            backend=backend,
            has_checkpoint=has_checkpoint,
            callback_arguments=callback_arguments(run.path, run.config, read_overrides(run.path), run.record),
        )
    except DataRefused as error:
        moved = has_checkpoint and run.config.data.folder
        hint = f"; if the data are elsewhere: {resume_command(run.path, 'data.root=FOLDER')}" if moved else ""
        raise UsageError(f"{error}{hint}") from error


def _warn_of_too_many_threads(parts: Parts) -> None:
    """Warn if a resumed run keeps more threads than this machine has cores: its results depend on their number."""
    if parts.state.device.type == "cpu" and parts.threads > (available := available_cores()):
        LOG.warning(
            "%d threads on %d %s: training may be many times slower than with trainer.threads=%d",
            *(parts.threads, available, "core" if available == 1 else "cores", available),
        )


def _compare_data(run: RunDirectory, dataset: Dataset, has_checkpoint: bool) -> None:
    """Compare the digest of the data with the recorded one when a run is resumed.

    Raises:
        UsageError: the digests differ.
    """
    recorded = run.record.data_digest
    if not has_checkpoint:
        return
    if recorded is None:
        LOG.warning("an earlier version recorded no digest of the data; whether they are the same is not checked")
    elif recorded != dataset.digest:
        raise UsageError(
            f"{describe_data(run.config.data)}: other images than the run was trained on (digest {dataset.digest}, not "
            f"{recorded}); if those are elsewhere: {resume_command(run.path, 'data.root=FOLDER')}"
        )


def _record_parts(run: RunDirectory, parts: Parts, has_checkpoint: bool) -> None:
    first = {} if has_checkpoint else {"data_digest": parts.dataset.digest, "init_from": parts.init_from}
    run.update(
        **first,
        parameters=count_parameters(parts.state.model),
        macs=sum(layer.macs for layer in parts.layers),
        threads=parts.threads,
        device=device_name(parts.state.device),
        backend=parts.backend,
        preparation=parts.image_properties.model_dump(),
    )


def _further_callbacks(run: RunDirectory, last: Mapping[str, Any] | None) -> list[Callback]:
    """The profiler, if it is asked for, and the pruning of a search, if the run is one of its trials.

    Args:
        last: the line of metrics of the last epoch, if no further epoch has begun.
    """
    callbacks: list[Callback] = []
    if run.config.trainer.profile:
        from mnist_exp.loggers.profile import Profiler

        callbacks.append(Profiler(run.path))
    if run.record.search is not None:
        from mnist_exp.pruning import OptunaPruning

        callbacks.append(OptunaPruning(run.record.search, run.path.absolute().parent, last))
    return callbacks


def _save_epoch(run: RunDirectory, state: TrainState, metrics: EpochMetrics | None, is_best: bool) -> None:
    """Write the line of metrics, if the epoch is complete, and the checkpoints."""
    if metrics is not None:
        run.append_metrics(metrics.as_row())
    checkpoint = state.state_dict()
    if is_best:
        save_checkpoint(run.best_checkpoint, checkpoint)
    save_checkpoint(run.last_checkpoint, checkpoint)


def _result(run: RunDirectory, parts: Parts, seconds: dict[str, float]) -> dict[str, Any]:
    """Write ``predictions.npz``, add the seconds of training and evaluation, and return the result for ``run.json``."""
    state, device = parts.state, parts.state.device
    for checkpoint in (run.last_checkpoint, run.best_checkpoint):
        if exists(checkpoint, below=run.path):
            drop_previous(checkpoint, device)
    rows = run.keep_metrics(state.epoch)
    seconds["train"] = sum(row["train_seconds"] for row in rows)
    seconds["eval"] = sum(row["eval_seconds"] for row in rows)
    best = {"epoch": state.best_epoch, "val_accuracy": state.best_accuracy, "val_loss": state.best_loss}
    if run.config.trainer.selection == "best":
        best_state = load_checkpoint(run.best_checkpoint, device)
        with fitting(run.best_checkpoint):
            state.load_state_dict(best_state)
    final = rows[state.epoch - 1]
    if run.config.trainer.evaluate_test != "never":
        test = parts.dataset.test
        logits = predict(state, test.images, parts.train_config)
        save_predictions(run, predictions(logits, parts.dataset))
        if "test_accuracy" not in final:
            loss, accuracy = score(logits, test.labels, parts.train_config.objective)
            final = {**final, "test_loss": loss, "test_accuracy": accuracy}
    return {
        "final": final,
        "best": best if best["epoch"] else None,
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def save_predictions(run: RunDirectory, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write ``predictions.npz``.

    Args:
        arrays: as ``predictions`` returns them.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's types allow for an array named allow_pickle
    write_atomically(run.path / "predictions.npz", buffer.getvalue())


def predictions(logits: Tensor, dataset: Dataset) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of ``predictions.npz``.

    ``logits`` (N, C), float32, ``labels`` (N,), int64, and the images whose label got the least probability, worst first,
    so that a report can show them without the data set: ``worst`` (K,), int64, their indices, and ``worst_images``
    (K, S, S), or (K, S, S, 3) in colour, uint8, their pixels (high values are ink).

    Args:
        logits: of the test images, on the CPU, as ``training.evaluate`` returns them.
        dataset: on any device.
    """
    labels, images = dataset.test.labels.cpu(), dataset.test.images
    probability = logits.double().softmax(dim=1).gather(1, labels[:, None])[:, 0]
    worst = probability.argsort(stable=True)[:WORST_DIGITS]
    return {
        "logits": logits.numpy(),
        "labels": labels.numpy(),
        "worst": worst.numpy(),
        "worst_images": pixels_of(images[worst.to(images.device)], dataset.mean, dataset.std),
    }
