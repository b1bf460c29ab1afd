"""From a checked configuration to all that a run trains with.

Nothing is written here. Importing this module imports torch.
"""

from __future__ import annotations

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
    facts_of,
    found_by,
    layers_of,
)
from mnist_exp.config import Config, Found
from mnist_exp.data import Dataset
from mnist_exp.data.augment import Augment
from mnist_exp.device import choose_device, prepare_torch, use_backend
from mnist_exp.errors import UsageError, as_typed
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
    """All that a run trains with.

    Attributes:
        layers: of the network, for people.
        threads: of the CPU.
        backend: ``torch`` or ``native``, what computes the network.
        init_from: where the first weights come from, for ``run.json``; None for random ones.
        found: size and normalisation of the images, for ``run.json``.
        data_seconds, build_seconds: that reading the data took, and all of it.
        messages: what was logged meanwhile and nobody has shown, because there was no console and no log file yet.
        callbacks: the logger and the callbacks of the configuration, in this order.
        on_identity: is told what a logger says of the run that it has begun.
    """

    dataset: Dataset
    state: TrainState
    train_config: TrainConfig
    layers: list[LayerRow]
    threads: int
    backend: str
    init_from: dict[str, Any] | None
    found: Found
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
    begun: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Parts:
    """Everything that the configuration describes, on its device.

    Args:
        trusted: packages whose code may run besides ours; None: all, for a configuration of the user's own.
        may_download: see ``build_data``.
        threads, backend: of an earlier part of the same run, whose bits are only repeated with the same ones.
        begun: a checkpoint will replace the weights, so that ``init_from`` is not read.
        facts: of the run, for callbacks, as ``facts_of`` gives them; None: no callbacks are made.

    Raises:
        UsageError: data, device or arguments that cannot be.
    """
    start = time.perf_counter()
    check_target_types(config, trusted)
    # Other runs that this one names may need the packages that it names itself.
    others = own_packages(config).union(config.trust) if trusted is None else trusted
    device = choose_device(config.trainer.device)
    threads = prepare_torch(config.trainer, device, threads)
    began = time.perf_counter()
    with held_back() as messages:
        dataset = build_data(config.data, may_download=may_download).to(device)
    data_seconds = time.perf_counter() - began
    found = found_by(dataset)
    config = config.with_found(found)
    model = build_model(config)
    init_from = load_weights(model, Path(config.init_from), others) if config.init_from and not begun else None
    model = model.to(device)
    layers = layers_of(model, config)
    backend = use_backend(model, config.trainer, device, backend)
    state, train_config = build_training(config, model, dataset, device, others)
    parts = Parts(dataset, state, train_config, layers, threads, backend, init_from, found, data_seconds, 0.0, messages)
    if facts is not None:
        known = {"parameters": count_parameters(model), "on_identity": lambda identity: parts.on_identity(identity)}
        parts.callbacks = build_callbacks(config, {**facts, **known})
    parts.build_seconds = time.perf_counter() - start
    return parts


@contextmanager
def held_back() -> Iterator[list[logging.LogRecord]]:
    """Keep what is logged while no console and no log file listens."""
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
    """Find out what ``build`` would refuse, as far as that can be told without the data.

    Args:
        config: with the size of the images.
        directory: of the run, for callbacks that ask for it.

    Raises:
        UsageError: a constructor refuses its arguments, or something that is asked for cannot be.
    """
    check_target_types(config, trusted)
    device = choose_device(config.trainer.device)
    model = build_model(config)
    layers_of(model, config)
    if config.trainer.backend == "native":  # else nothing is refused, and nothing need be compiled for a job that waits
        use_backend(model, config.trainer, device)
    optimizer = build_optimizer(config.optimizer, model, decay_all=config.regularization.decay_all)
    build_scheduler(config.scheduler, optimizer, config.trainer.epochs, steps_per_epoch=100)
    known = {"parameters": count_parameters(model), "on_identity": lambda identity: None}
    build_callbacks(config, {**facts_of(directory, config), **known})


def build_training(
    config: Config,
    model: nn.Module,
    dataset: Dataset,
    device: torch.device,
    trusted: Collection[str] = (),
) -> tuple[TrainState, TrainConfig]:
    """Optimizer, schedule, average and recipe around a model that is on ``device``.

    Raises:
        UsageError: the optimizer or scheduler refuses its arguments, or a teacher cannot be had.
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
        profile=trainer.profile,
    )
    # Training draws from a stream of its own, whatever the number of draws that initial weights took.
    torch.manual_seed(config.seed + 1)
    return TrainState(model, optimizer, scheduler, ema, device), train_config


def build_distillation(
    config: Config, digest: str | None, device: torch.device, trusted: Collection[str] = ()
) -> Distillation | None:
    """The trained networks of ``regularization.distillation``, where there are any.

    Args:
        digest: of the data that this run trains on.

    Raises:
        UsageError: a run directory holds none, or one that can still change, or that saw images which this run holds out.
    """

    def trained(directory: str) -> nn.Module:
        run = read_run(Path(directory))
        if run.status != Status.COMPLETED:
            raise UsageError(f"{directory} is {run.status}; a teacher must be completed")
        its_digest = run.record.data_digest
        if its_digest and digest and its_digest != digest:
            raise UsageError(f"{directory} was trained on other digits (digest {its_digest}, here {digest})")
        # Digits that are known to be the same may have been read from anywhere.
        place = {"root", "download", "target"} if its_digest and digest else {"root"}
        own, its = (data.model_dump(by_alias=True, exclude=place) for data in (config.data, run.whole_config.data))
        if differing := [f"data.{key}={as_typed(its.get(key))}" for key in own if its.get(key) != own[key]]:
            raise UsageError(
                f"{directory} was trained with {' '.join(differing)}; a teacher must have seen what this run sees, and "
                "nothing that it holds out"
            )
        model, _ = trained_model(run, device, trusted)
        return model.eval()

    wanted = config.regularization.distillation
    try:
        teachers = [trained(directory) for directory in wanted.teachers]
    except UsageError as error:
        raise UsageError(f"regularization.distillation.teachers: {error}") from error
    return Distillation(teachers, wanted.weight, wanted.temperature) if teachers else None


def load_weights(model: nn.Module, directory: Path, trusted: Collection[str] = ()) -> dict[str, Any]:
    """Give ``model``, which is on the CPU, the weights that the result of another run has.

    Returns:
        where they come from, for ``run.json``: the directory, the epoch, and a digest of the weights.

    Raises:
        UsageError: there is no trained network, or it has other weights than ``model``.
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
