"""Pictures of a network's errors, checked by their pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnist_exp.pictures import RED, SHADES, confusion_matrix, worst_digits

LABELS = np.arange(10).repeat(5)


def logits(*errors: tuple[int, int]) -> NDArray[np.float32]:
    """Sure of the label, but for ``errors``: index and what is predicted."""
    predicted = LABELS.copy()
    for index, wrong in errors:
        predicted[index] = wrong
    return 9 * np.eye(10, dtype=np.float32)[predicted]


def colours(image: Image.Image, box: tuple[int, int, int, int]) -> set[tuple[int, ...]]:
    found = image.crop(box).getcolors(maxcolors=2**16)
    assert found is not None
    return {colour for _, colour in found if isinstance(colour, tuple)}


def test_errors_are_shaded_and_the_diagonal_is_not() -> None:
    image = confusion_matrix(logits((10, 7), (11, 7), (20, 9)), LABELS)
    cell = (image.width - 60) // 10

    def shade(row: int, column: int) -> tuple[int, ...]:
        pixel = image.getpixel((52 + column * cell + 2, 52 + row * cell + 2))
        assert isinstance(pixel, tuple)
        return pixel

    shades = np.array([[shade(row, column) for column in range(10)] for row in range(10)])
    assert tuple(shades[2, 7]) == SHADES[-1]
    assert sum(shades[4, 9]) not in {sum(SHADES[0]), sum(SHADES[-1])}
    shades[2, 7] = shades[4, 9] = SHADES[0]
    assert (shades == SHADES[0]).all()


def test_no_errors() -> None:
    image = confusion_matrix(logits(), LABELS)
    assert SHADES[-1] not in colours(image, (0, 0, *image.size))


def test_errors_are_red_and_what_is_right_is_black() -> None:
    digits = np.zeros((2, 28, 28), dtype=np.uint8)
    image = worst_digits(logits((10, 7)), LABELS, np.array([10, 0]), digits)
    wide = image.width // 8
    wrong, right = colours(image, (0, 0, wide, 30)), colours(image, (wide, 0, 2 * wide, 30))
    assert RED in wrong
    assert RED not in right
    assert all(len(set(colour)) == 1 for colour in right), "shades of grey"
    assert colours(image, (2 * wide, 0, *image.size)) == {(255, 255, 255)}, "two digits, no more"
