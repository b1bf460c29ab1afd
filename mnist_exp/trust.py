"""What a stored configuration may say, whoever wrote it: plain data, and the names of networks, optimizers and schedules.

A run directory can be a stranger's, so nothing that is read from one reaches OmegaConf, which would resolve
interpolations such as ``${oc.env:KEY}`` and ``${oc.create:...}``.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from mnist_exp.errors import UsageError, as_typed

if TYPE_CHECKING:
    from mnist_exp.config import Component, Config, Wandb
    from mnist_exp.runs.record import WandbRun

    Logger: TypeAlias = Component | Wandb

# Packages whose code may run, besides ours and PyTorch's; None: any, because the configuration is the user's own.
Trusted = Collection[str] | None
ALLOWED_TARGETS = ("mnist_exp.", "torch.nn.", "torch.optim.", "torchvision.transforms.")
WANDB = "mnist_exp.loggers.wandb.WandbLogger"
TENSORBOARD = "mnist_exp.loggers.tensorboard.TensorBoardLogger"
# What Hydra reads beside the arguments of a target.
_OF_HYDRA = {"_target_", "_args_", "_partial_", "_recursive_", "_convert_"}


def refuse_unless_plain(tree: Any) -> None:
    """Check that a configuration is what a run stores: resolved, without aliases, of plain types.

    Raises:
        UsageError: it holds an interpolation, ``???``, a YAML alias, a key that is no string, or a value of another type.
    """
    seen: set[int] = set()

    def visit(node: Any, path: str) -> None:
        if isinstance(node, str):
            if "${" in node or node == "???":
                what = "an interpolation (${)" if "${" in node else "??? in place of a value"
                raise UsageError(f"{path or 'it'} holds {what}; a stored configuration holds values only")
            return
        if node is None or isinstance(node, bool | int | float):
            return
        if not isinstance(node, dict | list):
            raise UsageError(
                f"{path or 'it'} holds a {type(node).__name__}; a stored configuration holds plain data only"
            )
        if node and id(node) in seen:
            raise UsageError(f"{path or 'it'} holds a YAML alias; a stored configuration holds values only")
        seen.add(id(node))
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(node, dict):
                if not isinstance(key, str):
                    raise UsageError(f"{path or 'it'} holds the key {key!r}, which is no string")
                visit(key, path)
            visit(value, f"{path}.{key}" if path else str(key))

    visit(tree, "")


def check_target_types(config: Config, trusted: Trusted) -> None:
    """Check what a stored configuration may run: our own networks and PyTorch's, and packages that the user trusts.

    Of our own callbacks it may name the logger that writes into the run directory only, TensorBoard's.

    Nothing is imported whose name is not allowed. The name alone is not enough: ``torch.nn.modules.module.warnings.warn``
    begins with ``torch.nn`` and is no module, and ``mnist_exp.experiment.torch.fx.GraphModule`` is a module of another
    package. Networks are made of modules; nothing else has parts with a target. Imports torch.

    Args:
        trusted: packages besides ours; None: the configuration is the user's own, and whatever it names may run.

    Raises:
        UsageError: a target is not allowed, does not exist or is something else.
    """
    if trusted is None:
        return
    import torch

    from mnist_exp import data, training
    from mnist_exp.training import schedules

    kinds: dict[str, type[Any] | None] = {
        "data": None,
        "model": torch.nn.Module,
        "optimizer": torch.optim.Optimizer,
        "scheduler": torch.optim.lr_scheduler.LRScheduler,
        "logger": training.Callback,
        "callbacks": training.Callback,
    }
    made = {"data": True, "model": True, "optimizer": False, "scheduler": False}  # or called later with more arguments
    functions = {
        "data": [data.idx_folder, data.png_folder, data.mnist5k],
        "scheduler": [schedules.constant, schedules.step_decay, schedules.cosine, schedules.one_cycle],
    }

    def visit(node: Any, group: str, path: str) -> None:
        if isinstance(node, Mapping) and "_target_" in node:
            target, kind = node["_target_"], kinds[group]
            _refuse_unless_named(str(target), path, trusted)
            top = path.count(".") == (2 if group == "callbacks" else 1)
            if group not in {"model", "callbacks"} and not top:
                raise UsageError(f"{path}_target_={target} is not allowed there: only the model has parts")
            found = find_target(target, path)
            own = not str(target).startswith(ALLOWED_TARGETS)  # it is trusted, whatever it is
            if group == "callbacks" and not own and dict(node) != {"_target_": TENSORBOARD}:
                raise UsageError(f"{path}_target_={target} is not allowed there: of ours, only {TENSORBOARD} as it is")
            if group == "logger" and not own and target != WANDB:
                raise UsageError(f"{path}_target_={target} is not allowed there: of ours, only {WANDB}")
            fits = own or (kind is not None and isinstance(found, type) and issubclass(found, kind))
            if not fits and found not in functions.get(group, []):
                wanted = kind.__name__ if kind else "loader of data"
                raise UsageError(f"{path}_target_={target} is not allowed there: it is no {wanted}")
            if not own and not f"{found.__module__}.".startswith(ALLOWED_TARGETS):
                raise UsageError(f"{path}_target_={target} is not allowed there: it is {found.__module__}'s")
            if top and group in made and (node.get("_partial_") is True) == made[group]:
                raise UsageError(f"{path}_partial_ must be {str(not made[group]).lower()}")
        for key, value in _items(node):
            visit(value, group, f"{path}{key}.")

    tree = config.plain()  # no other section of the schema can hold a target
    for group in kinds:
        visit(tree.get(group), group, f"{group}.")


def check_names(config: Config, trusted: Collection[str]) -> None:
    """Check the names of all targets, importing none: what ``check_target_types`` checks first.

    Raises:
        UsageError: a target lies neither in our packages nor in those that are trusted.
    """
    for path, target in _targets(config.plain()):
        _refuse_unless_named(target, path, trusted)


def _refuse_unless_named(target: str, path: str, trusted: Collection[str]) -> None:
    package = target.partition(".")[0]
    if not target.startswith(ALLOWED_TARGETS) and package not in trusted:
        allowed = ", ".join(f"{prefix}*" for prefix in ALLOWED_TARGETS)
        raise UsageError(
            f"{path}_target_={target} is not allowed; it may name {allowed} only. If you trust the code of {package} on this "
            f'machine, add: --trust {package} (from Python: trust=["{package}"])'
        )


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Where in a tree something names a target, and which."""
    if isinstance(node, Mapping) and "_target_" in node:
        yield path, str(node["_target_"])
    for key, value in _items(node):
        yield from _targets(value, f"{path}{key}.")


