"""Native augmentation: the maps and images of ``Augment`` given the same random numbers, and random numbers that are uniform."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_exp.data.augment import Augment
from mnist_exp.native import NativeAugment

DEFAULTS = {
    "rotation": 13.0,
    "translation": 0.04,
    "scale": 0.12,
    "shear": 13.0,
    "elastic_alpha": 20.0,
    "elastic_sigma": 4.0,
}


def augment(**changes: Any) -> Augment:
    return Augment(**{**DEFAULTS, "interpolation": "bicubic", "background": -0.4, **changes})


def reference(made: Augment, images: Tensor, maps: Tensor, noise: Tensor | None) -> Tensor:
    """As ``Augment.__call__``, with random numbers that are given."""
    count, side = len(images), images.shape[-1]
    sources = (maps @ made._pixels(side, images.device)).view(count, 2, side, side)
    if noise is not None:
        smoothing = made.smoothing_matrix(side, images.device)
        sources = sources + smoothing @ noise @ (smoothing.T * (made.elastic_alpha * 2 / side))
    grid = sources.permute(0, 2, 3, 1)
    moved = F.grid_sample(images - made.background, grid, mode=made.interpolation, align_corners=False)
    return moved + made.background


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, (20, 1, 28, 28)),
        ({"interpolation": "bilinear"}, (7, 1, 28, 28)),
        ({"elastic_alpha": 0.0}, (3, 1, 17, 17)),
        ({"rotation": 170.0, "translation": 3.0, "elastic_sigma": 1.0}, (30, 1, 5, 5)),  # most lies outside
        ({"background": torch.tensor([-0.4, 0.0, 0.3]).view(3, 1, 1)}, (5, 3, 33, 33)),
    ],
)
def test_the_same_numbers_give_the_same_images(changes: dict[str, Any], shape: tuple[int, ...]) -> None:
    made = augment(**changes)
    ours = NativeAugment(made)
    torch.manual_seed(0)
    images = torch.randn(shape)
    maps = made.affine(len(images), images.device)
    noise = ours.noise_of(len(images), shape[-1], 7) if made.elastic_alpha else None
    expected = reference(made, images, maps, noise)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 50):
            torch.set_num_threads(threads)
            found = ours.distort(images, maps, 7)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
            assert torch.equal(ours.distort(images, maps, 7, noise), found)
    finally:
        torch.set_num_threads(before)


def test_a_call_draws_the_maps_of_augment_and_repeats_itself() -> None:
    made = augment(elastic_alpha=0.0)
    images = torch.randn(30, 1, 28, 28)
    torch.manual_seed(1)
    expected = made(images)
    torch.manual_seed(1)
    torch.testing.assert_close(NativeAugment(made)(images), expected, rtol=0, atol=1e-4)
    ours = NativeAugment(augment())
    torch.manual_seed(2)
    first, second = ours(images), ours(images)
    torch.manual_seed(2)
    assert torch.equal(ours(images), first)
    assert not torch.equal(first, second)


def test_the_noise_is_uniform_and_independent() -> None:
    ours = NativeAugment(augment())
    noise = torch.stack([ours.noise_of(64, 28, seed) for seed in (0, 1, 2**33 + 1, 2**61 + 5)])
    flat = noise.flatten().double()
    assert float(flat.min()) >= -1
    assert float(flat.max()) < 1
    assert abs(float(flat.mean())) < 5 * 3**-0.5 / len(flat) ** 0.5
    counts = torch.histc(flat, 256, -1, 1)
    chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert 255 - 5 * 510**0.5 < chi_square < 255 + 5 * 510**0.5
    unit = flat * 3**0.5
    for distance in (1, 2, 16, 28, 32, 784, 1568, 64 * 1568):  # columns, rows, axes, images, seeds
        correlation = float((unit[:-distance] * unit[distance:]).mean())
        assert abs(correlation) < 5 / (len(flat) - distance) ** 0.5, distance


def test_what_it_is_not_made_for_is_left_to_pytorch() -> None:
    made, images = augment(), torch.randn(4, 1, 28, 28).double()
    torch.manual_seed(3)
    expected = made(images)
    torch.manual_seed(3)
    assert torch.equal(NativeAugment(made)(images), expected)
