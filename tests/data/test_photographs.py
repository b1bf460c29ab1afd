"""Image files of all kinds become colours, or the true reason why not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mnist_exp.data.files import DataError
from mnist_exp.data.photographs import decoded, read_picture


def encoded(pixels: NDArray[np.uint8] | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


GREY = np.add.outer(np.arange(40, dtype=np.uint8), np.arange(60, dtype=np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_the_content_decides_not_the_suffix(kind: str, suffix: str, tmp_path: Path) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / f"x{suffix}").write_bytes(encoded(GREY, kind, **options))
    difference = np.abs(read_picture(tmp_path / f"x{suffix}") - GREY[..., None])
    assert difference.max() <= (8 if kind == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes(mode: str) -> None:
    black_on_white = Image.fromarray(np.where(GREY > 50, np.uint8(255), np.uint8(0)))
    found = decoded(encoded(black_on_white.convert(mode)))
    assert np.array_equal(found, np.repeat(np.asarray(black_on_white)[..., None], 3, axis=2))


def test_cmyk() -> None:
    found = decoded(encoded(Image.fromarray(GREY).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(found - GREY[..., None]).max() < 12


@pytest.mark.parametrize(("ink", "ground"), [((0, 0, 0), 255), ((255, 255, 255), 0), ((20, 30, 120), 255)])
def test_ink_on_nothing_is_laid_on_what_it_stands_out_from(ink: tuple[int, int, int], ground: int) -> None:
    pixels = np.zeros((30, 30, 4), dtype=np.uint8)
    pixels[5:25, 12:16] = (*ink, 255)
    found = decoded(encoded(pixels))
    assert (found[0, 0] == ground).all()
    assert (found[10, 13] == ink).all()


def test_round_corners_get_the_paper_s_colour() -> None:
    pixels = np.full((60, 60, 4), 240, dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[20:40, 28:32, :3] = 10
    pixels[:4, :4, 3] = pixels[-4:, -4:, 3] = 0
    assert (decoded(encoded(pixels))[[0, -1], [0, -1]] == 240).all()


def test_sixteen_bits_are_scaled_not_cut_off() -> None:
    pixels = np.full((30, 30), 0xFFFF, dtype=np.uint16)
    pixels[5:25, 12:16] = 0x1234
    found = decoded(encoded(Image.fromarray(pixels)))
    assert found[0, 0] == pytest.approx(255)
    assert found[10, 13] == pytest.approx(255 * 0x1234 / 0xFFFF)


def test_photographs_are_turned_upright() -> None:
    image = Image.fromarray(np.zeros((10, 30), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    assert decoded(encoded(image, "JPEG", exif=exif)).shape == (30, 10, 3)


def test_108_megapixels_are_reduced() -> None:
    image = Image.new("L", (12000, 9000), 200)
    image.paste(20, (4000, 3000, 8000, 6000))
    found = decoded(encoded(image))
    assert found.shape == (1500, 2000, 3)
    assert (found[0, 0, 0], found[750, 1000, 0]) == (200, 20)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK"])
def test_reduced_in_strips_as_in_one(mode: str) -> None:
    large = np.kron(np.random.default_rng(0).integers(0, 256, (405, 205), dtype=np.uint8), np.ones((10, 10), np.uint8))
    image = Image.fromarray(large[:-3]).convert(mode)
    small = image.convert("RGB").reduce(3)
    assert np.abs(decoded(encoded(image, "TIFF")) - np.asarray(small)).max() <= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file"),
        (b"text", "is not a picture in a format that is read (PNG, JPEG, WebP, GIF, BMP, TIFF)"),
        (encoded(GREY)[:-30], "is a damaged or incomplete PNG picture"),
        (encoded(GREY, "JPEG")[:20], "is a damaged or incomplete JPEG picture"),
        (encoded(GREY, "WEBP")[:-30], "is a damaged or incomplete WebP picture"),
        (b"\0\0\0\x18ftypheic" + bytes(90), "is a HEIC file, which is not read; save it as PNG or JPEG"),
        (b"%PDF-1.7" + bytes(90), "is a PDF file, which is not read; save it as PNG or JPEG"),
        (encoded(np.zeros((9, 9, 4), dtype=np.uint8)), "is transparent everywhere"),
    ],
    ids=["empty", "text", "cut PNG", "cut JPEG", "cut WebP", "HEIC", "PDF", "transparent"],
)
def test_mistakes(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_picture(tmp_path / "x.png")
    assert str(raised.value) == f"{tmp_path / 'x.png'}: {message}"


def test_a_bomb_is_not_unpacked() -> None:
    image = Image.new("1", (12001, 10000))
    with pytest.raises(ValueError, match=r"^has more than 120 million pixels: 12001x10000$"):
        decoded(encoded(image))
    with pytest.raises(ValueError, match=r"^has more than 120 million pixels"):
        decoded(encoded(Image.new("1", (20000, 20000))))
