"""What this project takes from PyTorch that PyTorch does not promise to keep, and nothing else does: about PyTorch 2.15.

TorchDynamo, the part that compiles, takes a third of a short run's time to import. PyTorch imports it in order to keep its
optimizers, and what counts operations, out of compiled code. As long as nobody has imported it, nothing is being compiled,
and there is nothing to keep them out of. The registers of hooks say whether somebody waits for what happens within a step.
"""
# ruff: noqa: SLF001  # this module is for that

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils import flop_counter

# All names that PyTorch's two wrappers use. One that uses another may do more than is known here, and is left alone.
OF_DISABLE = {"getattr", "torch._dynamo", "torch", "_dynamo", "disable", "__dynamo_disable"}
OF_STEP = {
    *("torch._dynamo", "torch", "_dynamo", "graph_break"),
    *("is_grad_enabled", "set_grad_enabled", "defaults", "cast", "Optimizer"),
}
MODULE = "torch._dynamo"


@functools.cache
def defer_dynamo() -> None:
    """Let PyTorch's optimizers and ``FlopCounterMode`` work without TorchDynamo until something else imports it.

    Then, and where PyTorch is not as expected, everything is as PyTorch makes it.
    """
    for cls in (value for module in (torch.optim, flop_counter) for value in vars(module).values()):
        if not inspect.isclass(cls):
            continue
        for function in list(vars(cls).values()):
            if _wraps_with(function, OF_DISABLE, "inner"):
                vars(function.__wrapped__).setdefault("__dynamo_disable", _first_plain(function))
        if _wraps_with(step := vars(cls).get("step"), OF_STEP, "_use_grad"):
            setattr(cls, "step", _plain_step(step))  # noqa: B010  # mypy knows no step of any class


def _wraps_with(function: Any, names: set[str], name: str) -> bool:
    """Whether this is a function in PyTorch's wrapper of that name, and the wrapper uses these names only."""
    return (
        isinstance(function, FunctionType)
        and hasattr(function, "__wrapped__")
        and function.__code__.co_name == name
        and set(function.__code__.co_names) <= names
    )


def _first_plain(wrapper: Any) -> Callable[..., Any]:
    """What PyTorch's wrapper is to call in place of the function that TorchDynamo makes of the wrapped one."""
    function = wrapper.__wrapped__

    def call(*arguments: Any, **options: Any) -> Any:
        if MODULE not in sys.modules:
            return function(*arguments, **options)
        del vars(function)["__dynamo_disable"]
        return wrapper(*arguments, **options)

    return call


def _plain_step(wrapper: Any) -> Callable[..., Any]:
    """A ``step`` without the breaks in compiled code that PyTorch puts around it."""

    @functools.wraps(wrapper)
    def step(self: torch.optim.Optimizer, *arguments: Any, **options: Any) -> Any:
        if MODULE in sys.modules:
            return wrapper(self, *arguments, **options)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return wrapper.__wrapped__(self, *arguments, **options)

    return step


def has_hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Whether somebody waits for something that happens within a step: a pass of the model, a gradient, an update."""
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


def count_as_stepped(optimizer: torch.optim.Optimizer) -> None:
    """Tell the optimizer that steps are taken, though not by its ``step``; a schedule would warn that there were none."""
    optimizer._opt_called = True  # type: ignore[attr-defined]  # PyTorch declares it nowhere
