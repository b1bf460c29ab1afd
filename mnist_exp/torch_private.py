"""All uses of private parts of PyTorch; written for PyTorch 2.15.

The import of TorchDynamo, PyTorch's compiler, takes a third of a short run's time. PyTorch imports it only to exclude its
optimizers and its operation counter from compiled code. Before that import nothing is compiled, so it is not needed.
Triton takes a twentieth. The operation counter imports it only to accept formulas for Triton's kernels.
"""
# ruff: noqa: SLF001  # this module is the only place for private names

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import nn


@contextmanager
def _without_triton() -> Iterator[None]:
    """Triton cannot be imported, and PyTorch's operation counter does not warn of that; afterwards it can."""
    logger, name = logging.getLogger("torch.utils.flop_counter"), "triton"
    if name in sys.modules or logger.name in sys.modules:
        yield
        return
    was_disabled, logger.disabled = logger.disabled, True
    sys.modules[name] = None  # type: ignore[assignment]  # Python refuses to import a module that is None here
    try:
        yield
    finally:
        del sys.modules[name]
        logger.disabled = was_disabled


with _without_triton():
    from torch.utils import flop_counter
    from torch.utils.flop_counter import FlopCounterMode as FlopCounterMode

# All names that PyTorch's two wrappers use. A wrapper with other names may do more, and is not replaced.
NAMES_IN_DISABLE = {"getattr", "torch._dynamo", "torch", "_dynamo", "disable", "__dynamo_disable"}
NAMES_IN_STEP = {
    *("torch._dynamo", "torch", "_dynamo", "graph_break"),
    *("is_grad_enabled", "set_grad_enabled", "defaults", "cast", "Optimizer"),
}
MODULE = "torch._dynamo"


@functools.cache
def defer_dynamo() -> None:
    """Let PyTorch's optimizers and ``FlopCounterMode`` work without TorchDynamo until other code imports it.

    After that import, and if PyTorch's code is not as expected, PyTorch's own wrappers are used.
    """
    for cls in (value for module in (torch.optim, flop_counter) for value in vars(module).values()):
        if not inspect.isclass(cls):
            continue
        for function in list(vars(cls).values()):
            if _wraps_with(function, NAMES_IN_DISABLE, "inner"):
                vars(function.__wrapped__).setdefault("__dynamo_disable", _first_plain(function))
        if _wraps_with(step := vars(cls).get("step"), NAMES_IN_STEP, "_use_grad"):
            setattr(cls, "step", _plain_step(step))  # noqa: B010  # mypy does not know that the class has a step


def _wraps_with(function: Any, names: set[str], name: str) -> bool:
    """Whether ``function`` is PyTorch's wrapper called ``name``, and uses no other names than ``names``."""
    return (
        isinstance(function, FunctionType)
        and hasattr(function, "__wrapped__")
        and function.__code__.co_name == name
        and set(function.__code__.co_names) <= names
    )


def _first_plain(wrapper: Any) -> Callable[..., Any]:
    """The function for PyTorch's wrapper to call: the plain one until TorchDynamo is imported, then TorchDynamo's."""
    function = wrapper.__wrapped__

    def call(*arguments: Any, **options: Any) -> Any:
        if MODULE not in sys.modules:
            return function(*arguments, **options)
        del vars(function)["__dynamo_disable"]
        return wrapper(*arguments, **options)

    return call


def _plain_step(wrapper: Any) -> Callable[..., Any]:
    """A ``step`` without PyTorch's graph breaks, which only compiled code needs."""

    @functools.wraps(wrapper)
    def step(self: torch.optim.Optimizer, *arguments: Any, **options: Any) -> Any:
        if MODULE in sys.modules:
            return wrapper(self, *arguments, **options)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return wrapper.__wrapped__(self, *arguments, **options)

    return step


def has_hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Whether any hook is registered on the model, its parameters or the optimizer, or globally."""
    everywhere, of_optimizers = sys.modules["torch.nn.modules.module"], sys.modules[torch.optim.Optimizer.__module__]
    hooks: list[Any] = [
        *(everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks),
        *(everywhere._global_backward_hooks, everywhere._global_backward_pre_hooks),
        *(of_optimizers._global_optimizer_pre_hooks, of_optimizers._global_optimizer_post_hooks),
        *(optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks),
    ]
    for module in model.modules():
        hooks += [module._forward_hooks, module._forward_pre_hooks]
        hooks += [module._backward_hooks, module._backward_pre_hooks]
    for parameter in model.parameters():
        hooks += [parameter._backward_hooks, parameter._post_accumulate_grad_hooks]
    return any(hooks)


def mark_as_stepped(optimizer: torch.optim.Optimizer) -> None:
    """Mark the optimizer as used, though its ``step`` is not called; otherwise a schedule warns."""
    optimizer._opt_called = True  # type: ignore[attr-defined]  # not declared in PyTorch