def own_packages(config: Config) -> frozenset[str]:
    """The packages of all targets that are neither ours nor PyTorch's."""
    targets = (target for _, target in _targets(config.plain()))
    return frozenset(target.partition(".")[0] for target in targets if not target.startswith(ALLOWED_TARGETS))


def find_target(target: str, path: str = "") -> Any:
    """What a target names, imported. A module in the working directory is found where no installed one has the name.

    Raises:
        UsageError: it does not exist, or importing it fails.
    """
    from hydra.utils import get_object

    # Behind all else, and for names outside our own packages only: a file in somebody's folder must not stand in for a
    # library that is missing here.
    here = (
        [] if target.startswith(ALLOWED_TARGETS) else [folder for folder in _start_folders() if folder not in sys.path]
    )
    sys.path.extend(here)
    log = logging.getLogger("hydra.utils")  # it would say in three lines what is said below in one
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
    """Where the command was given, and where it works now (``hydra.job.chdir``)."""
    from hydra.core.hydra_config import HydraConfig

    folders = [os.getcwd()]
    if HydraConfig.initialized():
        folders.insert(0, HydraConfig.get().runtime.cwd)
    return list(dict.fromkeys(folders))


def instantiate(node: Any) -> Any:
    """Make what an authorized node describes: ``hydra.utils.instantiate`` for plain data, without OmegaConf.

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
    named = {key: value for key, value in node.items() if key not in _OF_HYDRA}
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
    """The logger of a run that is read from a directory: where it is sent, and whether its files are, is for the user to
    say who continues it.

    Args:
        stored: the section in the run's configuration. What is taken over of it is to send nothing: no logger, or
            mode offline or disabled.
        present: the section that the command which continues it amounts to.
        typed: keys of it that this command names; ``logger`` for a choice.

    Returns:
        the section to use, and, as one would type them, the settings of ``stored`` that are not in it.
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
        if key not in _OF_HYDRA and f"logger.{key}" not in typed and value != now.get(key)
    ]
    return present, lost


def run_id_to_use(recorded: WandbRun | None, logger: Logger | None) -> str | None:
    """The W&B id of the run that ``run.json`` records, where it is in the project and of the entity that ``logger`` names;
    None for a new one."""
    section: dict[str, Any] = {} if logger is None else logger.plain()
    if recorded is None or recorded.project != section.get("project"):
        return None
    if section.get("entity") not in {None, recorded.entity}:
        return None
    found = recorded.id
    return found if found is not None and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found) else None


def _items(node: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(node, Mapping):
        return node.items()
    return enumerate(node) if isinstance(node, list) else ()
