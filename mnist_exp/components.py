"""From a checked configuration to each thing that it names: data, network, optimizer, schedule, objective, callbacks.

A constructor that refuses its arguments gives one line; nothing is written here. Importing this module imports torch.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from pydantic import ValidationError
from torch import nn

from mnist_exp.compose import choices_with
from mnist_exp.config import Component, Config, Data, Found, Optimizer, OwnData, Preparation, Scheduler, Wandb
from mnist_exp.data import DataError, Dataset
from mnist_exp.data.splits import labelled, prepare
from mnist_exp.errors import UsageError, as_typed, explain_validation
from mnist_exp.models import LayerRow, layer_table
from mnist_exp.runs import RunRecord
from mnist_exp.torch_private import defer_dynamo
from mnist_exp.training import Callback, Objective, evaluate, parameter_groups
from mnist_exp.trust import find_target, instantiate, run_id_to_use


class DataRefused(UsageError):
    """The data cannot be had as asked."""


# Where a user sets what a constructor of a network gets from other sections.
HOMES = {
    **{name: f"regularization.{name}" for name in ("dropout", "batch_norm")},
    **{"image_size": "data.image_size", "in_channels": "data.channels", "num_classes": "data.num_classes"},
}


def build_data(data: Data | OwnData, *, may_download: bool = True) -> Dataset:
    """The data set, on the CPU.

    Args:
        may_download: whether absent files may be fetched into ``data.root``. The cache is always the user's own.

    Raises:
        DataRefused: files are missing or damaged, the splits cannot be made, or a user's loader refuses its arguments or
            returns something else than images and labels.
    """
    if isinstance(data, Data) and data.root and data.download and not may_download:
        data = data.model_copy(update={"download": None})
    section = data.plain()
    try:
        with refusals("data", section):
            if isinstance(data, Data):
                dataset: Dataset = instantiate(section)
                return dataset
            preparation = data.model_dump(include=set(Preparation.model_fields))
            returned = instantiate({key: value for key, value in section.items() if key not in preparation})
            try:
                return prepare(*labelled(returned, data.num_classes), **preparation)
            except DataError as error:
                text = str(error)
                raise DataError(text if text.startswith("data.") else f"data._target_={data.target}: {text}") from error
    except UsageError as error:
        raise DataRefused(str(error)) from error


def found_by(dataset: Dataset) -> Found:
    """Size and normalisation of images: what the configuration need not say, and evaluation must know."""
    return Found(image_size=dataset.train.images.shape[-1], mean=dataset.mean, std=dataset.std)


def layers_of(model: nn.Module, config: Config) -> list[LayerRow]:
    """The layers of the network, which is run on a blank image.

    Raises:
        UsageError: it does not take these images, or has not an output for each class.
    """
    target, data = config.model.target, config.data
    channels, side, classes = data.channels, data.image_size, data.num_classes
    assert side is not None
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


def build_model(config: Config) -> nn.Module:
    """The network with its initial weights, a function of the seed alone.

    A constructor that takes ``dropout`` or ``batch_norm`` gets what ``regularization`` says where ``model`` does not; one
    that takes ``image_size``, ``in_channels`` or ``num_classes`` what ``data`` says, and one that takes ``background`` the
    value of an empty pixel. Kernels lie in memory with channels last: with LeNet-5's
    few channels that makes a step on a CPU a fifth faster.

    Raises:
        UsageError: its arguments do not fit together, or it cannot do what ``regularization`` asks for.
    """
    section = config.model.plain()
    accepted = _accepted(config.model.target)
    for knob in ("dropout", "batch_norm"):
        wanted = getattr(config.regularization, knob)
        if knob not in section and knob in accepted:
            section[knob] = wanted
        elif knob not in section and _is_on(wanted):
            raise UsageError(
                f"regularization.{knob}={as_typed(wanted)}: {config.model.target} takes no {knob}; leave it off"
            )
    data = config.data
    facts = {"image_size": data.image_size, "in_channels": data.channels, "num_classes": data.num_classes}
    for name in accepted.intersection(facts):
        if section.get(name) is None:
            section[name] = facts[name]
    wanted = "background" in accepted and "background" not in section
    if wanted and isinstance(data.mean, float) and isinstance(data.std, float):
        section["background"] = -data.mean / data.std
    own = {**facts, "dropout": config.regularization.dropout, "batch_norm": config.regularization.batch_norm}
    homes = {name: home for name, home in HOMES.items() if name in section and section[name] == own[name]}
    torch.manual_seed(config.seed)
    with refusals("model", section, homes):
        model = instantiate(section)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model._target_={config.model.target} is no network: it made a {type(model).__name__}")
    return model.to(memory_format=torch.channels_last)


def _accepted(target: str) -> set[str]:
    """Names of the arguments that a constructor takes."""
    try:
        return set(inspect.signature(find_target(target, "model.")).parameters)
    except (TypeError, ValueError):
        return set()


def _is_on(wanted: float | bool | list[float] | list[bool]) -> bool:
    return any(wanted) if isinstance(wanted, list) else bool(wanted)


def build_objective(config: Config, model: nn.Module) -> Objective:
    """What the model is trained to minimise."""
    return Objective(config.regularization.label_smoothing, getattr(model, "rubbish_logit", None))


def build_optimizer(config: Optimizer, model: nn.Module, *, decay_all: bool) -> torch.optim.Optimizer:
    """The optimizer of the model's parameters.

    Raises:
        UsageError: it refuses its arguments.
    """
    section = config.plain()
    defer_dynamo()
    with refusals("optimizer", section):
        optimizer = instantiate(section)(parameter_groups(model, decay_all=decay_all))
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"optimizer._target_={config.target} is no torch.optim.Optimizer")
    return optimizer


def build_scheduler(
    config: Scheduler, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of the optimizer's learning rate, stepped once a batch.

    Raises:
        UsageError: it refuses its arguments.
    """
    section = config.plain()
    with refusals("scheduler", section):
        scheduler = instantiate(section)(optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch)
    if not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
        raise UsageError(f"scheduler._target_={config.target} is no torch.optim.lr_scheduler.LRScheduler")
    return scheduler


def facts_of(directory: Path, config: Config, record: RunRecord | None = None) -> dict[str, Any]:
    """What a callback may ask for about its run, by the name of the constructor's argument.

    Args:
        directory: of the run.
        config: its configuration.
        record: ``run.json`` of a run that exists already.
    """
    return {
        "directory": directory.absolute(),
        "name": f"{config.name}-{config.seed}",
        "sweep": record.sweep if record else None,
        "config": config.plain(),
        "run_id": run_id_to_use(record.wandb if record else None, config.logger),
    }


def build_callbacks(config: Config, facts: Mapping[str, Any]) -> list[Callback]:
    """The logger and the callbacks of a configuration. They may write from ``on_start`` on, not before.

    Args:
        facts: arguments for constructors that take them, where the section gives none and their default is none or None.

    Raises:
        UsageError: one refuses its arguments, or is no callback.
    """
    named: dict[str, Component | Wandb] = {} if config.logger is None else {"logger": config.logger}
    named |= {f"callbacks.{name}": callback for name, callback in config.callbacks.items()}
    return [_build_callback(key, callback, facts) for key, callback in named.items()]


def _build_callback(key: str, callback: Component | Wandb, facts: Mapping[str, Any]) -> Callback:
    target, section = callback.target, callback.plain()
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
