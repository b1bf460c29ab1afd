"""Random distortions: what each amplitude does, that they differ per image, and that they can be undone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_exp.data.augment import Augment

NOTHING = {"rotation": 0.0, "translation": 0.0, "scale": 0.0, "shear": 0.0, "elastic_alpha": 0.0, "elastic_sigma": 4.0,
           "interpolation": "bilinear"}  # fmt: skip


def augment(**amplitudes: float | str) -> Augment:
    return Augment(**{**NOTHING, **amplitudes}, background=-0.5)


def blobs(count: int, side: int = 28) -> Tensor:
    """Images (count, 1, side, side) of one smooth off-centre blob on background -0.5."""
    axis = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    blob = torch.exp(-((x - 4) ** 2 + (y + 2) ** 2) / 12) - 0.5
    return blob.expand(count, 1, side, side).clone()


def centres(images: Tensor) -> Tensor:
    """Centres of mass (N, 2) as x, y from the middle of the image, pixels."""
    side = images.shape[-1]
    axis = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    mass = images[:, 0] + 0.5
    total = mass.sum(dim=(1, 2))
    return torch.stack([(mass.sum(dim=1) @ axis) / total, (mass.sum(dim=2) @ axis) / total], dim=1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_without_amplitudes_nothing_moves(interpolation: str) -> None:
    images = blobs(4)
    torch.testing.assert_close(augment(interpolation=interpolation)(images), images, atol=1e-5, rtol=0)


def test_bicubic_keeps_strokes_as_sharp_as_they_are() -> None:
    """Half a pixel aside a line one pixel wide loses half its height bilinearly, less bicubically, and no ink either way."""
    line = torch.full((200, 1, 28, 28), -0.5)
    line[..., 14] = 0.5
    height, ink = {}, {}
    for interpolation in ("bilinear", "bicubic"):
        torch.manual_seed(0)
        moved = augment(translation=0.1, interpolation=interpolation)(line) + 0.5
        height[interpolation] = float(moved.amax(dim=(1, 2, 3)).mean())
        ink[interpolation] = float(moved[:, 0, 14].sum(dim=1).mean())
    assert height["bilinear"] == pytest.approx(0.75, abs=0.02), "the mean of the larger of a share and its complement"
    assert 0.8 < height["bicubic"] < 1
    assert ink == pytest.approx({"bilinear": 1.0, "bicubic": 1.0}, abs=1e-4)


def test_rotated_and_rotated_back() -> None:
    """The matrices that were drawn, inverted, bring every image back."""
    torch.manual_seed(0)
    distort = augment(rotation=30.0, translation=0.05, scale=0.1, shear=10.0)
    images = blobs(16)
    matrices = distort.affine(16, images.device)
    bottom = torch.tensor([0.0, 0.0, 1.0]).expand(16, 1, 3)
    inverse = torch.linalg.inv(torch.cat([matrices, bottom], dim=1))[:, :2]

    def warp(batch: Tensor, maps: Tensor) -> Tensor:
        grid = F.affine_grid(maps, list(batch.shape), align_corners=False)
        return F.grid_sample(batch + 0.5, grid, align_corners=False) - 0.5

    moved = warp(images, matrices)
    assert (moved - images).abs().amax(dim=(1, 2, 3)).median() > 0.15
    error = (warp(moved, inverse) - images).abs().amax(dim=(1, 2, 3))
    assert error.max() < 0.1, "two bilinear samplings lose a little sharpness, no more"
    assert error.mean() < 0.07


def test_rotation_turns_by_at_most_its_angle() -> None:
    torch.manual_seed(0)
    moved = centres(augment(rotation=20.0)(blobs(400)))
    start = centres(blobs(1))[0]
    torch.testing.assert_close(moved.norm(dim=1), start.norm().expand(400), atol=0.1, rtol=0)
    angles = torch.rad2deg(torch.atan2(moved[:, 1], moved[:, 0]) - torch.atan2(start[1], start[0]))
    assert angles.abs().max() == pytest.approx(20, abs=0.6)
    assert angles.mean() == pytest.approx(0, abs=1.5)
    assert angles.std() == pytest.approx(20 / math.sqrt(3), rel=0.1)


def test_translation_is_a_fraction_of_the_side() -> None:
    torch.manual_seed(0)
    shift = centres(augment(translation=0.1)(blobs(400))) - centres(blobs(1))
    assert shift.abs().amax(dim=0).tolist() == pytest.approx([2.8, 2.8], abs=0.15)


def test_scale_changes_the_distance_from_the_middle() -> None:
    torch.manual_seed(0)
    ratio = centres(augment(scale=0.2)(blobs(400))).norm(dim=1) / centres(blobs(1)).norm()
    assert ratio.min() == pytest.approx(0.8, abs=0.03)
    assert ratio.max() == pytest.approx(1.2, abs=0.03)


def test_shear_moves_along_the_horizontal_only() -> None:
    torch.manual_seed(0)
    shift = centres(augment(shear=15.0)(blobs(400))) - centres(blobs(1))
    height = centres(blobs(1))[0, 1].abs()
    assert shift[:, 0].abs().max() == pytest.approx(float(height) * math.tan(math.radians(15)), rel=0.1)
    assert shift[:, 1].abs().max() < 0.05


def test_elastic_displacement_has_the_amplitude_and_smoothness_of_its_definition() -> None:
    """The variance of smoothed uniform noise is 1/3 times the sum of squared weights; neighbours correlate as the
    Gaussian's autocorrelation, exp(-d^2 / (4 sigma^2)), says."""
    torch.manual_seed(0)
    alpha, sigma, side = 20.0, 4.0, 28
    field = (
        augment(elastic_alpha=alpha, elastic_sigma=sigma).elastic(300, side, torch.device("cpu")).movedim(1, -1)
        * side
        / 2
    )
    offsets = torch.arange(-12, 13, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    expected = alpha * math.sqrt(1 / 3) * float((kernel**2).sum())
    middle = field[:, 14, 14]
    assert float(middle.std()) == pytest.approx(expected, rel=0.1)
    right = field[:, 14, 18]
    correlation = float((middle * right).sum() / (middle.norm() * right.norm()))
    assert correlation == pytest.approx(math.exp(-(4**2) / (4 * sigma**2)), abs=0.08)


def test_every_image_gets_its_own_draw_and_the_background_stays() -> None:
    torch.manual_seed(0)
    distort = augment(rotation=15.0, translation=0.3, scale=0.1, shear=10.0, elastic_alpha=10.0)
    moved = distort(blobs(8))
    assert all(not torch.equal(moved[0], other) for other in moved[1:])
    assert moved.min() >= -0.5 - 1e-6
    assert moved[:, 0, 0, -1].tolist() == pytest.approx([-0.5] * 8, abs=5e-3)


def test_global_seed_decides_the_draw() -> None:
    distort, images = augment(rotation=15.0, elastic_alpha=5.0), blobs(4)
    draws: list[Any] = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(distort(images))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
