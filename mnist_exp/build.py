"""From a checked configuration to what is trained: data, network, optimizer, schedule, objective, callbacks.

A constructor that refuses its arguments gives one line; nothing is written here. Importing this module imports torch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import inspect
import logging
import platform
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from pydantic import ValidationError
from torch import nn

from mnist_exp import native
from mnist_exp.compose import choices_with
from mnist_exp.config import Config, Preparation, check, with_preparation
from mnist_exp.data import DataError, Dataset
from mnist_exp.data.augment import Augment
from mnist_exp.data.splits import labelled, prepare
from mnist_exp.errors import UsageError, as_typed, explain_validation
from mnist_exp.models import LayerRow, count_parameters, layer_table
from mnist_exp.runs import Run, RunDirectoryError, read_run
from mnist_exp.runs.files import exists
from mnist_exp.runs.provenance import cores
from mnist_exp.training import (
    Callback,
    Distillation,
    ExponentialMovingAverage,
    Mixup,
    Objective,
    TrainConfig,
    TrainState,
    evaluate,
    load_checkpoint,
    parameter_groups,
)
from mnist_exp.training.dynamo import defer_dynamo
from mnist_exp.trust import Trusted, check_target_types, find_target, instantiate, own_packages, run_id_to_use

LOG = logging.getLogger("mnist_exp")


class DataRefused(UsageError):
    """The data cannot be had as asked."""


# Where a user sets what a constructor of a network gets from other sections.
HOMES = {
    **{name: f"regularization.{name}" for name in ("dropout", "batch_norm")},
    **{"image_size": "data.image_size", "in_channels": "data.channels", "num_classes": "data.num_classes"},
}


@dataclass
class Parts:
    """All that a run trains with.

    Attributes:
        layers: of the network, for people.
        threads: of the CPU.
        backend: ``torch`` or ``native``, what computes the network.
        init_from: where the first weights come from, for ``run.json``; None for random ones.
        preparation: size and normalisation of the images, for ``run.json``, see ``found_by``.
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
    preparation: dict[str, Any]
    data_seconds: float
    build_seconds: float
    messages: list[logging.LogRecord] = field(default_factory=list)
    callbacks: list[Callback] = field(default_factory=list)
    on_identity: Callable[[dict[str, Any]], object] = lambda identity: None


