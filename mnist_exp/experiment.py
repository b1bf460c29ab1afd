"""Build what a checked configuration describes, train it, and record how that ended.

The heavy half of ``train``: importing this module imports torch.
"""

from __future__ import annotations

import ctypes
import functools
import io
import logging
import platform
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from hydra.errors import InstantiationException
from torch import Tensor, nn

from mnist_exp import native
from mnist_exp.composition import CONF
from mnist_exp.config import Config, check
from mnist_exp.data import DataError, Digits
from mnist_exp.data.augment import Augment
from mnist_exp.loggers.console import Console
from mnist_exp.mistakes import RunFailed, UsageError, as_typed
from mnist_exp.models import count_parameters, layer_table
from mnist_exp.runs import RunDirectory, read_run, write_atomically
from mnist_exp.runs.directory import resume_command
from mnist_exp.runs.files import exists
from mnist_exp.runs.provenance import available_cores, cores, peak_memory, reset_peak_memory
from mnist_exp.signals import StopRequest
from mnist_exp.stored import describe_data
from mnist_exp.training import (
    Distillation,
    Diverged,
    EpochMetrics,
    ExponentialMovingAverage,
    Interrupted,
    Listener,
    Mixup,
    Objective,
    Recipe,
    Training,
    TrainingEnded,
    fit,
    load_checkpoint,
    parameter_groups,
    predict,
    save_checkpoint,
)
from mnist_exp.training.events import Pruned
from mnist_exp.trust import authorize, instantiate, logger_to_use, run_id_to_use

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


def choose_device(name: str) -> torch.device:
    """The device that ``trainer.device`` names.

    Raises:
        UsageError: there is no such device here.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available[:0] = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise UsageError(f"trainer.device={name} is not there; this machine has {', '.join(available)}")
    return torch.device(name)


def prepare_torch(config: Config, device: torch.device, threads: int | None) -> int:
    """Settings that hold for the whole process; returns the number of CPU threads.

    Args:
        threads: of an earlier part of the same run, whose bits are only repeated with as many.
    """
    threads = threads or config.trainer.threads or cores()
    torch.set_num_threads(threads)
    keep_freed_memory()
    if device.type == "cuda":
        # Same seed, same bits: refuses kernels whose result depends on timing.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
    return threads


def keep_freed_memory() -> None:
    """Let a freed tensor's memory wait for the next one, where the C library is glibc.

    It would give large blocks back to the kernel and get them again, page by page, in every step: a tenth to a quarter of
    a step's time on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 * 2**20)  # the largest that every version takes
        libc.mallopt(trim_threshold, 2**30)


def device_name(device: torch.device) -> str:
    """What ``run.json`` calls the device: its type, and a GPU's name."""
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def build_digits(tree: Mapping[str, Any], *, may_download: bool = True) -> Digits:
    """The data set, on the CPU.

    Args:
        may_download: whether absent files may be fetched into ``data.root``. The cache is always the user's own.

    Raises:
        UsageError: files are missing or damaged, or the splits cannot be made.
    """
    data = dict(tree["data"])
    if data.get("root") and not may_download and "download" in data:
        data["download"] = None
    try:
        digits = instantiate(data)
    except (InstantiationException, DataError) as error:
        raise UsageError(_cause(error, DataError, "data")) from error
    assert isinstance(digits, Digits)
    return digits


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


def build_model(tree: Mapping[str, Any], seed: int) -> nn.Module:
    """The network with its initial weights, a function of the seed alone.

    Kernels lie in memory with channels last: with LeNet-5's few channels that makes a step on a CPU a fifth faster.

    Raises:
        UsageError: its arguments do not fit together.
    """
    torch.manual_seed(seed)
    try:
        model = instantiate(tree["model"])
    except InstantiationException as error:
        raise UsageError(_cause(error, (TypeError, ValueError), "model")) from error
    assert isinstance(model, nn.Module)
    return model.to(memory_format=torch.channels_last)


def use_backend(model: nn.Module, config: Config, device: torch.device, begun_with: str | None = None) -> str:
    """Give the model's forward and backward pass to the native kernels, where they are wanted and can be had.

    Args:
        begun_with: the backend of an earlier part of the same run, whose bits are only repeated with the same one.

    Returns:
        ``native`` or ``torch``, what does the work.

    Raises:
        UsageError: the native kernels are asked for and cannot be had.
    """
    trainer = config.trainer
    wanted = begun_with or trainer.backend
    if wanted == "torch":
        return "torch"
    try:
        if device.type != "cpu" or trainer.precision != "float32" or trainer.compile:
            raise native.NotCovered("they compute in float32 on a CPU, without trainer.compile")
        native.attach(model)
    except native.NativeUnavailable as error:
        if begun_with:
            raise UsageError(f"this run began with native kernels, which cannot be had here: {error}") from error
        if wanted == "native":
            raise UsageError(f"trainer.backend=native cannot be: {error}; use trainer.backend=torch") from error
        if not isinstance(error, native.NotCovered):
            _say_once(f"mnist-train: PyTorch instead of native kernels, which cannot be had here: {error}")
        return "torch"
    return "native"


