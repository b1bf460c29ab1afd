"""Build each component of a checked configuration: data, network, optimizer, schedule, objective, callbacks.

An argument that a constructor refuses is reported in one line. Nothing is written. Importing this module imports torch.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from pydantic import ValidationError
from torch import nn

from mnist_exp.compose import choices_with_key
from mnist_exp.config import Component, Config, Data, ImageProperties, Optimizer, OwnData, Preparation, Scheduler, Wandb
from mnist_exp.data import DataError, Dataset
from mnist_exp.data.splits import labelled, prepare
from mnist_exp.errors import UsageError, as_typed, explain_validation
from mnist_exp.models import LayerRow, layer_table
from mnist_exp.runs import RunRecord
from mnist_exp.runs.names import names_on_wandb
from mnist_exp.torch_private import defer_dynamo
from mnist_exp.training import Callback, Objective, evaluate, parameter_groups
from mnist_exp.trust import find_target, instantiate, run_id_to_use


class DataRefused(UsageError):
    """The data cannot be loaded."""


# The settings from which a network's constructor gets these arguments, for messages.
SETTING_OF_ARGUMENT = {
    **{name: f"regularization.{name}" for name in ("dropout", "batch_norm")},
    **{"image_size": "data.image_size", "in_channels": "data.channels", "num_classes": "data.num_classes"},
}


_KEPT: dict[str, Dataset] | None = None  # the last data set by its settings, as JSON; None outside keep_data


@contextmanager
def keep_data() -> Iterator[None]:
    """Within it, ``build_data`` keeps the last data set of this package and returns it again for the same settings.

    The jobs of a sweep in one process then read their files once.
    """
    global _KEPT
    _KEPT = {}
    try:
        yield
    finally:
        _KEPT = None


def build_data(data: Data | OwnData, *, may_download: bool = True) -> Dataset:
    """The data set, on the CPU. Its tensors may be shared with other runs of this process: do not change them.

    Args:
        may_download: whether missing files may be downloaded into ``data.root``. The user's cache is always allowed.

    Raises:
        DataRefused: files are missing or damaged, the splits are not possible, or a user's loader refuses its arguments
            or does not return images and labels.
    """
    if isinstance(data, Data) and data.root and data.download and not may_download:
        data = data.model_copy(update={"download": None})
    section = data.plain()
    try:
        with explain_refusal("data", section):
            if isinstance(data, Data):
                return _read_or_kept(section)
            preparation = data.model_dump(include=set(Preparation.model_fields))
            returned = instantiate({key: value for key, value in section.items() if key not in preparation})
            try:
                return prepare(*labelled(returned, data.num_classes), **preparation)
            except DataError as error:
                text = str(error)
                raise DataError(text if text.startswith("data.") else f"data._target_={data.target}: {text}") from error
    except UsageError as error:
        raise DataRefused(str(error)) from error


def _read_or_kept(section: dict[str, Any]) -> Dataset:
    key = json.dumps(section, sort_keys=True)
    if _KEPT is not None and key in _KEPT:
        return _KEPT[key]
    if _KEPT is not None:
        _KEPT.clear()  # before the next is read, so that two are never in memory
    dataset: Dataset = instantiate(section)
    if _KEPT is not None:
        _KEPT[key] = dataset
    return dataset


def image_properties(dataset: Dataset) -> ImageProperties:
    """Size and normalisation of the training images."""
    return ImageProperties(image_size=dataset.train.images.shape[-1], mean=dataset.mean, std=dataset.std)


def layers_of(model: nn.Module, config: Config) -> list[LayerRow]:
    """The layer table of the network, from a forward pass with a blank image.

    Raises:
        UsageError: it does not accept images of this size, or the number of outputs is not ``data.num_classes``.
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
            f"model._target_={target} does not accept images of {channels}x{side}x{side}: {reason}"
        ) from error
    if outputs != (classes,):
        found = f"{outputs[0]} outputs" if len(outputs) == 1 else f"outputs of the shape {outputs}"
        raise UsageError(f"model._target_={target} has {found}, and data.num_classes={classes}")
    return rows


def build_model(config: Config) -> nn.Module:
    """The network, on the CPU, with initial weights that depend on the seed only.

    These arguments, if the constructor has them and ``model`` does not set them, come from other sections: ``dropout`` and
    ``batch_norm`` from ``regularization``; ``image_size``, ``in_channels`` and ``num_classes`` from ``data``; ``background``
    is the normalised value of an empty pixel. Memory format is channels last: with LeNet-5's few channels a step on a CPU is
    a fifth faster.

    Raises:
        UsageError: the constructor refuses its arguments, or has no argument for what ``regularization`` asks for.
    """
    section = config.model.plain()
    accepted = _accepted(config.model.target)
    for knob in ("dropout", "batch_norm"):
        wanted = getattr(config.regularization, knob)
        if knob not in section and knob in accepted:
            section[knob] = wanted
        elif knob not in section and _is_on(wanted):
            raise UsageError(
                f"regularization.{knob}={as_typed(wanted)}: {config.model.target} has no argument {knob}; leave it off"
            )
    data = config.data
    shapes = {"image_size": data.image_size, "in_channels": data.channels, "num_classes": data.num_classes}
    for name in accepted.intersection(shapes):
        if section.get(name) is None:
            section[name] = shapes[name]
    if "background" in accepted - section.keys() and isinstance(data.mean, float) and isinstance(data.std, float):
        section["background"] = -data.mean / data.std
    given = {**shapes, "dropout": config.regularization.dropout, "batch_norm": config.regularization.batch_norm}
    settings = {
        name: key for name, key in SETTING_OF_ARGUMENT.items() if name in section and section[name] == given[name]
    }
    torch.manual_seed(config.seed)
    with explain_refusal("model", section, settings):
        model = instantiate(section)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model._target_={config.model.target} is no torch.nn.Module but a {type(model).__name__}")
    return model.to(memory_format=torch.channels_last)


