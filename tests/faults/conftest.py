"""Data sets on disk, as the tests of data have them."""

from data.conftest import cache, idx, png, stored

__all__ = ["cache", "idx", "png", "stored"]
