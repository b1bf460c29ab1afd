"""Pictures of digits become what MNIST's makers would have made of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mnist_exp.data.embedded import mnist5k
from mnist_exp.data.files import DataError
from mnist_exp.data.handwriting import LARGEST, grey, like_mnist, read_digit


@pytest.fixture(scope="module")
def digits() -> NDArray[np.uint8]:
    """200 real ones as they are stored."""
    return mnist5k(mean=0.0, std=1.0).test.images[:200, 0].mul(255).round().byte().numpy()


def png(pixels: NDArray[np.uint8], **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_most_of_mnist_is_left_as_it_is(digits: NDArray[np.uint8]) -> None:
    """The others are faint at an edge, or were reduced to less than 20 pixels."""
    same = [np.array_equal(like_mnist(digit), digit) for digit in digits]
    assert np.mean(same) > 0.7


def blown_up(digit: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.pad(np.kron(digit, np.ones((7, 7), dtype=np.uint8)), ((3, 200), (90, 11)))


@pytest.mark.parametrize(
    "change",
    [
        blown_up,
        lambda digit: 255 - digit,
        lambda digit: 255 - blown_up(digit),
        lambda digit: (40 + blown_up(digit) * 0.5).astype(np.uint8),
        lambda digit: (230 - blown_up(digit) * 0.6).astype(np.uint8),
    ],
    ids=["large", "dark on light", "large and dark on light", "pale on grey", "pencil on grey"],
)
def test_size_place_polarity_and_contrast_change_little(
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], digits: NDArray[np.uint8]
) -> None:
    for digit in digits[:50]:
        difference = np.abs(like_mnist(change(digit)).astype(int) - like_mnist(digit))
        assert difference.mean() < 1.0


def test_centre_of_mass_and_size(digits: NDArray[np.uint8]) -> None:
    blot = np.zeros((300, 80), dtype=np.uint8)
    blot[20:220, 30:40] = 255
    blot[200:220, 30:70] = 255
    found = like_mnist(blot).astype(float)
    rows, columns = np.nonzero(found.max(axis=1))[0], np.nonzero(found.max(axis=0))[0]
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (20, 4)
    centre = (found.sum(axis=1) * (np.arange(28) + 0.5)).sum() / found.sum()
    assert 14 <= centre < 15


def test_grain_of_paper_is_no_ink() -> None:
    random = np.random.default_rng(0)
    page = random.normal(200, 4, (200, 200))
    page[60:140, 90:110] -= 120
    found = like_mnist(page.clip(0, 255).astype(np.uint8))
    assert np.count_nonzero(found) == pytest.approx(20 * 5, abs=25)


@pytest.mark.parametrize("suffix", ["PNG", "JPEG"])
def test_files(suffix: str, tmp_path: Path, digits: NDArray[np.uint8]) -> None:
    Image.fromarray(255 - blown_up(digits[0])).convert("RGB").save(tmp_path / f"digit.{suffix}", suffix)
    difference = np.abs(read_digit(tmp_path / f"digit.{suffix}").astype(int) - like_mnist(digits[0]))
    assert difference.mean() < 2


def test_transparency_is_white_paper() -> None:
    pixels = np.zeros((30, 30, 4), dtype=np.uint8)
    pixels[5:25, 12:16, 3] = 255
    assert (grey(png(pixels))[0, 0], grey(png(pixels))[10, 13]) == (255, 0)


def test_sixteen_bits_are_scaled_not_cut_off() -> None:
    pixels = np.full((30, 30), 0xFFFF, dtype=np.uint16)
    pixels[5:25, 12:16] = 0x1234
    assert (grey(png(pixels))[0, 0], grey(png(pixels))[10, 13]) == (255, 0x12)


def test_photographs_are_turned_upright() -> None:
    image = Image.fromarray(np.zeros((10, 30), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert grey(buffer.getvalue()).shape == (30, 10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text", "not a whole PNG or JPEG image"),
        (png(np.zeros((40, 40), dtype=np.uint8))[:-30], "not a whole PNG or JPEG image"),
        (png(np.full((40, 40), 255, dtype=np.uint8)), "shows no digit: it is of one brightness"),
        (png(np.zeros((1, 9), dtype=np.uint8)), "shows no digit: smaller than 2x2 pixels"),
    ],
    ids=["no image", "cut off", "blank", "tiny"],
)
def test_mistakes(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_digit(tmp_path / "x.png")
    assert str(raised.value) == f"{tmp_path / 'x.png'}: {message}"


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_exp.data.handwriting.LARGEST", 99)
    with pytest.raises(ValueError, match=r"^10x10 pixels are too many$"):
        grey(png(np.zeros((10, 10), dtype=np.uint8)))
    assert LARGEST < Image.MAX_IMAGE_PIXELS  # type: ignore[operator]