def _accepted(target: str) -> set[str]:
    """Names of a constructor's arguments."""
    try:
        return set(inspect.signature(find_target(target, "model.")).parameters)
    except (TypeError, ValueError):
        return set()


def _is_on(wanted: float | bool | list[float] | list[bool]) -> bool:
    return any(wanted) if isinstance(wanted, list) else bool(wanted)


def build_objective(config: Config, model: nn.Module) -> Objective:
    """The function that training minimises."""
    return Objective(config.regularization.label_smoothing, getattr(model, "rubbish_logit", None))


def build_optimizer(config: Optimizer, model: nn.Module, *, decay_all: bool) -> torch.optim.Optimizer:
    """The optimizer of the model's parameters.

    Raises:
        UsageError: it refuses its arguments, or is no ``torch.optim.Optimizer``.
    """
    section = config.plain()
    defer_dynamo()
    with explain_refusal("optimizer", section):
        optimizer = instantiate(section)(parameter_groups(model, decay_all=decay_all))
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"optimizer._target_={config.target} is no torch.optim.Optimizer")
    return optimizer


def build_scheduler(
    config: Scheduler, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of the learning rate; its ``step`` is called after each batch.

    Raises:
        UsageError: it refuses its arguments, or is no ``LRScheduler``.
    """
    section = config.plain()
    with explain_refusal("scheduler", section):
        scheduler = instantiate(section)(optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch)
    if not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
        raise UsageError(f"scheduler._target_={config.target} is no torch.optim.lr_scheduler.LRScheduler")
    return scheduler


def callback_arguments(
    directory: Path, config: Config, overrides: Sequence[str], record: RunRecord | None = None
) -> dict[str, Any]:
    """Values about the run for callbacks, by the name of the constructor's argument.

    Args:
        directory: of the run.
        overrides: as typed.
        record: of a run that exists already.
    """
    label, arm = names_on_wandb(config, overrides, record)
    return {
        "directory": directory.absolute(),
        "name": f"{config.name}-{config.seed}",
        "label": label,
        "arm": arm,
        "sweep": record.sweep if record else None,
        "config": config.plain(),
        "run_id": run_id_to_use(record.wandb if record else None, config.logger),
    }


def build_callbacks(config: Config, arguments: Mapping[str, Any]) -> list[Callback]:
    """The logger and the callbacks of a configuration, in this order.

    Args:
        arguments: values about the run. A constructor gets those that it has as arguments without a default, or with the
            default None, and that its section does not set.

    Raises:
        UsageError: one refuses its arguments, or is no ``Callback``.
    """
    named: dict[str, Component | Wandb] = {} if config.logger is None else {"logger": config.logger}
    named |= {f"callbacks.{name}": callback for name, callback in config.callbacks.items()}
    return [_build_callback(key, callback, arguments) for key, callback in named.items()]


def _build_callback(key: str, callback: Component | Wandb, arguments: Mapping[str, Any]) -> Callback:
    target, section = callback.target, callback.plain()
    parameters: Mapping[str, inspect.Parameter] = {}
    with suppress(TypeError, ValueError):  # a compiled class has no signature
        parameters = inspect.signature(find_target(target, f"{key}.")).parameters
    # An argument with another default may have another meaning: name="mine".
    required = {name for name, parameter in parameters.items() if parameter.default in {parameter.empty, None}}
    further = {name: arguments[name] for name in arguments.keys() & required - section.keys()}
    with explain_refusal(key, section):
        # Passed by a call, not instantiated: the configuration among them contains targets.
        make = instantiate({**section, "_partial_": True})
        try:
            made = make(**further)
        except UsageError:
            raise
        except Exception as error:
            raise InstantiationException(f"{type(error).__name__}: {error}") from error
    if not isinstance(made, Callback):
        raise UsageError(f"{key}._target_={target} is no mnist_exp.training.Callback but a {type(made).__name__}")
    return made


@contextmanager
def explain_refusal(
    group: str, section: Mapping[str, Any], settings: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Turn the exceptions by which a constructor refuses its arguments into a UsageError; let all others pass.

    Args:
        group: the key of the section.
        section: the arguments.
        settings: for arguments that come from other sections: the settings that a user changes, by argument.

    Raises:
        UsageError: a line for each wrong argument.
    """
    try:
        yield
    except UsageError as error:  # the target does not exist
        raise UsageError(re.sub(r"^_target_=", f"{group}._target_=", str(error))) from error
    except (InstantiationException, DataError, TypeError, ValueError) as error:
        found: BaseException | None = error
        while found is not None and not isinstance(found, DataError | TypeError | ValueError):
            found = found.__cause__
        if isinstance(found, ValidationError):
            lines = explain_validation(found, {group: section}, choices_with_key, within=(group,))
        elif isinstance(found, DataError):
            lines = [str(found)]
        else:
            text = " ".join(str(found or error).split())
            named = re.sub(r"\b(\w+)=", lambda key: f"{group}.{key[0]}" if key[1] in section else key[0], text)
            lines = [named if named.startswith(f"{group}.") else f"{group}: {named}"]
        for name, setting in (settings or {}).items():
            lines = [re.sub(rf"\b{group}\.{name}=", f"{setting}=", line) for line in lines]
        raise UsageError("\n".join(lines)) from error
