"""Kinds of pictures of one digit, easy to read for a person, made from stored digits; each is deterministic.

python tests/pictures_of_digits.py RUN MNIST    # how many of 100 a network classifies correctly; MNIST: folder of the IDX files
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from PIL.JpegImagePlugin import JpegImageFile
from scipy import ndimage

from mnist_exp.data.photographs import decoded

Ink = NDArray[np.float64]  # (H, W), 0 is paper and 1 is ink
Random = np.random.Generator


def smooth(digit: NDArray[np.uint8], side: int = 280) -> Ink:
    """A stored digit (28, 28), enlarged to ``side`` pixels with smooth strokes."""
    return np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)) / 255.0


def page(ink: Ink, height: int, width: int, top: int, left: int) -> Ink:
    """A larger sheet with ``ink`` on it."""
    sheet = np.zeros((height, width))
    sheet[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return sheet


def grey(values: Ink) -> Image.Image:
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


def colours(ink: Ink, pen: tuple[int, int, int], paper: tuple[int, int, int]) -> Image.Image:
    mixed = ink[..., None] * np.array(pen) + (1 - ink[..., None]) * np.array(paper)
    return Image.fromarray(np.round(np.clip(mixed, 0, 255)).astype(np.uint8))


def stored_as(image: Image.Image, name: str, **options: object) -> Image.Image:
    """The picture after writing it to a file of that format and reading it."""
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(buffer)


def read_back(image: Image.Image) -> NDArray[np.float32]:
    """The colours read from the JPEG file of the picture, or from a PNG file of it."""
    if isinstance(image, JpegImageFile):
        image.fp.seek(0)  # the file has the orientation
        return decoded(image.fp.read())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return decoded(buffer.getvalue())


def light(side: int, random: Random, low: float, high: float) -> Ink:
    """Illumination that changes from ``low`` to ``high`` in a random direction."""
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j]
    angle = random.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)
    return low + (high - low) * (slope - slope.min()) / np.ptp(slope)


def shadow(side: int, random: Random, softness: float) -> Ink:
    """0 in light, 1 in the shadow of a straight edge through the middle part of the picture."""
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j]
    angle = random.uniform(0, 2 * np.pi)
    distance = np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5) - random.uniform(-0.2, 0.2)
    return np.clip(distance / softness + 0.5, 0, 1)


def noisy(values: NDArray[np.float64], random: Random, deviation: float) -> NDArray[np.float64]:
    return values + random.normal(0, deviation, values.shape)


def thicker(ink: Ink, pixels: int) -> Ink:
    return ndimage.grey_dilation(ink, footprint=_disc(pixels))


def thinner(ink: Ink) -> Ink:
    """The middle line of the strokes, about three pixels wide in 280, as of a ballpoint pen (Zhang and Suen 1984)."""
    on = np.pad(np.asarray(Image.fromarray(ink.astype(np.float32)).resize((84, 84))) > 0.45, 1)
    changed = True
    while changed:
        changed = False
        for first, second in (((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))):
            around = [
                np.roll(on, step, (0, 1))
                for step in ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
            ]
            count = sum(n.astype(int) for n in around)
            turns = sum((~around[i] & around[(i + 1) % 8]).astype(int) for i in range(8))
            gone = on & (count >= 2) & (count <= 6) & (turns == 1)
            for three in (first, second):
                gone &= ~(around[three[0]] & around[three[1]] & around[three[2]])
            changed |= bool(gone.any())
            on = on & ~gone
    line = Image.fromarray((255 * on[1:-1]).astype(np.uint8)).resize(ink.shape[::-1], Image.Resampling.BICUBIC)
    return np.clip(np.asarray(line) / 255.0 * 1.6, 0, 1)


def _disc(radius: int) -> NDArray[np.bool_]:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius


def on_table(ink: Ink, random: Random, sheet: float, table: float, pen: float) -> Image.Image:
    """A slightly rotated sheet at a random position on a table with wood grain."""
    values = np.full((480, 640), table) + ndimage.gaussian_filter1d(random.normal(0, 25, (480, 640)), 12, axis=1)
    angle = random.uniform(-12, 12)
    layer = grey(sheet + (pen - sheet) * ink).rotate(angle, Image.Resampling.BILINEAR, expand=True)
    mask = Image.new("L", ink.shape[::-1], 255).rotate(angle, expand=True).filter(ImageFilter.MinFilter(3))
    picture = grey(values)
    picture.paste(layer, (random.integers(20, 260), random.integers(10, 110)), mask)
    return picture


def framed(ink: Ink, width: int, inset: int) -> Image.Image:
    picture = grey(255 - 255 * ink)
    side = ink.shape[0] - 1 - inset
    ImageDraw.Draw(picture).rectangle((inset, inset, side, side), outline=0, width=width)
    return picture


def lined(ink: Ink, step: int, shade: int, *, squared: bool) -> Image.Image:
    """Ruled or squared paper, under the ink."""
    paper = np.full(ink.shape, 250.0)
    for start in range(step // 2, ink.shape[0], step):
        paper[start : start + 2] = shade
        if squared:
            paper[:, start : start + 2] = shade
    return grey(paper * (1 - 0.85 * ink))


def specks(ink: Ink, random: Random, count: int, largest: int) -> Ink:
    """Dust: small dark dots at random positions."""
    found = ink.copy()
    for _ in range(count):
        radius = int(random.integers(1, largest + 1))
        y, x = (int(random.integers(radius, side - radius)) for side in ink.shape)
        part = found[y - radius : y + radius + 1, x - radius : x + radius + 1]
        np.maximum(part, 0.9 * _disc(radius), out=part)
    return found


def clear(ink: Ink, colour: tuple[int, int, int]) -> Image.Image:
    """Ink on a transparent background, whose hidden colour must have no effect."""
    pixels = np.zeros((*ink.shape, 4))
    pixels[..., :3] = colour
    pixels[..., 3] = 255 * ink
    return Image.fromarray(np.round(np.clip(pixels, 0, 255)).astype(np.uint8))


def cropped(ink: Ink) -> Ink:
    """Cut so that the digit touches all four edges."""
    rows, columns = np.nonzero(ink.max(axis=1) > 0.3)[0], np.nonzero(ink.max(axis=0) > 0.3)[0]
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def turned(ink: Ink) -> Image.Image:
    """A photograph from a camera rotated by 90 degrees, as JPEG with the orientation in its EXIF data."""
    image = grey(250 - 220 * page(ink, 300, 400, 10, 60)).rotate(90, expand=True)
    exif = image.getexif()
    exif[0x0112] = 6
    return stored_as(image, "JPEG", exif=exif)


def sixteen(ink: Ink) -> Image.Image:
    return Image.fromarray(np.round(60000 - 50000 * ink).astype(np.uint16))


def phone(ink: Ink, random: Random, height: int, width: int, share: float, softness: float = 0.2) -> Image.Image:
    """A photograph of a page: light from one side, a soft shadow, noise; the digit takes ``share`` of the height."""
    size = int(height * share)
    drawn = np.asarray(Image.fromarray((ink * 255).astype(np.uint8)).resize((size, size))) / 255.0
    sheet = page(drawn, height, width, (height - size) // 2, (width - size) // 3)
    lit = np.asarray(Image.fromarray((light(200, random, 120, 220) * (1 - 0.4 * shadow(200, random, softness)))
                                     .astype(np.float32)).resize((width, height)))  # fmt: skip
    return stored_as(grey(noisy(lit * (1 - 0.75 * sheet), random, 6)).convert("RGB"), "JPEG", quality=85)


def vignette(ink: Ink) -> Image.Image:
    y, x = np.mgrid[-1 : 1 : ink.shape[0] * 1j, -1 : 1 : ink.shape[1] * 1j]
    return grey((240 - 95 * (x * x + y * y)) * (1 - 0.8 * ink))


KINDS: dict[str, Callable[[NDArray[np.uint8], Random], Image.Image]] = {
    "black on white": lambda d, r: grey(255 - 255 * smooth(d)),
    "white on black": lambda d, r: grey(255 * smooth(d)),
    "as stored": lambda d, r: Image.fromarray(d),
    "as stored, inverted": lambda d, r: Image.fromarray(255 - d),
    "as stored, in 32x32": lambda d, r: Image.fromarray(np.pad(d, 2)),
    "light from one side": lambda d, r: grey(light(280, r, 100, 245) * (1 - 0.8 * smooth(d))),
    "light from one side, chalk": lambda d, r: grey(light(280, r, 20, 110) + 110 * smooth(d)),
    "soft shadow": lambda d, r: grey((235 - 130 * shadow(280, r, 0.25)) * (1 - 0.8 * smooth(d))),
    "hard shadow": lambda d, r: grey((235 - 120 * shadow(280, r, 0.012)) * (1 - 0.8 * smooth(d))),
    "vignette": lambda d, r: vignette(smooth(d)),
    "sheet on a dark table": lambda d, r: on_table(smooth(d), r, 235, 60, 30),
    "sheet on a light table": lambda d, r: on_table(smooth(d), r, 245, 165, 40),
    "dark card on a light table": lambda d, r: on_table(smooth(d), r, 45, 190, 225),
    "small sheet on a large table": lambda d, r: on_table(smooth(d, 160), r, 235, 80, 30),
    "blackboard": lambda d, r: colours(noisy(smooth(d) * r.uniform(0.75, 1, (280, 280)), r, 0.03), (235, 235, 220), (35, 70, 55)),
    "dark mode": lambda d, r: colours(smooth(d), (225, 228, 232), (24, 26, 30)),
    "pencil, pale": lambda d, r: grey(noisy(235 - 35 * smooth(d), r, 3)),
    "pencil, very pale": lambda d, r: grey(noisy(228 - 18 * smooth(d), r, 1.5)),
    "noise": lambda d, r: grey(noisy(210 - 150 * smooth(d), r, 25)),
    "much noise": lambda d, r: grey(noisy(190 - 130 * smooth(d), r, 45)),
    "salt and pepper": lambda d, r: grey(np.where(r.random((280, 280)) < 0.05, r.choice([0.0, 255.0], (280, 280)), 230 - 190 * smooth(d))),
    "poor JPEG": lambda d, r: stored_as(grey(240 - 200 * smooth(d)), "JPEG", quality=8),
    "dust": lambda d, r: grey(245 - 225 * specks(page(smooth(d), 360, 360, 40, 40), r, 25, 4)),
    "large specks": lambda d, r: grey(245 - 225 * specks(page(smooth(d), 400, 400, 60, 60), r, 6, 9)),
    "thin frame": lambda d, r: framed(page(smooth(d), 320, 320, 20, 20), 3, 8),
    "thick frame at the edge": lambda d, r: framed(page(smooth(d), 320, 320, 20, 20), 12, 0),
    "ruled paper": lambda d, r: lined(page(smooth(d), 340, 340, 30, 30), 45, 175, squared=False),
    "squared paper": lambda d, r: lined(page(smooth(d), 340, 340, 30, 30), 28, 195, squared=True),
    "dark ruled lines": lambda d, r: lined(page(smooth(d), 340, 340, 30, 30), 120, 90, squared=False),
    "blue on white": lambda d, r: colours(smooth(d), (30, 60, 190), (250, 250, 248)),
    "red on yellow": lambda d, r: colours(smooth(d), (230, 60, 40), (250, 225, 60)),
    "red on green, equally bright": lambda d, r: colours(smooth(d), (208, 72, 72), (50, 152, 50)),
    "yellow on white": lambda d, r: colours(smooth(d), (250, 215, 20), (255, 255, 255)),
    "pink on blue": lambda d, r: colours(smooth(d), (250, 150, 190), (40, 60, 140)),
    "black on clear": lambda d, r: clear(smooth(d), (0, 0, 0)),
    "white on clear": lambda d, r: clear(smooth(d), (255, 255, 255)),
    "orange on clear": lambda d, r: clear(smooth(d), (240, 140, 20)),
    "16 bits": lambda d, r: sixteen(smooth(d)),
    "1 bit": lambda d, r: grey(255 - 255 * smooth(d)).convert("1", dither=Image.Dither.NONE),
    "palette": lambda d, r: colours(smooth(d), (20, 20, 90), (240, 230, 200)).quantize(16),
    "CMYK": lambda d, r: stored_as(grey(240 - 220 * smooth(d)).convert("CMYK"), "JPEG", quality=90),
    "touching the edges": lambda d, r: grey(255 - 255 * cropped(smooth(d))),
    "touching one edge": lambda d, r: grey(250 - 230 * np.pad(cropped(smooth(d)), ((0, 60), (50, 70)))),
    "small on a large page": lambda d, r: grey(noisy(240 - 210 * page(smooth(d, 64), 1000, 800, int(r.integers(50, 850)), int(r.integers(50, 680))), r, 2)),
    "very small on a large page": lambda d, r: grey(noisy(240 - 210 * page(smooth(d, 56), 2000, 1500, int(r.integers(50, 1850)), int(r.integers(50, 1350))), r, 2)),
    "thick strokes": lambda d, r: grey(255 - 255 * thicker(smooth(d), 7)),
    "thin strokes": lambda d, r: grey(255 - 240 * thinner(smooth(d))),
    "turned by EXIF": lambda d, r: turned(smooth(d)),
    "phone, 1 megapixel": lambda d, r: phone(smooth(d), r, 960, 1280, 0.4),
}  # fmt: skip

# Slow to make, so tests use only a few of each.
LARGE_KINDS: dict[str, Callable[[NDArray[np.uint8], Random], Image.Image]] = {
    "phone, 12 megapixels": lambda d, r: phone(smooth(d), r, 3000, 4000, 0.3),
    "phone, 108 megapixels": lambda d, r: stored_as(phone(smooth(d), r, 3000, 4000, 0.3).resize((12000, 9000)), "JPEG"),
}


def two(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> Image.Image:
    """Two digits side by side."""
    return grey(255 - 255 * np.concatenate([smooth(left), np.pad(smooth(right), ((20, 0), (0, 0)))[:280]], axis=1))


def make(kind: str, digit: NDArray[np.uint8], number: int) -> Image.Image:
    """Picture ``number`` of a kind, always the same."""
    return {**KINDS, **LARGE_KINDS}[kind](digit, np.random.default_rng([number, len(kind)]))


def measure(run: Path, mnist: Path, count: int = 100) -> None:
    """Print for each kind how many test digits a network classifies correctly, and how many get no answer."""
    from mnist_exp.data.handwriting import SeveralMarks
    from mnist_exp.data.idx import idx_folder
    from mnist_exp.reader import Classifier

    network = Classifier(run)
    test = idx_folder(root=str(mnist), download=None, mean=0.0, std=1.0).test
    digits = test.images[:, 0].mul(255).round().byte().numpy()
    numbers = np.random.RandomState(0).permutation(len(digits))[:count]
    for kind in (*KINDS, "two digits"):
        right = none = 0
        for number, following in zip(numbers, np.roll(numbers, -1), strict=True):
            digit = digits[number]
            picture = two(digit, digits[following]) if kind == "two digits" else make(kind, digit, int(number))
            try:
                seen, _ = network.images.as_training_image(read_back(picture))
            except SeveralMarks:
                none += 1
            else:
                right += int(network.probabilities(seen[None])[0].argmax() == test.labels[number])
        print(f"{kind:30} {right:4} right, {none} without an answer, of {count}", flush=True)


if __name__ == "__main__":
    measure(Path(sys.argv[1]), Path(sys.argv[2]))
