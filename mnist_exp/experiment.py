"""Build what a checked configuration describes, train it, and record how that ended.

The heavy half of ``train``: importing this module imports torch.
"""

from __future__ import annotations

import io
import logging
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
import yaml
from torch import Tensor

from mnist_exp.build import Parts, build
from mnist_exp.components import DataRefused, facts_of
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
    load_checkpoint,
    load_last_whole,
    predict,
    save_checkpoint,
)
from mnist_exp.training.events import Pruned
from mnist_exp.trust import logger_to_use, own_packages

LOG = logging.getLogger("mnist_exp")
WORST_DIGITS = 100  # images kept in predictions.npz: about what a LeNet-5 gets wrong of MNIST's 10,000


def run_experiment(
    run: RunDirectory,
    stop: StopRequest,
    parts: Parts | None = None,
    *,
    import_seconds: float = 0.0,
    in_sweep: bool = False,
) -> float | None:
    """Train what ``run`` describes, from its last checkpoint where it has one, and record how it ended.

    Args:
        parts: built already, as they are for a new run; None: built here.
        in_sweep: this process shows a whole sweep, and not each job.

    Returns:
        validation accuracy of the result, the objective of a search; None without validation data.

    Raises:
        UsageError: data, device or arguments that cannot be.
        RunFailed: the run diverged, or failed in a way that nobody foresaw; the traceback is in ``train.log``.
        RunInterrupted: a signal came; the last step is saved, unless it was a second SIGINT.
    """
    began = time.perf_counter() - import_seconds - (parts.build_seconds if parts else 0.0)
    seconds = {**run.record.seconds, "import": import_seconds}
    seconds_before = seconds.get("total", 0.0)
    callbacks: list[Callback] = []

    def end(status: Status, error: BaseException | None = None, **result: Any) -> None:
        seconds["total"] = seconds_before + time.perf_counter() - began
        run.end(status, error, seconds=seconds, peak_memory_bytes=peak_memory(), **result)
        summary = {
            "parameters": run.record.parameters or 0,
            "seconds": seconds["total"],
            **result.get("final", {}),
        }
        for callback in sorted(callbacks, key=lambda callback: type(callback).__module__.startswith("mnist_exp.")):
            try:
                callback.on_end(TrainingEnded(run.record.status.value, run.record.error, summary))
            except Exception as failure:
                if status != Status.COMPLETED:  # how the run ended stays as it is
                    LOG.warning("%s.on_end failed", type(callback).__name__, exc_info=failure)
                elif run.record.status == Status.COMPLETED:
                    run.end(Status.FAILED, failure)
        if status != run.record.status:
            raise RunFailed(f"{run.path} failed: {run.record.error}; see train.log there")

    def interrupted(number: int) -> RunInterrupted:
        return RunInterrupted(f"{run.path} is interrupted; to continue it: {resume_command(run.path)}", number)

    default = yaml.safe_load((CONF / "logger" / "wandb.yaml").read_text(encoding="utf-8"))
    _, options = logger_to_use(run.config.logger, Wandb.model_validate(default), ())
    options += [word for package in sorted(own_packages(run.config)) for word in ("--trust", package)]
    with Console(run.path, quiet=run.config.quiet, in_sweep=in_sweep, options=options) as console:
        callbacks.append(console)
        try:
            result = _build_and_fit(run, stop, console, callbacks, seconds, parts)
        except UsageError as error:
            end(Status.FAILED, error)
            raise
        except Pruned as error:
            end(Status.PRUNED, error)
            return None
        except Interrupted as error:
            end(Status.INTERRUPTED, error)
            raise interrupted(stop.signal or signal.SIGINT) from error
        except KeyboardInterrupt as error:
            end(Status.INTERRUPTED, error)
            raise interrupted(signal.SIGINT) from error
        except Diverged as error:
            end(Status.DIVERGED, error)
            raise RunFailed(f"{run.path} diverged: {error}") from error
        except Exception as error:
            end(Status.FAILED, error)
            raise RunFailed(f"{run.path} failed: {type(error).__name__}: {error}; see train.log there") from error
        end(Status.COMPLETED, **result)
    return cast("float | None", result["final"].get("val_accuracy"))


