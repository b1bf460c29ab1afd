"""Training on a CPU in small C kernels, compiled with the system's C compiler at first use.

``attach`` replaces a model's ``forward``, ``fused_step`` takes a whole training step, ``NativeAugment`` distorts images.
"""

from mnist_exp.native.augment import NativeAugment
from mnist_exp.native.build import NativeUnavailable
from mnist_exp.native.network import attach, attached
from mnist_exp.native.step import fused_step
from mnist_exp.native.structure import NotCovered

__all__ = ["NativeAugment", "NativeUnavailable", "NotCovered", "attach", "attached", "fused_step"]
