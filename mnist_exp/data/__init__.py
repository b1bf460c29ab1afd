"""Loaders of digits: from IDX files, PNG files, a download, or the 5,000 in the package.

Every loader returns ``Dataset``: normalised images and labels as whole tensors on the CPU. Loaders are deterministic
and do not change torch's global random state.
"""

from mnist_exp.data.embedded import mnist5k
from mnist_exp.data.files import DataError, cache_directory
from mnist_exp.data.idx import idx_folder
from mnist_exp.data.png import png_folder
from mnist_exp.data.splits import Dataset, Preparation, Split

__all__ = ["DataError", "Dataset", "Preparation", "Split", "cache_directory", "idx_folder", "mnist5k", "png_folder"]