def _build_and_fit(
    run: RunDirectory,
    stop: Callable[[], bool],
    console: Console,
    callbacks: list[Callback],
    seconds: dict[str, float],
    parts: Parts | None,
) -> dict[str, Any]:
    """The fields of ``run.json`` that describe the result. Adds to ``callbacks`` and ``seconds`` as it goes."""
    reset_peak_memory()
    begun = exists(run.last_checkpoint, below=run.path)
    parts = parts or _build(run, begun)
    for record in parts.messages:
        LOG.handle(record)
    seconds["data"] = parts.data_seconds
    state, train_config, dataset, device = parts.state, parts.train_config, parts.dataset, parts.state.device
    if device.type == "cpu" and parts.threads > (available := available_cores()):
        # Kept, because results depend on the number of threads.
        LOG.warning(
            "%d threads on %d %s: training may be many times slower than with trainer.threads=%d",
            *(parts.threads, available, "core" if available == 1 else "cores", available),
        )
    _compare_data(run, dataset, begun)
    if run.config.show_layers:
        console.print_layers(parts.layers)
    if begun:
        state.load_state_dict(load_last_whole(run.last_checkpoint, device))
    elif parts.init_from:
        run.update(init_from=parts.init_from)
    run.keep_metrics(state.epoch)
    run.update(
        parameters=count_parameters(state.model),
        macs=sum(layer.macs for layer in parts.layers),
        threads=parts.threads,
        device=device_name(device),
        backend=parts.backend,
        preparation=parts.found.model_dump(),
    )
    parts.on_identity = lambda identity: run.update(wandb=identity)
    callbacks += parts.callbacks
    if run.config.trainer.profile:
        from mnist_exp.loggers.profile import Profiler

        callbacks.append(Profiler(run.path))
    if run.record.search is not None:
        from mnist_exp.pruning import OptunaPruning

        callbacks.append(OptunaPruning(run.record.search, run.path.absolute().parent))

    def save(state: TrainState, metrics: EpochMetrics | None, is_best: bool) -> None:
        if metrics is not None:
            run.append_metrics(metrics.as_row())
        checkpoint = state.state_dict()
        if is_best:
            save_checkpoint(run.best_checkpoint, checkpoint)
        save_checkpoint(run.last_checkpoint, checkpoint)

    fit(state, dataset, train_config, callbacks=callbacks, save=save, stop=stop)

    for checkpoint in (run.last_checkpoint, run.best_checkpoint):
        if exists(checkpoint, below=run.path):
            drop_previous(checkpoint, device)
    rows = run.keep_metrics(state.epoch)
    seconds["train"] = sum(row["train_seconds"] for row in rows)
    seconds["eval"] = sum(row["eval_seconds"] for row in rows)
    best = {"epoch": state.best_epoch, "val_accuracy": state.best_accuracy, "val_loss": state.best_loss}
    if run.config.trainer.selection == "best":
        state.load_state_dict(load_checkpoint(run.best_checkpoint, device))
    save_predictions(run, predictions(predict(state, dataset.test.images, train_config), dataset))
    return {
        "final": rows[state.epoch - 1],
        "best": best if best["epoch"] else None,
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def _build(run: RunDirectory, begun: bool) -> Parts:
    """What a stored run trains with.

    Raises:
        UsageError: something of it cannot be had; if it is the data, with what to type when they have moved.
    """
    # Before it was recorded, there was PyTorch only.
    backend = run.record.backend or ("torch" if begun else None)
    try:
        return build(
            run.config,
            trusted=run.trusted,
            may_download=run.may_download,
            threads=run.record.threads,
            backend=backend,
            begun=begun,
            facts=facts_of(run.path, run.config, run.record),
        )
    except DataRefused as error:
        moved = begun and run.config.data.folder
        hint = f"; where the data lie now: {resume_command(run.path, 'data.root=FOLDER')}" if moved else ""
        raise UsageError(f"{error}{hint}") from error


def _compare_data(run: RunDirectory, dataset: Dataset, begun: bool) -> None:
    """Record the digest of the data when a run starts, and compare it when the run is resumed.

    Raises:
        UsageError: they are others.
    """
    recorded = run.record.data_digest
    if not begun:
        run.update(data_digest=dataset.digest)
    elif recorded is None:
        LOG.warning("an earlier version recorded no digest of the data; that they are the same is not checked")
    elif recorded != dataset.digest:
        raise UsageError(
            f"{describe_data(run.config.data)}: other digits than the run was trained on (digest {dataset.digest}, not "
            f"{recorded}); where those are: {resume_command(run.path, 'data.root=FOLDER')}"
        )


def save_predictions(run: RunDirectory, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write ``predictions.npz``: what ``predictions`` gives."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the arrays for allow_pickle
    write_atomically(run.path / "predictions.npz", buffer.getvalue())


def predictions(logits: Tensor, dataset: Dataset) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays that reports need: ``logits`` (N, C), float32, ``labels`` (N,), int64, and the digits that went worst.

    ``worst`` (K,), int64, are the images whose label got the least probability, worst first, and ``worst_images``
    (K, S, S), or (K, S, S, 3) in colour, uint8, what they look like (ink bright), so that a report can show them without
    the data set.

    Args:
        logits: of the test images, on the CPU, as ``training.evaluate`` gives them.
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