def _backend_so_far(run: RunDirectory) -> str | None:
    """The backend that a run has begun with; before it was recorded, there was PyTorch only."""
    begun: str | None = run.record.get("backend") or ("torch" if run.last_checkpoint.exists() else None)
    return begun


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def build_objective(config: Config, model: nn.Module) -> Objective:
    """What the model is trained to minimise."""
    return Objective(config.regularization.label_smoothing, getattr(model, "rubbish_logit", None))


def build_distillation(
    config: Config, tree: Mapping[str, Any], digest: str | None, device: torch.device
) -> Distillation | None:
    """The trained networks of ``regularization.distillation``, where there are any.

    Args:
        digest: of the data that this run trains on.

    Raises:
        UsageError: a run directory holds none, or one that can still change, or that saw images which this run holds out.
    """
    from mnist_exp.trained import trained_model  # which itself builds networks with this module

    def trained(directory: str) -> nn.Module:
        run = read_run(Path(directory))
        if run.status != "completed":
            raise UsageError(f"{directory} is {run.status}; a teacher must be completed")
        its_digest = run.record.get("data_digest")
        if its_digest and digest and its_digest != digest:
            raise UsageError(f"{directory} was trained on other digits (digest {its_digest}, here {digest})")
        # Digits that are known to be the same may have been read from anywhere.
        place = {"root", "download", "_target_"} if its_digest and digest else {"root"}
        own, its = (
            {key: value for key, value in data.items() if key not in place}
            for data in (tree["data"], run.config["data"])
        )
        if differing := [f"data.{key}={as_typed(its.get(key))}" for key in own if its.get(key) != own[key]]:
            raise UsageError(
                f"{directory} was trained with {' '.join(differing)}; a teacher must have seen what this run sees, and "
                "nothing that it holds out"
            )
        authorize(run.config)
        model, _ = trained_model(run, check(run.config), device)
        return model.eval()

    wanted = config.regularization.distillation
    try:
        teachers = [trained(directory) for directory in wanted.teachers]
    except UsageError as error:
        raise UsageError(f"regularization.distillation.teachers: {error}") from error
    return Distillation(teachers, wanted.weight, wanted.temperature) if teachers else None


def build_training(
    config: Config, tree: Mapping[str, Any], model: nn.Module, digits: Digits, device: torch.device
) -> tuple[Training, Recipe]:
    """Optimizer, schedule, average and recipe around a model that is on ``device``.

    Raises:
        UsageError: the optimizer or scheduler refuses its arguments.
    """
    trainer, regularization = config.trainer, config.regularization
    steps_per_epoch = -(-len(digits.train) // trainer.batch_size)
    group = "optimizer"
    try:
        factory = instantiate(tree["optimizer"])
        optimizer = factory(parameter_groups(model, decay_all=regularization.decay_all))
        group = "scheduler"
        factory = instantiate(tree["scheduler"])
        scheduler = factory(optimizer, epochs=trainer.epochs, steps_per_epoch=steps_per_epoch)
    except (InstantiationException, TypeError, ValueError) as error:
        raise UsageError(_cause(error, (TypeError, ValueError), group)) from error
    ema = ExponentialMovingAverage(model, regularization.ema) if regularization.ema is not None else None
    distortions = regularization.augmentation.model_dump()
    strength = distortions.pop("strength")
    shape = {"elastic_sigma", "interpolation"}
    amplitudes = {key: strength * value for key, value in distortions.items() if key not in shape}
    augment = Augment(**{**distortions, **amplitudes}, background=digits.background)
    recipe = Recipe(
        epochs=trainer.epochs,
        batch_size=trainer.batch_size,
        eval_batch_size=trainer.eval_batch_size,
        seed=config.seed,
        objective=build_objective(config, model),
        augment=augment if any(amplitudes.values()) else None,
        mixup=Mixup(regularization.mixup) if regularization.mixup else None,
        distillation=build_distillation(config, tree, digits.digest, device),
        gradient_clipping=regularization.gradient_clipping,
        patience=regularization.early_stopping,
        bfloat16=trainer.precision == "bfloat16",
        compile=trainer.compile,
    )
    # Training draws from a stream of its own, whatever the number of draws that initial weights took.
    torch.manual_seed(config.seed + 1)
    return Training(model, optimizer, scheduler, ema, device), recipe


def build_logger(run: RunDirectory) -> Listener:
    """Whoever ``logger`` names, told which run this is and whether it is a continuation."""
    logger = instantiate(run.tree["logger"])(
        directory=run.path,
        name=f"{run.record['name']}-{run.record['seed']}",
        sweep=run.record.get("sweep"),
        config=run.tree,
        run_id=run_id_to_use(run.record.get("wandb"), run.tree["logger"]),
        parameters=run.record["parameters"],
        on_identity=lambda identity: run.update(wandb=identity),
    )
    assert isinstance(logger, Listener)
    return logger


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


def _cause(error: BaseException, kinds: type[Exception] | tuple[type[Exception], ...], group: str) -> str:
    """The message of the first exception of these kinds below ``error``, on one line."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, kinds):
        found = found.__cause__
    message = " ".join(str(found or error).split())
    return message if isinstance(found, DataError) else f"{group}: {message}"