def build(
    tree: Mapping[str, Any],
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
    check_target_types(tree, trusted)
    # Other runs that this one names may need the packages that it names itself.
    others = own_packages(tree).union(config.trust) if trusted is None else trusted
    device = choose_device(config.trainer.device)
    threads = prepare_torch(config, device, threads)
    began = time.perf_counter()
    with held_back() as messages:
        dataset = build_data(tree, may_download=may_download).to(device)
    data_seconds = time.perf_counter() - began
    preparation = found_by(dataset)
    tree = with_preparation(tree, preparation)
    model = build_model(tree, config.seed)
    init_from = load_weights(model, Path(config.init_from), others) if config.init_from and not begun else None
    model = model.to(device)
    layers = layers_of(model, tree)
    backend = use_backend(model, config, device, backend)
    state, train_config = build_training(config, tree, model, dataset, device, others)
    parts = Parts(
        dataset, state, train_config, layers, threads, backend, init_from, preparation, data_seconds, 0.0, messages
    )
    if facts is not None:
        known = {"parameters": count_parameters(model), "on_identity": lambda identity: parts.on_identity(identity)}
        parts.callbacks = build_callbacks(tree, {**facts, **known})
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


def check_parts(tree: Mapping[str, Any], config: Config, directory: Path, trusted: Trusted = None) -> None:
    """Find out what ``build`` would refuse, as far as that can be told without the data; those are read only where the size
    of the images is that of the data.

    Args:
        directory: of the run, for callbacks that ask for it.

    Raises:
        UsageError: a constructor refuses its arguments, or something that is asked for cannot be.
    """
    check_target_types(tree, trusted)
    device = choose_device(config.trainer.device)
    if config.data.image_size is None:
        tree = with_preparation(tree, found_by(build_data(tree)))
    model = build_model(tree, config.seed)
    layers_of(model, tree)
    if config.trainer.backend == "native":  # else nothing is refused, and nothing need be compiled for a job that waits
        use_backend(model, config, device)
    optimizer = build_optimizer(tree, model, decay_all=config.regularization.decay_all)
    build_scheduler(tree, optimizer, config.trainer.epochs, steps_per_epoch=100)
    known = {"parameters": count_parameters(model), "on_identity": lambda identity: None}
    build_callbacks(tree, {**facts_of(directory, tree), **known})


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
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch leaves it out
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


def build_data(tree: Mapping[str, Any], *, may_download: bool = True) -> Dataset:
    """The data set, on the CPU.

    Args:
        may_download: whether absent files may be fetched into ``data.root``. The cache is always the user's own.

    Raises:
        DataRefused: files are missing or damaged, the splits cannot be made, or a user's loader refuses its arguments or
            returns something else than images and labels.
    """
    data = dict(tree["data"])
    own = not data["_target_"].startswith("mnist_exp.")
    if not own and data.get("root") and not may_download and "download" in data:
        data["download"] = None
    try:
        with refusals("data", data):
            if not own:
                dataset: Dataset = instantiate(data)
                return dataset
            preparation = {key: data.pop(key) for key in Preparation.model_fields if key in data}
            returned = instantiate(data)
            try:
                return prepare(*labelled(returned, preparation["num_classes"]), **preparation)
            except DataError as error:
                text = str(error)
                raise DataError(
                    text if text.startswith("data.") else f"data._target_={data['_target_']}: {text}"
                ) from error
    except UsageError as error:
        raise DataRefused(str(error)) from error


def found_by(dataset: Dataset) -> dict[str, Any]:
    """Size and normalisation of images: what the configuration need not say, and evaluation must know."""
    return {"image_size": dataset.train.images.shape[-1], "mean": dataset.mean, "std": dataset.std}


def layers_of(model: nn.Module, tree: Mapping[str, Any]) -> list[LayerRow]:
    """The layers of the network, which is run on a blank image.

    Raises:
        UsageError: it does not take these images, or has not an output for each class.
    """
    data, target = tree["data"], tree["model"]["_target_"]
    channels, side, classes = data["channels"], data["image_size"], data["num_classes"]
    try:
        rows = layer_table(model, side, channels)
        blank = next(model.parameters()).new_zeros(1, channels, side, side)
        outputs = tuple(evaluate(model, blank, 1).shape[1:])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"model._target_={target} does not take images of {channels}x{side}x{side}: {reason}"
        ) from error
    if outputs != (classes,):
        has = f"{outputs[0]} outputs" if len(outputs) == 1 else f"outputs of the shape {outputs}"
        raise UsageError(f"model._target_={target} has {has}, and data.num_classes={classes}")
    return rows


def build_model(tree: Mapping[str, Any], seed: int) -> nn.Module:
    """The network with its initial weights, a function of the seed alone.

    A constructor that takes ``dropout`` or ``batch_norm`` gets what ``regularization`` says where ``model`` does not; one
    that takes ``image_size``, ``in_channels`` or ``num_classes`` what ``data`` says, and one that takes ``background`` the
    value of an empty pixel. Kernels lie in memory with channels last: with LeNet-5's
    few channels that makes a step on a CPU a fifth faster.

    Raises:
        UsageError: its arguments do not fit together, or it cannot do what ``regularization`` asks for.
    """
    section = dict(tree["model"])
    accepted = _accepted(section["_target_"])
    for knob in ("dropout", "batch_norm"):
        wanted = tree["regularization"][knob]
        if knob not in section and knob in accepted:
            section[knob] = wanted
        elif knob not in section and _is_on(wanted):
            raise UsageError(
                f"regularization.{knob}={as_typed(wanted)}: {section['_target_']} takes no {knob}; leave it off"
            )
    data = tree["data"]
    facts = {"image_size": data["image_size"], "in_channels": data["channels"], "num_classes": data["num_classes"]}
    for name in accepted.intersection(facts):
        if section.get(name) is None:
            section[name] = facts[name]
    mean, std = data["mean"], data["std"]
    one_number = isinstance(mean, int | float) and isinstance(std, int | float)
    if "background" in accepted and "background" not in section and one_number:
        section["background"] = -mean / std
    own = {**facts, **tree["regularization"]}
    homes = {name: home for name, home in HOMES.items() if name in section and section[name] == own[name]}
    torch.manual_seed(seed)
    with refusals("model", section, homes):
        model = instantiate(section)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model._target_={section['_target_']} is no network: it made a {type(model).__name__}")
    return model.to(memory_format=torch.channels_last)


