"""Libraries that few tests need. Each process of pytest-xdist imports all test files, so they are imported when first used."""

from __future__ import annotations

import importlib
from typing import Any


class Lazily:
    """Has the attributes of a module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("_", "pytest")):  # pytest looks for tests
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)
