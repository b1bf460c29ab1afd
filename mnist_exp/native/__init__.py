"""The step on a CPU in small C kernels, built with the system's C compiler at first use.

``attach`` gives a model's ``forward`` to them, ``fused_step`` a whole training step, ``NativeAugment`` distorts images; nothing else of the package knows.
"""

from mnist_exp.native.augment import NativeAugment
from mnist_exp.native.build import NativeUnavailable
from mnist_exp.native.network import attach, attached
from mnist_exp.native.step import fused_step
from mnist_exp.native.structure import NotCovered

__all__ = ["NativeAugment", "NativeUnavailable", "NotCovered", "attach", "attached", "fused_step"]