def _accepted(target: str) -> set[str]:
    """Names of the arguments that a constructor takes."""
    try:
        return set(inspect.signature(find_target(target, "model.")).parameters)
    except (TypeError, ValueError):
        return set()


def _is_on(wanted: float | bool | list[float] | list[bool]) -> bool:
    return any(wanted) if isinstance(wanted, list) else bool(wanted)


def use_backend(model: nn.Module, config: Config, device: torch.device, begun_with: str | None = None) -> str:
    """Give the model's forward and backward pass to the native kernels, where they are wanted and can be had.

    Args:
        begun_with: the backend of an earlier part of the same run, whose bits are only repeated with the same one.

    Returns:
        ``native`` or ``torch``, what does the work.

    Raises:
        UsageError: native kernels are asked for, or the run began with them, and they cannot be had.
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


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def build_objective(config: Config, model: nn.Module) -> Objective:
    """What the model is trained to minimise."""
    return Objective(config.regularization.label_smoothing, getattr(model, "rubbish_logit", None))


def build_optimizer(tree: Mapping[str, Any], model: nn.Module, *, decay_all: bool) -> torch.optim.Optimizer:
    """The optimizer of the model's parameters.

    Raises:
        UsageError: it refuses its arguments.
    """
    section = tree["optimizer"]
    defer_dynamo()
    with refusals("optimizer", section):
        optimizer = instantiate(section)(parameter_groups(model, decay_all=decay_all))
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"optimizer._target_={section['_target_']} is no torch.optim.Optimizer")
    return optimizer


def build_scheduler(
    tree: Mapping[str, Any], optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of the optimizer's learning rate, stepped once a batch.

    Raises:
        UsageError: it refuses its arguments.
    """
    section = tree["scheduler"]
    with refusals("scheduler", section):
        scheduler = instantiate(section)(optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch)
    if not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
        raise UsageError(f"scheduler._target_={section['_target_']} is no torch.optim.lr_scheduler.LRScheduler")
    return scheduler


