"""Checks of a stored configuration: it may hold plain data only, and targets only from packages that the user trusts.

Anybody may have written a run directory, so nothing that is read from one is given to OmegaConf, which would resolve
interpolations such as ``${oc.env:KEY}`` and ``${oc.create:...}``.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from mnist_exp.errors import UsageError, as_typed

if TYPE_CHECKING:
    from mnist_exp.config import Component, Config, Wandb
    from mnist_exp.runs.record import WandbRun

    Logger: TypeAlias = Component | Wandb

# Packages whose code may run besides ours and PyTorch's. None: all, because the user wrote the configuration.
Trusted = Collection[str] | None
ALLOWED_TARGETS = ("mnist_exp.", "torch.nn.", "torch.optim.", "torchvision.transforms.")
WANDB = "mnist_exp.loggers.wandb.WandbLogger"
TENSORBOARD = "mnist_exp.loggers.tensorboard.TensorBoardLogger"
# Keys beside a target that are no arguments of it.
_HYDRA_KEYS = {"_target_", "_args_", "_partial_", "_recursive_", "_convert_"}


@dataclass(frozen=True)
class _Rule:
    """Which of our targets and PyTorch's a section of a stored configuration may name.

    Attributes:
        base: the class that a target must be derived from; None: no class is allowed.
        partial: the required value of ``_partial_``; None: any.
        functions: functions that are allowed besides.
    """

    base: type[Any] | None
    partial: bool | None = None
    functions: tuple[Callable[..., Any], ...] = ()


def _rules() -> dict[str, _Rule]:
    """The rule for each section that can hold a target. Imports torch."""
    import torch

    from mnist_exp import data, training
    from mnist_exp.training import schedules

    schedulers = (schedules.constant, schedules.step_decay, schedules.cosine, schedules.one_cycle)
    return {
        "data": _Rule(None, False, (data.idx_folder, data.png_folder, data.mnist5k)),
        "model": _Rule(torch.nn.Module, False),
        "optimizer": _Rule(torch.optim.Optimizer, True),
        "scheduler": _Rule(torch.optim.lr_scheduler.LRScheduler, True, schedulers),
        "logger": _Rule(training.Callback),
        "callbacks": _Rule(training.Callback),
    }


def check_target_types(config: Config, trusted: Trusted) -> None:
    """Check the targets of a stored configuration: our networks and PyTorch's, and what trusted packages contain.

    Of our own callbacks only the TensorBoard logger is allowed, because it writes into the run directory only. Nothing is
    imported whose name is not allowed. The name alone is not enough: ``torch.nn.modules.module.warnings.warn`` begins with
    ``torch.nn`` and is no module, and ``mnist_exp.experiment.torch.fx.GraphModule`` is a module of another package.
    Imports torch.

    Args:
        trusted: packages besides ours; None: check nothing.

    Raises:
        UsageError: a target is not allowed, does not exist or has the wrong type.
    """
    if trusted is None:
        return
    tree = config.plain()
    for section, rule in _rules().items():
        for path, node in _nodes_with_target(tree.get(section), f"{section}."):
            _check_target(section, rule, path, node, trusted)


def _check_target(section: str, rule: _Rule, path: str, node: Mapping[str, Any], trusted: Collection[str]) -> None:
    target = str(node["_target_"])
    _refuse_unless_named(target, path, trusted)
    is_top = path.count(".") == (2 if section == "callbacks" else 1)
    if section not in {"model", "callbacks"} and not is_top:
        raise UsageError(f"{path}_target_={target} is not allowed there: only the model has parts")
    found = find_target(target, path)
    if target.startswith(ALLOWED_TARGETS) and (reason := _reason_to_refuse(section, rule, node, found)):
        raise UsageError(f"{path}_target_={target} is not allowed there: {reason}")
    if is_top and rule.partial is not None and (node.get("_partial_") is True) != rule.partial:
        raise UsageError(f"{path}_partial_ must be {str(rule.partial).lower()}")


def _reason_to_refuse(section: str, rule: _Rule, node: Mapping[str, Any], found: Any) -> str | None:
    """Why ``found``, which a target of ours or of PyTorch names, is not allowed; None if it is."""
    if section == "callbacks" and dict(node) != {"_target_": TENSORBOARD}:
        return f"of our callbacks, only {TENSORBOARD} without arguments"
    if section == "logger" and node["_target_"] != WANDB:
        return f"of our loggers, only {WANDB}"
    derived = rule.base is not None and isinstance(found, type) and issubclass(found, rule.base)
    if not derived and found not in rule.functions:
        return f"it is no {rule.base.__name__ if rule.base else 'loader of data'}"
    if not f"{found.__module__}.".startswith(ALLOWED_TARGETS):
        return f"it is {found.__module__}'s"
    return None


def check_names(config: Config, trusted: Collection[str]) -> None:
    """Check the names of all targets without importing them: the first of the checks of ``check_target_types``.

    Raises:
        UsageError: a target is neither in our packages nor in a trusted one.
    """
    for path, node in _nodes_with_target(config.plain()):
        _refuse_unless_named(str(node["_target_"]), path, trusted)


def _refuse_unless_named(target: str, path: str, trusted: Collection[str]) -> None:
    package = target.partition(".")[0]
    if not target.startswith(ALLOWED_TARGETS) and package not in trusted:
        allowed = ", ".join(f"{prefix}*" for prefix in ALLOWED_TARGETS)
        raise UsageError(
            f"{path}_target_={target} is not allowed; it may name {allowed} only. If you trust the code of {package} on this "
            f'machine, add: --trust {package} (from Python: trust=["{package}"])'
        )


def _nodes_with_target(node: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The path (``model.layers.0.``) and the mapping of every target in a tree."""
    if isinstance(node, Mapping) and "_target_" in node:
        yield path, node
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from _nodes_with_target(value, f"{path}{key}.")


