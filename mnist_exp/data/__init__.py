"""Loaders of digits: from IDX files, PNG files, a download, or the 5,000 in the package.

Every loader returns ``Dataset``: normalised images and labels as whole tensors on the CPU. Loaders are deterministic
and do not change torch's global random state.

Importing this package does not import PyTorch; the first use of a loader does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_exp.data.embedded import mnist5k
    from mnist_exp.data.files import DataError, cache_directory
    from mnist_exp.data.idx import idx_folder
    from mnist_exp.data.png import png_folder
    from mnist_exp.data.splits import Dataset, Preparation, Split

__all__ = ["DataError", "Dataset", "Preparation", "Split", "cache_directory", "idx_folder", "mnist5k", "png_folder"]

_MODULE_OF_NAME = {
    "mnist5k": "embedded",
    **dict.fromkeys(("DataError", "cache_directory"), "files"),
    "idx_folder": "idx",
    "png_folder": "png",
    **dict.fromkeys(("Dataset", "Preparation", "Split"), "splits"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF_NAME[name]}"), name)
