"""Build what a checked configuration describes, train it, and record how that ended.

The heavy half of ``train``: importing this module imports torch.
"""

from __future__ import annotations

import io
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from torch import Tensor

from mnist_exp.composition import CONF
from mnist_exp.config import Config
from mnist_exp.data import Digits
from mnist_exp.loggers.console import Console
from mnist_exp.mistakes import RunFailed, UsageError
from mnist_exp.models import count_parameters, layer_table
from mnist_exp.runs import RunDirectory, write_atomically
from mnist_exp.runs.directory import resume_command
from mnist_exp.runs.files import exists
from mnist_exp.runs.provenance import available_cores, peak_memory, reset_peak_memory
from mnist_exp.signals import StopRequest
from mnist_exp.stored import describe_data
from mnist_exp.training import (
    Diverged,
    EpochMetrics,
    Interrupted,
    Listener,
    Training,
    TrainingEnded,
    fit,
    load_checkpoint,
    predict,
    save_checkpoint,
)
from mnist_exp.training.events import Pruned
from mnist_exp.trust import authorize, logger_to_use

LOG = logging.getLogger("mnist_exp")
WORST_DIGITS = 100  # images kept in predictions.npz: about what a LeNet-5 gets wrong of MNIST's 10,000


def run_experiment(
    run: RunDirectory, config: Config, stop: StopRequest, *, import_seconds: float = 0.0
) -> float | None:
    """Train what ``run`` describes, from its last checkpoint where it has one, and record how it ended.

    Returns:
        validation accuracy of the result, the objective of a search; None without validation data.

    Raises:
        UsageError: data, device or arguments that cannot be.
        RunFailed: the run diverged, or failed in a way that nobody foresaw; the traceback is in ``train.log``.
        SystemExit: with 128 plus the signal, after an interruption.
    """
    began = time.perf_counter() - import_seconds
    seconds = {**run.record.get("seconds", {}), "import": import_seconds}
    seconds_before = seconds.get("total", 0.0)
    listeners: list[Listener] = []

    def end(status: str, error: BaseException | None = None, **result: Any) -> None:
        seconds["total"] = seconds_before + time.perf_counter() - began
        run.end(status, error, seconds=seconds, peak_memory_bytes=peak_memory(), **result)
        summary = {
            "parameters": run.record.get("parameters", 0),
            "seconds": seconds["total"],
            **result.get("final", {}),
        }
        for listener in listeners:
            listener.on_end(TrainingEnded(status, run.record["error"], summary))

    default = yaml.safe_load((CONF / "logger" / "wandb.yaml").read_text(encoding="utf-8"))
    _, options = logger_to_use(run.tree["logger"], default, ())
    with Console(run.path, quiet=config.quiet, options=options) as console:
        listeners.append(console)
        try:
            result = _build_and_fit(run, config, stop, console, listeners, seconds)
        except UsageError as error:
            end("failed", error)
            raise
        except Pruned as error:
            end("pruned", error)
            return None
        except Interrupted as error:
            end("interrupted", error)
            sys.exit(128 + (stop.signal or signal.SIGINT))
        except KeyboardInterrupt as error:
            end("interrupted", error)
            sys.exit(128 + signal.SIGINT)
        except Diverged as error:
            end("diverged", error)
            raise RunFailed(f"{run.path} diverged: {error}") from error
        except Exception as error:
            end("failed", error)
            raise RunFailed(f"{run.path} failed: {type(error).__name__}: {error}; see train.log there") from error
        end("completed", **result)
    return cast("float | None", result["final"].get("val_accuracy"))


