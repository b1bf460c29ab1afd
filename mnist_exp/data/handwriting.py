"""Finding the digit in a picture, and converting it to MNIST's format.

``Plane`` is (H, W), 0 is dark and 255 light; ``Colours`` is (H, W, 3) in the same range; ``Mask`` is (H, W), bool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Plane = NDArray[np.float32]
Colours = NDArray[np.float32]
Mask = NDArray[np.bool_]
Box = tuple[slice, ...]  # rows and columns

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow converts to grey
NEIGHBOURS = np.ones((3, 3), dtype=bool)
SEARCH_SIZE = 400  # pixels of the longer side, to which a picture is reduced for the search


class SeveralMarks(ValueError):
    """A picture has more than one mark that could be a digit."""


@dataclass(eq=False)
class Mark:
    """Connected ink: its bounding box, its pixels in that box, and how much darker than its surroundings it is."""

    box: Box
    mask: Mask
    strength: float
    edge: float  # number of its pixels at the picture's edge, divided by its length

    @property
    def length(self) -> float:
        return math.hypot(*self.mask.shape)

    def encloses(self, other: Mark) -> bool:
        return all(a.start < b.start and b.stop < a.stop for a, b in zip(self.box, other.box, strict=True))

    @cached_property
    def weight(self) -> float:
        """A score for being the digit: higher for long, dark and narrow marks that are not at the picture's edge.

        Marks at the edge are usually part of the table, a shadow of a hand, or the next word.
        """
        widest = 2 * float(ndimage.distance_transform_edt(np.pad(self.mask, 1)).max())
        return self.length * self.strength * max(0.0, 1 - widest / self.length) ** 2 * (1 - self.edge)


@dataclass(frozen=True, eq=False)
class Detection:
    """The contrast (H, W) with the surroundings, the digit, the other marks, and whether the marks are dark."""

    contrast: Plane
    digit: Mark
    others: list[Mark]
    frames: list[Mark]  # marks at the picture's edge that enclose other marks
    dark: bool


def like_mnist(colours: Colours, box: int = 20) -> NDArray[np.uint8]:
    """A digit (28, 28), ink bright on black, from a picture of one in any two colours, scaled and centred by ``framed``.

    Raises:
        SeveralMarks: two marks or more could be the digit.
        ValueError: nothing stands out from its surroundings.
    """
    if min(colours.shape[:2]) < 2:
        raise ValueError("shows no digit: smaller than 2x2 pixels")
    if max(np.ptp(colours[..., channel]) for channel in range(3)) < 3:
        raise ValueError("shows no digit: it is of one colour")
    found, scale = _search(colours)  # in the whole picture, then in a sheet of paper, then around the digit
    if found is not None and is_sheet(found.digit):
        colours = only_sheet(colours, found.digit, scale)
        found, scale = _search(colours)
    if found is None:
        raise ValueError("shows no digit: nothing stands out from its surroundings")
    if found.others:
        raise SeveralMarks(f"shows {1 + len(found.others)} marks where one digit is expected; cut out one of them")
    if scale > 1 or found.digit.length < 0.5 * math.hypot(*found.contrast.shape):
        closer, _ = _search(_cut(colours, found.digit.box, scale, 0.5), (found.dark,))
        if closer is not None and closer.digit.length > 0.2 * math.hypot(*closer.contrast.shape):
            found = closer
    return framed(ink_of(found), box)


def _search(colours: Colours, kinds: tuple[bool, ...] = (True, False)) -> tuple[Detection | None, int]:
    """The digit in a picture, dark or light, and the factor by which the picture was reduced for the search."""
    scale = math.ceil(max(colours.shape[:2]) / SEARCH_SIZE)
    grey = without_noise(strongest_mixture(reduced(colours, scale)))
    detections = filter(None, (find_digit(grey, dark) for dark in kinds))
    candidates = sorted(detections, key=lambda found: (is_sheet(found.digit), found.digit.weight))
    alike = len(candidates) == 2 and candidates[0].digit.weight > 0.4 * candidates[1].digit.weight
    if alike and any(frame.encloses(candidates[1].digit) for frame in candidates[0].frames):
        candidates.reverse()  # the area inside the frame is paper
    return candidates[-1] if candidates else None, scale


def _cut(colours: Colours, box: Box, scale: int, margin: float) -> Colours:
    """A part of a picture: ``box`` is in pixels of the reduced picture; ``margin`` is a fraction of its longer side."""
    more = round(margin * max(part.stop - part.start for part in box) * scale)
    rows, columns = (slice(max(0, part.start * scale - more), part.stop * scale + more) for part in box)
    return colours[rows, columns]


def only_sheet(colours: Colours, sheet: Mark, scale: int) -> Colours:
    """The part of a picture inside a sheet of paper; pixels outside the sheet get the paper's colour."""
    whole = ndimage.binary_erosion(filled(sheet.mask), NEIGHBOURS, iterations=max(1, round(0.015 * sheet.length)))
    part = _cut(colours, sheet.box, scale, 0)
    inside = np.kron(whole, np.ones((scale, scale), dtype=bool))[: part.shape[0], : part.shape[1]]
    paper = np.kron(sheet.mask & whole, np.ones((scale, scale), dtype=bool))[: part.shape[0], : part.shape[1]]
    return np.where(inside[..., None], part, np.median(part[paper], axis=0))


