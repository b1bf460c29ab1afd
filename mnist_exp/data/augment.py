"""Random distortions of a batch of images, drawn separately for each image, on the batch's device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Augment:
    """Random affine maps and elastic distortions (Simard, Steinkraus and Platt 2003), in one resampling.

    For each image an angle, a shift, a relative size and a shear are drawn uniformly within the given amplitudes. The
    elastic part draws a displacement for each pixel, uniform in [-1, 1] along both axes, smooths it with a Gaussian of
    ``elastic_sigma`` pixels whose weights sum to one, and multiplies it by ``elastic_alpha`` pixels. Both displacements
    are added and the image is resampled once; pixels outside the image are background.

    Args:
        rotation: largest angle, degrees.
        translation: largest shift along each axis, as a fraction of the side.
        scale: largest relative change of size; 0.1 draws from 0.9 to 1.1.
        shear: largest angle of the shear along the horizontal axis, degrees.
        elastic_alpha: amplitude of the elastic displacement before smoothing, pixels; 0 turns it off.
        elastic_sigma: standard deviation of the smoothing Gaussian, pixels.
        interpolation: ``bilinear``, or ``bicubic``, which blurs strokes less, so that training images stay as sharp as
            test images.
        background: value of empty pixels in the normalised images; (C, 1, 1) if it differs by channel.
    """

    def __init__(
        self,
        *,
        rotation: float,
        translation: float,
        scale: float,
        shear: float,
        elastic_alpha: float,
        elastic_sigma: float,
        interpolation: str,
        background: float | Tensor,
    ) -> None:
        self.rotation = math.radians(rotation)
        self.translation = translation
        self.scale = scale
        self.shear = math.radians(shear)
        self.elastic_alpha = elastic_alpha
        self.interpolation = interpolation
        self.background = background
        radius = math.ceil(3 * elastic_sigma)
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
        kernel = torch.exp(-(offsets**2) / (2 * elastic_sigma**2))
        self._kernel = kernel / kernel.sum()
        self._smoothing: dict[tuple[int, torch.device], Tensor] = {}
        self._centres: dict[tuple[int, torch.device], Tensor] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Distort images (N, C, S, S), floating point; returns a new tensor of the same shape and dtype."""
        count, side = len(images), images.shape[-1]
        sources = self.affine(count, images.device) @ self._pixels(side, images.device)
        sources = sources.view(count, 2, side, side)
        if self.elastic_alpha:
            sources = sources + self.elastic(count, side, images.device)
        # grid_sample takes pixels outside as zero, so the background is shifted to zero and back.
        grid = sources.permute(0, 2, 3, 1).to(images.dtype)
        digits = F.grid_sample(images - self.background, grid, mode=self.interpolation, align_corners=False)
        return digits + self.background

    def affine(self, count: int, device: torch.device) -> Tensor:
        """Random maps (N, 2, 3) from output to input coordinates, in units where the image spans [-1, 1]."""
        uniform = torch.rand(5, count, device=device) * 2 - 1
        angle, shear = uniform[0] * self.rotation, uniform[1] * self.shear
        size = 1 + uniform[2] * self.scale
        cosine, sine, slope = torch.cos(angle) / size, torch.sin(angle) / size, torch.tan(shear)
        x_row = torch.stack([cosine, cosine * slope - sine, 2 * self.translation * uniform[3]], dim=1)
        y_row = torch.stack([sine, sine * slope + cosine, 2 * self.translation * uniform[4]], dim=1)
        return torch.stack([x_row, y_row], dim=1)

    def elastic(self, count: int, side: int, device: torch.device) -> Tensor:
        """Smooth random displacements (N, 2, S, S), x before y, in units where the image spans [-1, 1]."""
        noise = torch.empty(count, 2, side, side, device=device).uniform_(-1, 1)
        smoothing = self.smoothing_matrix(side, device)
        return smoothing @ noise @ (smoothing.T * (self.elastic_alpha * 2 / side))

    def _pixels(self, side: int, device: torch.device) -> Tensor:
        """Homogeneous coordinates (3, S * S) of the pixels' centres, row by row, x before y."""
        if (side, device) not in self._centres:
            line = (2 * torch.arange(side) + 1) / side - 1
            y, x = torch.meshgrid(line, line, indexing="ij")
            self._centres[side, device] = torch.stack([x, y, torch.ones_like(x)]).view(3, -1).to(device)
        return self._centres[side, device]

    def smoothing_matrix(self, side: int, device: torch.device) -> Tensor:
        """The Gaussian as a banded matrix (S, S): on 28 pixels two small products are faster than a convolution."""
        if (side, device) not in self._smoothing:
            radius = len(self._kernel) // 2
            distance = torch.arange(side)[:, None] - torch.arange(side)[None, :]
            weights = self._kernel[(distance + radius).clamp(0, 2 * radius)] * (distance.abs() <= radius)
            self._smoothing[side, device] = weights.to(device)
        return self._smoothing[side, device]
