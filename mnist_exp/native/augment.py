"""Augmentation in native kernels."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from mnist_exp.data.augment import Augment
from mnist_exp.native.build import load


class Distortion(ctypes.Structure):
    """As in augment.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "channels", "side", "cubic", "shards")),
        *((name, ctypes.c_void_p) for name in ("images", "distorted", "background", "maps", "noise")),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in ("smoothing", "transposed", "scratch")),
    )


class NativeAugment:
    """Distorts images like ``augment``: from the same distribution, and equal to rounding for the same random numbers.

    The affine maps are drawn by ``augment``. For the elastic noise only a seed is drawn from PyTorch's generator: drawing
    100,000 numbers there takes longer than a step of an MLP.

    Raises:
        NativeUnavailable: the kernels cannot be built here.
    """

    def __init__(self, augment: Augment) -> None:
        self._augment = augment
        self._library = load({}, "augment.c")
        self._lanes = self._library.lanes()
        self._background = torch.as_tensor(augment.background, dtype=torch.float32).flatten().cpu()
        self._transposed: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Distort images (N, C, S, S), floating point; returns a new tensor of the same shape and dtype."""
        if images.dtype is not torch.float32 or images.device.type != "cpu" or not images.is_contiguous():
            return self._augment(images)
        maps = self._augment.affine(len(images), images.device)
        seed = int(torch.randint(2**62, ())) if self._augment.elastic_alpha else 0
        return self.distort(images, maps, seed)

    def distort(self, images: Tensor, maps: Tensor, seed: int, noise: Tensor | None = None) -> Tensor:
        """Images (N, C, S, S) distorted by affine maps (N, 2, 3) and by the elastic displacement made of ``noise``
        (N, 2, S, S), by default ``noise_of(N, S, seed)``."""
        count, channels, side = images.shape[:3]
        distorted = torch.empty_like(images)
        background = self._background.expand(channels).contiguous()
        maps = maps.contiguous()
        call = Distortion(count, channels, side, self._augment.interpolation == "bicubic", torch.get_num_threads())
        call.images, call.distorted, call.seed = images.data_ptr(), distorted.data_ptr(), seed
        call.background, call.maps = background.data_ptr(), maps.data_ptr()
        if noise is not None:
            noise = noise.contiguous()
            call.noise = noise.data_ptr()
        if self._augment.elastic_alpha:
            smoothing, transposed = self._matrices(side)
            call.smoothing, call.transposed = smoothing.data_ptr(), transposed.data_ptr()
        scratch = torch.empty(self._library.distortion_floats(ctypes.byref(call)))
        call.scratch = scratch.data_ptr()
        self._library.distort(ctypes.byref(call))
        return distorted

    def noise_of(self, count: int, side: int, seed: int) -> Tensor:
        """The noise (N, 2, S, S), uniform in [-1, 1), that ``distort`` draws from ``seed``."""
        noise, scratch = torch.empty(count, 2, side, side), torch.empty(side * (side + self._lanes))
        self._library.draw_noise(count, side, seed, noise.data_ptr(), scratch.data_ptr())
        return noise

    def _matrices(self, side: int) -> tuple[Tensor, Tensor]:
        if side not in self._transposed:
            smoothing = self._augment.smoothing_matrix(side, torch.device("cpu")).contiguous()
            transposed = torch.zeros(side, -(-side // self._lanes) * self._lanes)
            transposed[:, :side] = smoothing.T * (self._augment.elastic_alpha * 2 / side)
            self._transposed[side] = smoothing, transposed
        return self._transposed[side]
