"""State of the process that a run or a test could change and a later one could depend on."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer  # no public list of resolvers

# Restored, but a change is not a fault: Hydra's resolvers are the same functions each time, W&B's service replaces
# sys.exit and sys.excepthook until the process ends, and the package stores some facts for one process.
TOLERATED = {"resolvers", "hooks", "W&B's answer", "last sweep"}
Part = tuple[Callable[[], Any], Callable[[Any], None]]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def _set_environment(value: dict[str, str]) -> None:
    for name in _environment().keys() - value.keys():
        del os.environ[name]
    os.environ.update(value)


def _signals() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _set_signals(value: dict[int, Any]) -> None:
    for number, handler in value.items():
        if handler is not None and handler != signal.getsignal(number):
            signal.signal(number, handler)


def _handlers() -> dict[str, list[logging.Handler]]:
    """Handlers of the root logger and of the loggers of this package and Hydra, without pytest's."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in {"mnist_exp", "hydra"}]
    found = {name: logging.getLogger(name).handlers for name in ["", *names]}
    return {
        name: kept
        for name, handlers in found.items()
        if (kept := [handler for handler in handlers if not type(handler).__module__.startswith("_pytest")])
    }


def _set_handlers(value: dict[str, list[logging.Handler]]) -> None:
    for name, handlers in _handlers().items():
        for handler in handlers:
            if handler not in value.get(name, []):
                logging.getLogger(name).removeHandler(handler)


def _set_resolvers(value: set[str]) -> None:
    for name in set(BaseContainer._resolvers) - value:
        OmegaConf.clear_resolver(name)


def _set_hydra_config(value: Any) -> None:
    HydraConfig.instance().cfg = value


def _set_hooks(value: tuple[Any, ...]) -> None:
    sys.excepthook, sys.exit = value


PARTS: dict[str, Part] = {
    "working directory": (os.getcwd, os.chdir),
    "environment": (_environment, _set_environment),
    "sys.argv": (lambda: list(sys.argv), lambda value: sys.argv.__setitem__(slice(None), value)),
    "sys.path": (lambda: list(sys.path), lambda value: sys.path.__setitem__(slice(None), value)),
    "hooks": (lambda: (sys.excepthook, sys.exit), _set_hooks),
    "signal handlers": (_signals, _set_signals),
    "blocked signals": (
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, []),
        lambda value: signal.pthread_sigmask(signal.SIG_SETMASK, value) and None,
    ),
    "logging handlers": (_handlers, _set_handlers),
    "logging level": (lambda: logging.root.level, logging.root.setLevel),
    "socket timeout": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    "start method": (
        # The first method is the default, and making the first lock also sets it.
        lambda: multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0],
        lambda value: multiprocessing.set_start_method(value, force=True),
    ),
    "HydraConfig": (lambda: HydraConfig.instance().cfg, _set_hydra_config),
    "GlobalHydra": (lambda: GlobalHydra.instance().hydra, lambda value: GlobalHydra.instance().clear()),
    "resolvers": (lambda: set(BaseContainer._resolvers), _set_resolvers),
}


def torch_parts() -> dict[str, Part]:
    """Settings of torch, if it is imported."""
    if "torch" not in sys.modules:
        return {}
    import torch

    return {
        "torch threads": (torch.get_num_threads, torch.set_num_threads),
        "torch default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "torch gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
        "torch deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
        "torch matrix products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    }


def package_parts() -> dict[str, Part]:
    """State that the package keeps until the process ends, if the package is imported."""
    parts: dict[str, Part] = {}
    if logger := sys.modules.get("mnist_exp.loggers.wandb"):
        kept = logger.WandbLogger

        def answer(value: tuple[str | None, float]) -> None:
            kept._no_answer, kept._ask_again = value

        parts["W&B's answer"] = (lambda: (kept._no_answer, kept._ask_again), answer)
    if launching := sys.modules.get("mnist_exp.sweeps.launching"):
        last = launching._LAST
        parts["last sweep"] = (lambda: list(last), lambda value: last.__setitem__(slice(None), value))
    return parts


@contextmanager
def restored() -> Iterator[list[str]]:
    """Restore all state at the end; the list then names the parts that had changed."""
    parts = {**PARTS, **torch_parts(), **package_parts()}
    before = {name: read() for name, (read, _) in parts.items()}
    changed: list[str] = []
    try:
        yield changed
    finally:
        for name, (read, write) in parts.items():
            if read() != before[name]:
                changed += [name] if name not in TOLERATED else []
                write(before[name])
