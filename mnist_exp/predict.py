"""Classify pictures of digits with a trained network.

    mnist-predict outputs/2026-11-21/lenet5-a1b2c3 seven.png photo.jpg
    mnist-predict outputs/2026-11-21/lenet5-a1b2c3 scans/ --json

PNG or JPEG, any size, dark on light or light on dark, one digit a picture; each is centred and scaled as MNIST's are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnist_exp.data.files import DataError
from mnist_exp.data.handwriting import SUFFIXES, read_digit
from mnist_exp.mistakes import ArgumentParser, UsageError, report
from mnist_exp.runs import RunDirectoryError


def main(arguments: Sequence[str] | None = None) -> None:
    """``mnist-predict``: exit status 2 where there is no network, no picture, or a picture that is none."""
    parser = ArgumentParser(
        prog="mnist-predict", example="mnist-predict DIR image.png", description="Classify pictures of digits."
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="run directory of the network")
    parser.add_argument("images", nargs="+", type=Path, metavar="image", help="PNG or JPEG files, or folders of them")
    parser.add_argument("--json", action="store_true", help="print JSON: all probabilities of each picture")
    options = parser.parse(arguments)
    try:
        results, mistakes = classify(options.directory, find_images(options.images))
    except (UsageError, RunDirectoryError) as error:
        report(error, "mnist-predict")
        sys.exit(2)
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        for result in results:
            shown = "   ".join(f"{entry['digit']} {entry['probability']:7.2%}" for entry in result["top"])
            print(f"{result['image']}: {shown}")
    for mistake in mistakes:
        report(mistake, "mnist-predict")
    if mistakes:
        sys.exit(2)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files named, and those with a suffix of a picture in the folders named.

    Raises:
        UsageError: a folder without a picture.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UsageError(f"{path} holds no picture; expected files that end in {', '.join(SUFFIXES)}")
        found += inside
    return found


def classify(directory: Path, images: Sequence[Path]) -> tuple[list[dict[str, Any]], list[DataError]]:
    """For each picture that can be read its top three and all probabilities; and what is wrong with the others.

    Raises:
        UsageError, RunDirectoryError: there is no trained network in ``directory``.
    """
    from mnist_exp.trained import Classifier

    network = Classifier(directory)
    digits, readable, mistakes = [], [], []
    for path in images:
        try:
            digits.append(read_digit(path))
            readable.append(path)
        except DataError as error:
            mistakes.append(error)
    if not digits:
        return [], mistakes
    results = []
    for path, probabilities in zip(readable, network.probabilities(np.stack(digits)), strict=True):
        order = probabilities.argsort()[::-1][:3]
        results.append(
            {
                "image": str(path),
                "digit": int(order[0]),
                "top": [{"digit": int(digit), "probability": float(probabilities[digit])} for digit in order],
                "probabilities": [float(value) for value in probabilities],
            }
        )
    return results, mistakes


if __name__ == "__main__":
    main()
