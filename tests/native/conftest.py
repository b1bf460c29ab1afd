"""The tests of the kernels are about those that users have."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _as_shipped(shipped_kernels: None) -> None:
    """For every test of this folder."""
