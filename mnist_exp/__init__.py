"""Train, sweep and compare LeNet-5 variants and MLPs on MNIST.

    import mnist_exp

    run = mnist_exp.train("model=mlp", "data=mnist5k", "seed=3")
    rows = mnist_exp.load_runs("outputs/sweeps/mlp_width")
    model = mnist_exp.load_model(run.path)

Importing this package imports neither PyTorch nor Hydra; the first call of a function does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_exp.api import load_model, load_run, load_runs, train
    from mnist_exp.errors import RunFailed, RunInterrupted, UsageError
    from mnist_exp.runs import Run

__version__ = "0.1.0"
__all__ = [
    "Run",
    "RunFailed",
    "RunInterrupted",
    "UsageError",
    "load_model",
    "load_run",
    "load_runs",
    "train",
]

_MODULE_OF_NAME = {
    **dict.fromkeys(("load_model", "load_run", "load_runs", "train"), "mnist_exp.api"),
    **dict.fromkeys(("RunFailed", "RunInterrupted", "UsageError"), "mnist_exp.errors"),
    "Run": "mnist_exp.runs",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF_NAME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