def own_packages(config: Config) -> frozenset[str]:
    """The packages of all targets that are neither ours nor PyTorch's."""
    targets = (str(node["_target_"]) for _, node in _nodes_with_target(config.plain()))
    return frozenset(target.partition(".")[0] for target in targets if not target.startswith(ALLOWED_TARGETS))


def find_target(target: str, path: str = "") -> Any:
    """Import and return the object that a target names. A module in the working directory may be named, too.

    Args:
        path: of the section, for messages: ``model.``.

    Raises:
        UsageError: it does not exist, or importing it fails.
    """
    from hydra.utils import get_object

    # Last in sys.path, and not for our own packages: a file in somebody's folder must not replace an installed library,
    # or an optional one that is missing.
    here = (
        [] if target.startswith(ALLOWED_TARGETS) else [folder for folder in _start_folders() if folder not in sys.path]
    )
    sys.path.extend(here)
    log = logging.getLogger("hydra.utils")  # it would log three lines about an error that is one line below
    was_disabled, log.disabled = log.disabled, True
    try:
        return get_object(target)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        module, _, name = target.rpartition(".")
        if isinstance(cause, ModuleNotFoundError) and cause.name == target:
            reason = f"{module} has no {name}"
        else:
            reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
        raise UsageError(f"{path}_target_={target} does not exist: {reason}") from error
    finally:
        log.disabled = was_disabled
        for folder in here:
            sys.path.remove(folder)


def _start_folders() -> list[str]:
    """The folder in which the command was started, and the working directory, which ``hydra.job.chdir`` can change."""
    from hydra.core.hydra_config import HydraConfig

    folders = [os.getcwd()]
    if HydraConfig.initialized():
        folders.insert(0, HydraConfig.get().runtime.cwd)
    return list(dict.fromkeys(folders))


def instantiate(node: Any) -> Any:
    """``hydra.utils.instantiate`` for plain data, without OmegaConf. The targets must have been checked.

    Raises:
        InstantiationException: the target refuses its arguments, or the call fails; the cause is attached.
    """
    from hydra.errors import InstantiationException

    if isinstance(node, list):
        return [instantiate(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {key: instantiate(value) for key, value in node.items()}
    recursive = node.get("_recursive_", True)
    named = {key: value for key, value in node.items() if key not in _HYDRA_KEYS}
    positional = node.get("_args_", [])
    if recursive:
        named, positional = {key: instantiate(value) for key, value in named.items()}, instantiate(positional)
    target = find_target(node["_target_"])
    if node.get("_partial_"):
        return partial(target, *positional, **named)
    try:
        return target(*positional, **named)
    except Exception as error:
        raise InstantiationException(f"Error in call to target '{node['_target_']}': {error!r}") from error


def logger_to_use(
    stored: Logger | None, present: Logger | None, typed: Collection[str]
) -> tuple[Logger | None, list[str]]:
    """The logger for a stored run that is continued. Who continues it decides where it is sent and whether its files are.

    Args:
        stored: the section in the run's configuration. Only a decision to send nothing is kept: no logger, or mode
            offline or disabled.
        present: the section as the present command composes it.
        typed: keys of the section that the user typed; ``logger`` for a choice.

    Returns:
        the section to use, and the settings of ``stored`` that are not in it, as overrides.
    """
    if "logger" in typed:
        return present, []
    if stored is None or present is None:
        return None, []
    before = stored.plain()
    if before.get("mode") in {"offline", "disabled"} and "logger.mode" not in typed:
        present = present.model_copy(update={"mode": before["mode"]})
    now = present.plain()
    lost = [
        f"logger.{key}={as_typed(value)}"
        for key, value in before.items()
        if key not in _HYDRA_KEYS and f"logger.{key}" not in typed and value != now.get(key)
    ]
    return present, lost


def run_id_to_use(recorded: WandbRun | None, logger: Logger | None) -> str | None:
    """The recorded W&B id, if it belongs to the project and the entity of ``logger``; None: W&B makes a new run."""
    section: dict[str, Any] = {} if logger is None else logger.plain()
    if recorded is None or recorded.project != section.get("project"):
        return None
    if section.get("entity") not in {None, recorded.entity}:
        return None
    run_id = recorded.id
    return run_id if run_id is not None and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", run_id) else None