def filled(mask: Mask) -> Mask:
    """A mask with its holes filled."""
    outside, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    return np.asarray(outside[1:-1, 1:-1] != outside[0, 0])


def reduced(colours: Colours, factor: int) -> Colours:
    """Means over squares of ``factor`` x ``factor`` pixels; incomplete squares at the right and bottom are dropped."""
    if factor == 1:
        return colours
    height, width = (length // factor for length in colours.shape[:2])
    squares = colours[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.asarray(squares.mean(axis=(1, 3)), dtype=np.float32)


def strongest_mixture(colours: Colours) -> Plane:
    """The mixture of red, green and blue with the most local contrast; brightness unless another one has twice its variance."""
    grey = colours @ LUMINANCE
    if max(np.abs(colours[..., 0] - colours[..., other]).max() for other in (1, 2)) < 3:
        return grey
    size = max(3, min(grey.shape) // 3)
    detail = (colours - ndimage.uniform_filter(colours, (size, size, 1))).reshape(-1, 3).astype(np.float64)
    spread = detail.T @ detail / len(detail)
    mixture = np.linalg.eigh(spread)[1][:, -1]
    mixture *= (np.sign(mixture.sum()) or 1) / np.abs(mixture).sum()
    if mixture @ spread @ mixture < 2 * (LUMINANCE @ spread @ LUMINANCE):
        return grey
    return np.asarray(colours @ mixture + 255 * np.abs(mixture[mixture < 0]).sum(), dtype=np.float32)


def find_digit(grey: Plane, dark: bool) -> Detection | None:
    """The most likely digit with all its pieces, and the marks that could be another digit; None if there is no mark."""
    plane = grey if dark else 255 - grey
    slope = slope_of(plane)  # uneven light: without this the darkest edge would be found as a mark
    noise = noise_of(plane - slope)
    ground = np.maximum(ground_of(plane - slope) + slope, 1)
    # Relative to the light, because that may be uneven.
    contrast = np.clip((ground - plane) / np.maximum(ground, np.float32(24)), 0, 1).astype(np.float32)
    mask = ink_mask(contrast, noise / float(np.median(ground)))
    every = connected(without_ruled_lines(mask), ground - plane)
    marks = without_frames(every)
    if not marks:
        return None
    digit, rest = joined(marks[0], marks[1:], mask.shape)
    others = [m for m in rest if m.length > 0.4 * digit.length and m.strength > 0.5 * digit.strength and m.edge < 0.4]
    frames = [mark for mark in every if mark.edge and mark not in marks]
    return Detection(contrast, digit, others, frames, dark)


def without_noise(plane: Plane) -> Plane:
    """Remove isolated wrong pixels, then blur in proportion to the noise."""
    if max(plane.shape) < 100 or min(plane.shape) < 3:
        return plane
    plane = without_wrong_pixels(plane)
    span = float(np.ptp(np.percentile(plane, [0.5, 99.5])))
    blur = min(10 * noise_of(plane) / max(span, 1), 3) * max(plane.shape) / 300
    return ndimage.gaussian_filter(plane, blur) if blur > 0.2 else plane


def without_wrong_pixels(plane: Plane) -> Plane:
    """A 3x3 median filter if more than one pixel in 200 is salt-and-pepper noise."""
    inner, around = plane[1:-1, 1:-1], (plane[:-2, 1:-1], plane[2:, 1:-1], plane[1:-1, :-2], plane[1:-1, 2:])
    margin = 0.2 * np.ptp(plane)
    alone = (inner > np.maximum.reduce(around) + margin) | (inner < np.minimum.reduce(around) - margin)
    return ndimage.median_filter(plane, 3) if alone.mean() > 1 / 200 else plane


def noise_of(plane: Plane) -> float:
    """A robust estimate of the standard deviation of the noise, from differences between close pixels."""
    step = max(1, min(plane.shape) // 50)
    return 1.4826 * float(np.median(np.abs(plane[:, step:] - plane[:, :-step]))) / math.sqrt(2)


def ground_of(plane: Plane) -> Plane:
    """The background: dark marks are replaced by the brightness around them.

    Areas wider than a stroke stay, such as shadows and tables. Small light specks are removed first.
    """
    stroke, speck = (max(1, round(share * sum(plane.shape))) for share in (0.15, 0.03))
    return ndimage.grey_closing(ndimage.grey_opening(plane, (speck, speck)), (stroke, stroke))


def slope_of(plane: Plane) -> Plane:
    """The linear change of brightness across a picture (H, W), from medians of differences."""
    slopes = []
    for turned in (plane, plane.T):
        part = max(1, len(turned) // 4)
        change = float(np.median(turned[part::3, ::3] - turned[:-part:3, ::3]))
        slopes.append(np.arange(len(turned), dtype=np.float32) * np.float32(change / part))
    return np.asarray(np.add.outer(*slopes), dtype=np.float32)


def ink_mask(contrast: Plane, noise: float) -> Mask:
    """Pixels of high contrast, and pixels of lower contrast connected with them (hysteresis threshold)."""
    floor = float(np.percentile(contrast, 25)) + max(0.02, 5 * noise)
    strong = max(floor, otsu(contrast[contrast > floor]))
    weak = max(floor, 0.6 * strong)
    labels, count = ndimage.label(contrast > weak, NEIGHBOURS)
    kept = np.zeros(count + 1, dtype=bool)
    kept[labels[contrast > strong]] = True
    return kept[labels] & (labels > 0)


def otsu(values: NDArray[np.float32]) -> float:
    """The threshold that divides values into two classes of the least variance (Otsu 1979); 0 if all are equal."""
    if not len(values) or np.ptp(values) < 1e-3:
        return 0.0
    counts, edges = np.histogram(values, 128)
    below, sums = np.cumsum(counts).astype(float), np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    above = below[-1] - below[:-1]
    between = below[:-1] * above * (sums[:-1] / below[:-1] - (sums[-1] - sums[:-1]) / above) ** 2
    return float(edges[1 + int(between.argmax())])


def without_ruled_lines(mask: Mask) -> Mask:
    """Remove thin lines from edge to edge, as on ruled paper; strokes that cross them stay. Changes ``mask``."""
    for turned in (mask, mask.T):
        height, width = turned.shape
        lines = opened(turned, (1, max(2, round(0.9 * width))))
        rows = np.nonzero(lines.any(axis=1))[0]
        runs = np.split(rows, np.nonzero(np.diff(rows) > 1)[0] + 1)
        thick = max(map(len, runs))
        is_frame = len(runs) == 2 and lines[[0, -1]].any(axis=1).all()
        if 0 < thick < 0.06 * height and not is_frame:
            band = ndimage.binary_dilation(lines, np.ones((3, 1), dtype=bool)) & turned
            turned &= ~band | opened(turned, (2 * thick + 3, 1))
    return mask


def opened(mask: Mask, size: tuple[int, int]) -> Mask:
    """Morphological opening of a mask with a rectangle of ``size`` (rows, columns)."""
    return ndimage.grey_opening(mask.astype(np.uint8), size, mode="constant").astype(bool)


def connected(mask: Mask, darker: Plane) -> list[Mark]:
    """The marks, the most likely digit first."""
    labels, _ = ndimage.label(mask, NEIGHBOURS)
    inner = np.pad(np.ones([length - 2 for length in mask.shape], dtype=bool), 1)
    boxes = list(enumerate(ndimage.find_objects(labels), 1))
    boxes.sort(key=lambda item: -math.hypot(*(part.stop - part.start for part in item[1])))
    marks = []
    for label, box in boxes[:15]:
        own = labels[box] == label
        strength = float(darker[box][own].mean())
        if strength < 1.5 or math.hypot(*own.shape) < 4:  # a grey level is rounding, a few pixels have no shape
            continue
        edge = inner[box][own].size - inner[box][own].sum()
        marks.append(Mark(box, own, strength, min(0.7, edge / math.hypot(*own.shape))))
    return sorted(marks, key=lambda mark: -mark.weight)


def without_frames(marks: list[Mark]) -> list[Mark]:
    """Remove marks that enclose another mark of similar darkness: they are frames."""

    def is_frame(mark: Mark, other: Mark) -> bool:
        alike = other.length > 0.2 * mark.length and other.strength > 0.5 * mark.strength
        middle = [(part.start + part.stop) // 2 - start.start for part, start in zip(other.box, mark.box, strict=True)]
        return alike and mark.encloses(other) and bool(filled(mark.mask)[tuple(middle)])

    return [mark for mark in marks if not any(is_frame(mark, other) for other in marks)]


def is_sheet(mark: Mark) -> bool:
    """Whether a mark is a rectangle, at any angle, with holes in it: a sheet of paper with writing."""
    whole = filled(mark.mask)
    points = np.argwhere(whole & ~ndimage.binary_erosion(whole)).astype(float)
    area = whole.sum()
    if not 0.5 * area < mark.mask.sum() < 0.995 * area:
        return False
    angles = np.deg2rad(np.arange(0, 90, 3))
    across = points @ np.array([np.cos(angles), np.sin(angles)])
    along = points @ np.array([-np.sin(angles), np.cos(angles)])
    return bool(area > 0.87 * ((np.ptp(across, axis=0) + 1) * (np.ptp(along, axis=0) + 1)).min())


def joined(main: Mark, rest: list[Mark], shape: tuple[int, ...]) -> tuple[Mark, list[Mark]]:
    """The main mark with its separate pieces, such as the bar of a 5; and the other marks."""
    if not rest:
        return main, []
    mask = np.zeros(shape, dtype=bool)
    mask[main.box] = main.mask
    distance = ndimage.distance_transform_edt(~mask)
    others = []
    for mark in rest:
        gap = distance[mark.box][mark.mask].min() / main.length
        tall = mark.mask.shape[0] > 0.6 * main.mask.shape[0]
        beside = min(mark.box[1].stop, main.box[1].stop) <= max(mark.box[1].start, main.box[1].start)
        near = gap < (0.05 if tall and beside else 0.2) and mark.length > 0.06 * main.length
        if near and mark.strength > 0.5 * main.strength and (main.edge or not mark.edge):
            mask[mark.box] |= mark.mask
        else:
            others.append(mark)
    box = ndimage.find_objects(mask.astype(int))[0]
    return Mark(box, mask[box], main.strength, main.edge), others


def ink_of(found: Detection) -> Plane:
    """The digit (H, W) without its surroundings, from 0 for paper to 1 for ink."""
    contrast, digit = found.contrast, found.digit
    mask = np.zeros(contrast.shape, dtype=bool)
    mask[digit.box] = digit.mask
    near = ndimage.binary_dilation(mask, NEIGHBOURS, iterations=max(1, round(0.03 * digit.length)))
    paper = (float(np.median(contrast[~near])) if not near.all() else 0.0) + 2 * noise_of(contrast)
    full = float(np.percentile(contrast[mask], 98))
    ink = np.where(near, np.clip((contrast - paper) / max(full - paper, 1e-6), 0, 1), 0).astype(np.float32)
    return ink[ndimage.find_objects((ink > 0.1).astype(int))[0]]


def framed(ink: Plane, box: int) -> NDArray[np.uint8]:
    """A digit (28, 28) scaled to fit a square of ``box`` pixels, with its centre of mass in the middle.

    MNIST was made like this with a box of 20 (LeCun et al. 1998, section III.A).
    """
    scale = box / max(ink.shape)
    height, width = (max(1, round(length * scale)) for length in ink.shape)
    way = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    small = np.asarray(Image.fromarray(ink).resize((width, height), way))
    small = np.clip(small / small.max(), 0, 1)
    # With the first pixel spanning [0, 1], the centre of mass of every MNIST digit is in [14, 15).
    y = float((small.sum(axis=1) * (np.arange(height) + 0.5)).sum() / small.sum())
    x = float((small.sum(axis=0) * (np.arange(width) + 0.5)).sum() / small.sum())
    top = min(max(math.ceil(14 - y), 0), 28 - height)
    left = min(max(math.ceil(14 - x), 0), 28 - width)
    digit = np.zeros((28, 28), dtype=np.uint8)
    digit[top : top + height, left : left + width] = np.round(255 * small)
    return digit
