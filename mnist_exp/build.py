"""Build everything that a run needs from its checked configuration.

Nothing is written. Importing this module imports torch.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnist_exp import native
from mnist_exp.components import (
    build_callbacks,
    build_data,
    build_model,
    build_objective,
    build_optimizer,
    build_scheduler,
    callback_arguments,
    image_properties,
    layers_of,
)
from mnist_exp.config import Config, ImageProperties
from mnist_exp.data import Dataset
from mnist_exp.data.augment import Augment
from mnist_exp.device import choose_device, prepare_torch, use_backend
from mnist_exp.errors import UsageError, as_typed, typed
from mnist_exp.models import LayerRow, count_parameters
from mnist_exp.reader import trained_model
from mnist_exp.runs import Status, read_run
from mnist_exp.training import (
    Callback,
    Distillation,
    ExponentialMovingAverage,
    Mixup,
    TrainConfig,
    TrainState,
)
from mnist_exp.trust import Trusted, check_target_types, own_packages

LOG = logging.getLogger("mnist_exp")


@dataclass
class Parts:
    """Everything that a run needs for training.

    Attributes:
        layers: the layer table of the network.
        threads: number of CPU threads.
        backend: ``torch`` or ``native``, which computes the network.
        init_from: the run that the initial weights are from, for ``run.json``; None: they are random.
        image_properties: for ``run.json``.
        data_seconds, build_seconds: time to read the data, and to build everything including the data.
        messages: log records of this time, when there was no console and no log file yet.
        callbacks: the logger and the callbacks of the configuration, in this order.
        on_identity: called by a logger with the fields of ``run.json`` that identify its own run.
    """

    dataset: Dataset
    state: TrainState
    train_config: TrainConfig
    layers: list[LayerRow]
    threads: int
    backend: str
    init_from: dict[str, Any] | None
    image_properties: ImageProperties
    data_seconds: float
    build_seconds: float
    messages: list[logging.LogRecord] = field(default_factory=list)
    callbacks: list[Callback] = field(default_factory=list)
    on_identity: Callable[[dict[str, Any]], object] = lambda identity: None


def build(
    config: Config,
    *,
    trusted: Trusted = None,
    may_download: bool = True,
    threads: int | None = None,
    backend: str | None = None,
    has_checkpoint: bool = False,
    callback_arguments: Mapping[str, Any] | None = None,
) -> Parts:
    """Build everything that the configuration describes, on its device.

    Args:
        trusted: packages whose code may run besides ours; None: all, because the user wrote the configuration.
        may_download: see ``build_data``.
        threads, backend: as recorded when the run started, because other ones change its bits; None: choose them.
        has_checkpoint: the run's checkpoint will replace the weights, so ``init_from`` is not read.
        callback_arguments: as ``components.callback_arguments`` returns them; None: build no callbacks.

    Raises:
        UsageError: the data, the device or an argument is not possible.
    """
    start = time.perf_counter()
    check_target_types(config, trusted)
    # The teachers and the run of init_from may need the packages that this configuration names.
    others = own_packages(config).union(config.trust) if trusted is None else trusted
    device = choose_device(config.trainer.device)
    threads = prepare_torch(config.trainer, device, threads)
    began = time.perf_counter()
    with buffer_log() as messages:
        dataset = build_data(config.data, may_download=may_download).to(device)
    data_seconds = time.perf_counter() - began
    properties = image_properties(dataset)
    config = config.with_image_properties(properties)
    model = build_model(config)
    init_from = load_weights(model, Path(config.init_from), others) if config.init_from and not has_checkpoint else None
    model = model.to(device)
    layers = layers_of(model, config)
    _refuse_batch_of_one(model, dataset.train.images[:1].to(device), len(dataset.train), config.trainer.batch_size)
    backend = use_backend(model, config.trainer, device, backend)
    state, train_config = build_training(config, model, dataset, device, others)
    parts = Parts(
        dataset, state, train_config, layers, threads, backend, init_from, properties, data_seconds, 0.0, messages
    )
    if callback_arguments is not None:
        further = {"parameters": count_parameters(model), "on_identity": lambda identity: parts.on_identity(identity)}
        parts.callbacks = build_callbacks(config, {**callback_arguments, **further})
    parts.build_seconds = time.perf_counter() - start
    return parts


def _refuse_batch_of_one(model: nn.Module, image: Tensor, images: int, batch_size: int) -> None:
    """Refuse a last batch of one image if the network normalises by the statistics of a batch.

    Args:
        image: one training image (1, C, S, S), on the device of the model.
        images: number of training images.

    Raises:
        UsageError: otherwise the run would fail at the end of its first epoch.
    """

    def leaves_one(size: int) -> bool:
        return size == 1 or images % size == 1

    if not leaves_one(batch_size):
        return
    try:
        with torch.random.fork_rng(devices=[image.device] if image.is_cuda else []), torch.no_grad():  # dropout draws
            copy.deepcopy(model).train()(image)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            return  # training reports it
        other = next((size for size in range(batch_size + 1, batch_size + 9) if not leaves_one(size)), None)
        advice = f"type {typed('trainer.batch_size', other)}" if other else "train on more images"
        raise UsageError(
            f"trainer.batch_size={batch_size} leaves a batch of one of the {images} training images, and batch norm needs "
            f"two; {advice}"
        ) from error


@contextmanager
def buffer_log() -> Iterator[list[logging.LogRecord]]:
    """Keep log records in the yielded list while there is no handler for them."""
    if LOG.handlers:
        yield []
        return
    handler, level = BufferingHandler(1000), LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    try:
        yield handler.buffer
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)


def check_parts(config: Config, directory: Path, trusted: Trusted = None) -> None:
    """Do the checks of ``build`` that need no data.

    Args:
        config: with the size of the images.
        directory: of the run, for callbacks that have this argument.

    Raises:
        UsageError: the device is not possible, or a constructor refuses its arguments.
    """
    check_target_types(config, trusted)
    device = choose_device(config.trainer.device)
    model = build_model(config)
    layers_of(model, config)
    if config.trainer.backend == "native":  # with other backends nothing is refused, and compiling takes long
        use_backend(model, config.trainer, device)
    optimizer = build_optimizer(config.optimizer, model, decay_all=config.regularization.decay_all)
    build_scheduler(config.scheduler, optimizer, config.trainer.epochs, steps_per_epoch=100)
    further = {"parameters": count_parameters(model), "on_identity": lambda identity: None}
    build_callbacks(config, {**callback_arguments(directory, config, ()), **further})


def build_training(
    config: Config,
    model: nn.Module,
    dataset: Dataset,
    device: torch.device,
    trusted: Collection[str] = (),
) -> tuple[TrainState, TrainConfig]:
    """The state and the settings of training for a model that is on ``device``.

    Raises:
        UsageError: the optimizer or the scheduler refuses its arguments, or a teacher cannot be used.
    """
    trainer, regularization = config.trainer, config.regularization
    optimizer = build_optimizer(config.optimizer, model, decay_all=regularization.decay_all)
    scheduler = build_scheduler(
        config.scheduler, optimizer, trainer.epochs, -(-len(dataset.train) // trainer.batch_size)
    )
    ema = ExponentialMovingAverage(model, regularization.ema) if regularization.ema is not None else None
    distortions = regularization.augmentation.model_dump()
    strength = distortions.pop("strength")
    shape = {"elastic_sigma", "interpolation"}
    amplitudes = {key: strength * value for key, value in distortions.items() if key not in shape}
    augment: Callable[[Tensor], Tensor] | None = None
    if any(amplitudes.values()):
        augment = Augment(**{**distortions, **amplitudes}, background=dataset.background)
        augment = native.NativeAugment(augment) if native.attached(model) else augment
    train_config = TrainConfig(
        epochs=trainer.epochs,
        batch_size=trainer.batch_size,
        eval_batch_size=trainer.eval_batch_size,
        seed=config.seed,
        objective=build_objective(config, model),
        augment=augment,
        mixup=Mixup(regularization.mixup) if regularization.mixup else None,
        distillation=build_distillation(config, dataset.digest, device, trusted),
        gradient_clipping=regularization.gradient_clipping,
        patience=regularization.early_stopping,
        bfloat16=trainer.precision == "bfloat16",
        compile=trainer.compile,
        # The best epoch is known only when training has ended; its test figures are then computed with its weights.
        evaluate_test="never"
        if trainer.selection == "best" and trainer.evaluate_test == "last"
        else trainer.evaluate_test,
        profile=trainer.profile,
    )
    # Seeded again, so that training does not depend on how many random numbers the initial weights needed.
    torch.manual_seed(config.seed + 1)
    return TrainState(model, optimizer, scheduler, ema, device), train_config


def build_distillation(
    config: Config, digest: str | None, device: torch.device, trusted: Collection[str] = ()
) -> Distillation | None:
    """The teachers of ``regularization.distillation``; None without any.

    Args:
        digest: of the data of this run.

    Raises:
        UsageError: a run is not completed, or was trained on other data, possibly on the validation images of this run.
    """

    def trained(directory: str) -> nn.Module:
        run = read_run(Path(directory))
        if run.status != Status.COMPLETED:
            raise UsageError(f"{directory} is {run.status}; a teacher must be completed")
        recorded = run.record.data_digest
        if recorded and digest and recorded != digest:
            raise UsageError(f"{directory} was trained on other digits (digest {recorded}, here {digest})")
        # With equal digests the source of the data does not matter.
        source = {"root", "download", "target"} if recorded and digest else {"root"}
        own, its = (data.model_dump(by_alias=True, exclude=source) for data in (config.data, run.whole_config.data))
        if differing := [f"data.{key}={as_typed(its.get(key))}" for key in own if its.get(key) != own[key]]:
            raise UsageError(
                f"{directory} was trained with {' '.join(differing)}; a teacher needs the training images of this run, and "
                "must not have seen its validation images"
            )
        model, _ = trained_model(run, device, trusted)
        return model.eval()

    settings = config.regularization.distillation
    try:
        teachers = [trained(directory) for directory in settings.teachers]
    except UsageError as error:
        raise UsageError(f"regularization.distillation.teachers: {error}") from error
    return Distillation(teachers, settings.weight, settings.temperature) if teachers else None


def load_weights(model: nn.Module, directory: Path, trusted: Collection[str] = ()) -> dict[str, Any]:
    """Load the weights of another run's trained network into ``model``, which is on the CPU.

    Returns:
        for ``run.json``: the directory, the epoch, and a digest of the weights.

    Raises:
        UsageError: there is no trained network, or names or shapes of its weights differ from those of ``model``.
    """
    try:
        trained, state = trained_model(read_run(directory), torch.device("cpu"), trusted)
    except UsageError as error:
        raise UsageError(f"init_from: {error}") from error
    weights, own = trained.state_dict(), model.state_dict()
    for name in dict.fromkeys([*own, *weights]):
        shapes = [tuple(side[name].shape) if name in side else "absent" for side in (weights, own)]
        if shapes[0] != shapes[1]:
            raise UsageError(f"init_from={directory}: another network: {name} is {shapes[0]} there, {shapes[1]} here")
    model.load_state_dict(weights)
    digest = hashlib.sha256()
    for value in weights.values():
        digest.update(value.contiguous().numpy())
    return {"directory": str(directory), "epoch": state["epoch"], "weights_digest": digest.hexdigest()[:16]}
