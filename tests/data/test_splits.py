"""What is done to digits wherever they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_exp.data import DataError, Dataset, idx_folder, mnist5k, png_folder
from mnist_exp.data.files import Labelled
from mnist_exp.data.splits import prepare, stratified_order


def numbered(count: int, classes: int = 10) -> Labelled:
    """Image i shows the number i in its first pixels, so that it can be told from all others."""
    images = np.zeros((count, 28, 28), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.divmod(np.arange(count), 256)
    return Labelled(images, (np.arange(count) ** 2 % classes % 10).astype(np.uint8))


def numbers(images: torch.Tensor) -> list[int]:
    pixels = (images[:, 0, 0, :2] * 255).round().int()
    return (pixels[:, 0] * 256 + pixels[:, 1]).tolist()


def plain(**options: object) -> Dataset:
    return prepare(numbered(1000), numbered(300), mean=0.0, std=1.0, **options)


@pytest.mark.parametrize("size", [28, 32])
def test_pixels_are_those_of_torchvision(stored: dict[str, Labelled], size: int) -> None:
    """To the bit: Resize of a PIL image, ToTensor, Normalize; on noise, the hardest image, and on digits."""
    from torchvision.transforms import Compose, Normalize, Resize, ToTensor
    from torchvision.transforms.v2 import functional as transforms

    chain = Compose([Resize((size, size)), ToTensor(), Normalize((0.1307,), (0.3081,))])
    expected = torch.stack([chain(Image.fromarray(image)) for image in stored["train"].images])
    assert torch.equal(prepare(**stored, image_size=size).train.images, expected)

    dataset = mnist5k(image_size=size, mean=0.0, std=1.0).test.images
    original = (mnist5k(mean=0.0, std=1.0).test.images * 255).round().to(torch.uint8)
    assert torch.equal(dataset, transforms.resize(original, [size, size]) / 255)
    # torchvision's first generation of transforms takes tensors, not PIL images, through float32: a grey level away.
    older = torch.stack([Resize((size, size))(image) for image in original[:100]]) / 255
    assert (dataset[:100] - older).abs().max() * 255 <= 1.001


def test_background_is_what_black_becomes(stored: dict[str, Labelled]) -> None:
    dataset = prepare(**stored, mean=0.286, std=0.353)
    assert dataset.background == pytest.approx(-0.286 / 0.353)
    black = torch.from_numpy(stored["train"].images).unsqueeze(1) == 0
    assert black.any()
    assert dataset.train.images[black].unique().tolist() == [dataset.background]


def test_validation_and_training_share_the_training_images() -> None:
    dataset = plain(val_size=200)
    assert dataset.val is not None
    kept, held_out = numbers(dataset.train.images), numbers(dataset.val.images)
    assert len(held_out) == len(dataset.val) == 200
    assert sorted(kept + held_out) == list(range(1000))
    assert numbers(dataset.test.images) == list(range(300))
    assert kept == sorted(kept), "the order is that of the source"


def test_labels_stay_with_their_images() -> None:
    dataset = plain(val_size=100, limit=500)
    assert dataset.val is not None
    for split in (dataset.train, dataset.val):
        assert split.labels.tolist() == [number**2 % 10 for number in numbers(split.images)]


@pytest.mark.parametrize("val_size", [100, 137, 999])
def test_stratified(val_size: int) -> None:
    dataset = plain(val_size=val_size)
    assert dataset.val is not None
    overall = np.bincount(numbered(1000).labels, minlength=10) / 1000
    assert np.abs(dataset.val.labels.bincount(minlength=10).numpy() - overall * val_size).max() <= 1


def test_any_window_of_the_order_is_stratified() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 5000).astype(np.uint8)
    order = stratified_order(labels, seed=3)
    assert sorted(order) == list(range(5000))
    overall = np.bincount(labels) / 5000
    for start in range(0, 4000, 321):
        for length in (10, 100, 1000):
            counts = np.bincount(labels[order[start : start + length]], minlength=10)
            assert np.abs(counts - overall * length).max() <= 2


def test_a_limit_keeps_some_of_what_a_larger_limit_keeps() -> None:
    kept = {limit: set(numbers(plain(val_size=100, limit=limit).train.images)) for limit in (1, 100, 200, 900)}
    assert [len(images) for images in kept.values()] == [1, 100, 200, 900]
    assert kept[1] < kept[100] < kept[200] < kept[900]
    validation = plain(val_size=100, limit=100).val
    assert validation is not None
    assert not kept[900] & set(numbers(validation.images))


def test_a_seed_chooses_always_the_same() -> None:
    def held_out(seed: int) -> list[int]:
        validation = plain(val_size=100, split_seed=seed).val
        assert validation is not None
        return numbers(validation.images)

    assert held_out(0) == held_out(0)
    seeds = [0, 1, 2**32, 2**63 - 1]
    assert len({tuple(held_out(seed)) for seed in seeds}) == len(seeds)
    # Published results name a split_seed: with any version of NumPy it has to mean the same images.
    assert stratified_order(np.repeat(np.arange(3, dtype=np.uint8), [2, 3, 4]), 0).tolist() == [
        6,
        2,
        0,
        8,
        4,
        5,
        1,
        3,
        7,
    ]


def test_global_random_state_is_left_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    plain(val_size=100, limit=100)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_swapped_splits() -> None:
    dataset = plain(swap_splits=True, val_size=50, limit=200)
    assert (len(dataset.train), len(dataset.test)) == (200, 1000)
    assert dataset.val is not None
    assert len(set(numbers(dataset.train.images)) | set(numbers(dataset.val.images))) == 250
    assert max(numbers(dataset.train.images)) < 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_size": 1000}, "data.val_size=1000 is not in 0..999: there are 1000 training images"),
        ({"val_size": -1}, "data.val_size=-1 is not in 0..999: there are 1000 training images"),
        ({"val_size": 300, "swap_splits": True}, "data.val_size=300 is not in 0..299: there are 300 training images"),
        (
            {"val_size": 100, "limit": 901},
            "data.limit=901 is not in 1..900: 1000 training images less data.val_size=100",
        ),
        ({"limit": 0}, "data.limit=0 is not in 1..1000: 1000 training images less data.val_size=0"),
        ({"image_size": 0}, "data.image_size=0 is not positive"),
        ({"split_seed": -1}, "data.split_seed=-1 is negative"),
    ],
)
def test_impossible_settings(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        plain(**options)
    assert str(caught.value) == message


def test_a_spread_that_is_not_positive(stored: dict[str, Labelled]) -> None:
    with pytest.raises(DataError, match=r"^data\.std=0\.0 is not positive$"):
        prepare(**stored, std=0.0)


def test_to_moves_every_tensor() -> None:
    for dataset, has_val in ((plain(val_size=10), True), (plain(), False)):
        moved = dataset.to("meta")
        splits = [moved.train, moved.test] + ([moved.val] if has_val else [])
        assert all(s is not None and s.images.is_meta and s.labels.is_meta for s in splits)
        assert (moved.val is not None) == has_val
        assert moved.background == dataset.background


def test_the_digest_is_of_the_content_alone(stored: dict[str, Labelled]) -> None:
    train, test = stored["train"], stored["test"]
    digest = prepare(train, test).digest
    assert digest is not None
    assert len(digest) == 16
    for same in ({"swap_splits": True}, {"limit": 20, "val_size": 20}, {"image_size": 32}, {"mean": 0.5}):
        assert prepare(train, test, **same).to("cpu").digest == digest  # type: ignore[arg-type]
    pixels, labels = train.images.copy(), test.labels.copy()
    pixels[3, 5, 5] ^= 1
    labels[[0, 1]] = (labels[0] + 1) % 10
    for others in ((Labelled(pixels, train.labels), test), (train, Labelled(test.images, labels)), (test, train)):
        assert prepare(*others).digest != digest


def test_loaders_give_the_same_digest_for_the_same_digits(idx: Callable[..., Path], png: Callable[..., Path]) -> None:
    plain, zipped = idx(), idx(gz=True, folder="zipped")
    digests = {idx_folder(root=str(root), download=None).digest for root in (plain, zipped)}
    assert digests == {png_folder(root=str(png())).digest}