def _build_and_fit(
    run: RunDirectory,
    config: Config,
    stop: Callable[[], bool],
    console: Console,
    listeners: list[Listener],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The fields of ``run.json`` that describe the result. Adds to ``listeners`` and ``seconds`` as it goes."""
    reset_peak_memory()
    authorize(run.tree)
    device = choose_device(config.trainer.device)
    threads = prepare_torch(config, device, run.record.get("threads"))
    if device.type == "cpu" and threads > (available := available_cores()):
        # Kept, because results depend on the number of threads.
        LOG.warning(
            "%d threads on %d %s: training may be many times slower than with trainer.threads=%d",
            *(threads, available, "core" if available == 1 else "cores", available),
        )

    began = time.perf_counter()
    digits = read_data(run).to(device)
    seconds["data"] = time.perf_counter() - began

    model = build_model(run.tree, config.seed)
    if config.init_from is not None and not exists(run.last_checkpoint, below=run.path):
        from mnist_exp.trained import load_weights  # which itself builds networks with this module

        run.update(init_from=load_weights(model, Path(config.init_from)))
    model = model.to(device)
    layers = layer_table(model, config.data.image_size)
    if config.show_layers:
        console.print_layers(layers)
    backend = use_backend(model, config, device, _backend_so_far(run))
    training, recipe = build_training(config, run.tree, model, digits, device)
    if exists(run.last_checkpoint, below=run.path):
        training.load_state_dict(load_checkpoint(run.last_checkpoint, device))
    run.keep_metrics(training.epoch)
    run.update(
        parameters=count_parameters(model),
        macs=sum(layer.macs for layer in layers),
        threads=threads,
        device=device_name(device),
        backend=backend,
    )
    if run.tree["logger"]:
        listeners.append(build_logger(run))
    if "search" in run.record:
        from mnist_exp.sweeps.search import PruneHopeless

        listeners.append(PruneHopeless(run.record["search"], run.path.absolute().parent))

    def save(training: Training, metrics: EpochMetrics | None, is_best: bool) -> None:
        if metrics is not None:
            run.append_metrics(metrics.as_row())
        state = training.state_dict()
        if is_best:
            save_checkpoint(run.best_checkpoint, state)
        save_checkpoint(run.last_checkpoint, state)

    fit(training, digits, recipe, listeners=listeners, save=save, stop=stop)

    rows = run.keep_metrics(training.epoch)
    seconds["train"] = sum(row["train_seconds"] for row in rows)
    seconds["eval"] = sum(row["eval_seconds"] for row in rows)
    best = {"epoch": training.best_epoch, "val_accuracy": training.best_accuracy, "val_loss": training.best_loss}
    if config.trainer.selection == "best":
        training.load_state_dict(load_checkpoint(run.best_checkpoint, device))
    save_predictions(run, predict(training, digits.test.images, recipe), digits.test.labels, digits.test.images)
    return {
        "final": rows[training.epoch - 1],
        "best": best if best["epoch"] else None,
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def read_data(run: RunDirectory) -> Digits:
    """The run's data, on the CPU; their digest is recorded when it starts and compared when it is resumed.

    Raises:
        UsageError: they are not there, or they are others.
    """
    begun = exists(run.last_checkpoint, below=run.path)
    moved = resume_command(run.path, "data.root=FOLDER")
    try:
        digits = build_digits(run.tree, may_download=run.may_download)
    except UsageError as error:
        hint = f"; where the data lie now: {moved}" if begun and run.tree["data"].get("root") else ""
        raise UsageError(f"{error}{hint}") from error
    recorded = run.record.get("data_digest")
    if not begun:
        run.update(data_digest=digits.digest)
    elif recorded is None:
        LOG.warning("an earlier version recorded no digest of the data; that they are the same is not checked")
    elif recorded != digits.digest:
        raise UsageError(
            f"{describe_data(run.tree['data'])}: other digits than the run was trained on (digest {digits.digest}, not "
            f"{recorded}); where those are: {moved}"
        )
    return digits


def _backend_so_far(run: RunDirectory) -> str | None:
    """The backend that a run has begun with; before it was recorded, there was PyTorch only."""
    begun: str | None = run.record.get("backend") or ("torch" if run.last_checkpoint.exists() else None)
    return begun


def save_predictions(run: RunDirectory, logits: Tensor, labels: Tensor, images: Tensor | None = None) -> None:
    """Write ``predictions.npz``: what ``predictions`` gives."""
    arrays = predictions(run.tree["data"], logits, labels, images)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the arrays for allow_pickle
    write_atomically(run.path / "predictions.npz", buffer.getvalue())


def predictions(
    data: Mapping[str, Any], logits: Tensor, labels: Tensor, images: Tensor | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays that reports need: logits (N, C), float32, labels (N,), int64, and the digits that went worst.

    ``worst`` (K,), int64, are the images whose label got the least probability, worst first, and ``worst_images``
    (K, S, S), uint8, what they look like (ink bright), so that a report can show them without the data set.

    Args:
        data: the config's section, which knows how images were normalised.
        logits: on the CPU, as ``training.evaluate`` gives them.
        labels: on any device.
        images: normalised test images (N, 1, S, S), on any device; None leaves ``worst`` out.
    """
    labels = labels.cpu()
    arrays = {"logits": logits.numpy(), "labels": labels.numpy()}
    if images is not None:
        probability = logits.double().softmax(dim=1).gather(1, labels[:, None])[:, 0]
        worst = probability.argsort(stable=True)[:WORST_DIGITS]
        pixels = images[worst.to(images.device), 0] * data["std"] + data["mean"]
        arrays["worst"] = worst.numpy()
        arrays["worst_images"] = (pixels * 255).round().clamp(0, 255).byte().cpu().numpy()
    return arrays