def facts_of(directory: Path, tree: Mapping[str, Any], record: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a callback may ask for about its run, by the name of the constructor's argument.

    Args:
        directory: of the run.
        tree: its configuration.
        record: ``run.json`` of a run that exists already.
    """
    record = record or {}
    return {
        "directory": directory.absolute(),
        "name": f"{tree['name']}-{tree['seed']}",
        "sweep": record.get("sweep"),
        "config": tree,
        "run_id": run_id_to_use(record.get("wandb"), tree["logger"] or {}),
    }


def build_callbacks(tree: Mapping[str, Any], facts: Mapping[str, Any]) -> list[Callback]:
    """The logger and the callbacks of a configuration. They may write from ``on_start`` on, not before.

    Args:
        facts: arguments for constructors that take them, where the section gives none and their default is none or None.

    Raises:
        UsageError: one refuses its arguments, or is no callback.
    """
    sections = {"logger": tree["logger"]} if tree["logger"] else {}
    sections |= {f"callbacks.{name}": section for name, section in (tree.get("callbacks") or {}).items()}
    return [_build_callback(key, section, facts) for key, section in sections.items()]


def _build_callback(key: str, section: Mapping[str, Any], facts: Mapping[str, Any]) -> Callback:
    target = section["_target_"]
    arguments: Mapping[str, inspect.Parameter] = {}
    with suppress(TypeError, ValueError):  # something compiled has no signature
        arguments = inspect.signature(find_target(target, f"{key}.")).parameters
    # An argument with a default of its own may mean something else: name="mine".
    wanted = {name for name, argument in arguments.items() if argument.default in {argument.empty, None}}
    known = {name: facts[name] for name in facts.keys() & wanted - section.keys()}
    with refusals(key, section):
        # Facts are not instantiated: the configuration among them has targets of its own.
        make = instantiate({**section, "_partial_": True})
        try:
            made = make(**known)
        except UsageError:
            raise
        except Exception as error:
            raise InstantiationException(f"{type(error).__name__}: {error}") from error
    if not isinstance(made, Callback):
        raise UsageError(f"{key}._target_={target} is no mnist_exp.training.Callback: it made a {type(made).__name__}")
    return made


def build_training(
    config: Config,
    tree: Mapping[str, Any],
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
    optimizer = build_optimizer(tree, model, decay_all=regularization.decay_all)
    scheduler = build_scheduler(tree, optimizer, trainer.epochs, -(-len(dataset.train) // trainer.batch_size))
    ema = ExponentialMovingAverage(model, regularization.ema) if regularization.ema is not None else None
    distortions = regularization.augmentation.model_dump()
    strength = distortions.pop("strength")
    shape = {"elastic_sigma", "interpolation"}
    amplitudes = {key: strength * value for key, value in distortions.items() if key not in shape}
    augment = Augment(**{**distortions, **amplitudes}, background=dataset.background)
    train_config = TrainConfig(
        epochs=trainer.epochs,
        batch_size=trainer.batch_size,
        eval_batch_size=trainer.eval_batch_size,
        seed=config.seed,
        objective=build_objective(config, model),
        augment=augment if any(amplitudes.values()) else None,
        mixup=Mixup(regularization.mixup) if regularization.mixup else None,
        distillation=build_distillation(config, tree, dataset.digest, device, trusted),
        gradient_clipping=regularization.gradient_clipping,
        patience=regularization.early_stopping,
        bfloat16=trainer.precision == "bfloat16",
        compile=trainer.compile,
    )
    # Training draws from a stream of its own, whatever the number of draws that initial weights took.
    torch.manual_seed(config.seed + 1)
    return TrainState(model, optimizer, scheduler, ema, device), train_config


def build_distillation(
    config: Config, tree: Mapping[str, Any], digest: str | None, device: torch.device, trusted: Collection[str] = ()
) -> Distillation | None:
    """The trained networks of ``regularization.distillation``, where there are any.

    Args:
        digest: of the data that this run trains on.

    Raises:
        UsageError: a run directory holds none, or one that can still change, or that saw images which this run holds out.
    """

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
            for data in (tree["data"], with_preparation(run.config, run.record.get("preparation"))["data"])
        )
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


def trained_model(
    run: Run, device: torch.device, trusted: Collection[str] = (), *, kernels: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
    """The network that a run's result is about, and the checkpoint it comes from.

    Args:
        trusted: packages whose code may run besides ours.
        kernels: let native kernels compute it where they computed the run; they call no hooks of the modules.

    Raises:
        UsageError: the configuration is none, or asks for code that is not trusted.
        RunDirectoryError: there is no checkpoint yet, or it cannot be read.
    """
    tree = with_preparation(run.config, run.record.get("preparation"))
    path, config = run.path, check(tree)
    check_target_types({**tree, "callbacks": {}}, trusted)  # which are not made here
    checkpoint = path / "checkpoints" / f"{config.trainer.selection}.pt"
    if not exists(checkpoint, below=path):
        raise RunDirectoryError(f"{path} has no {checkpoint.relative_to(path)} yet; its status is {run.status}")
    try:
        state = load_checkpoint(checkpoint, device)
    except Exception as error:
        raise RunDirectoryError(f"{checkpoint} cannot be read: {' '.join(str(error).split())}") from error
    model = build_model(tree, config.seed).to(device)
    model.load_state_dict(state["model"] if state["ema"] is None else state["ema"]["model"])
    if kernels and run.record.get("backend") == "native" and device.type == "cpu":
        with suppress(native.NativeUnavailable):  # PyTorch computes the same, to rounding
            native.attach(model)
    return model, state


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


@contextmanager
def refusals(group: str, section: Mapping[str, Any], homes: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn what a constructor refuses into a line for each mistake; the rest is a failure and keeps its traceback.

    Args:
        section: the arguments.
        homes: the keys where a user sets an argument, for those that come from other sections.

    Raises:
        UsageError: an argument is wrong, or arguments do not fit together.
    """
    try:
        yield
    except UsageError as error:  # what the target names is not there
        raise UsageError(re.sub(r"^_target_=", f"{group}._target_=", str(error))) from error
    except (InstantiationException, DataError, TypeError, ValueError) as error:
        found: BaseException | None = error
        while found is not None and not isinstance(found, DataError | TypeError | ValueError):
            found = found.__cause__
        if isinstance(found, ValidationError):
            lines = explain_validation(found, {group: section}, choices_with, within=(group,))
        elif isinstance(found, DataError):
            lines = [str(found)]
        else:
            text = " ".join(str(found or error).split())
            named = re.sub(r"\b(\w+)=", lambda key: f"{group}.{key[0]}" if key[1] in section else key[0], text)
            lines = [named if named.startswith(f"{group}.") else f"{group}: {named}"]
        for name, home in (homes or {}).items():
            lines = [re.sub(rf"\b{group}\.{name}=", f"{home}=", line) for line in lines]
        raise UsageError("\n".join(lines)) from error
