"""Classify pictures of digits with a trained network.

Scans, drawings and photographs of any size, in any two colours, with one digit in each; every picture is centred and
scaled like the network's training data.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.data.files import DataError, describe
from mnist_exp.data.handwriting import SeveralMarks
from mnist_exp.data.photographs import SUFFIXES, read_picture
from mnist_exp.errors import UsageError
from mnist_exp.runs import read_run
from mnist_exp.torch_import import import_torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The given files, and the pictures in the given folders (by suffix, hidden files ignored).

    Raises:
        UsageError: a folder has no picture.
    """
    found: list[Path] = []
    for path in paths:
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not inside:
            raise UsageError(f"{path} holds no picture; expected files that end in {', '.join(SUFFIXES)}")
        found += inside
    return found


def classify(
    directory: Path, images: Sequence[Path], show: Path | None = None, trusted: Collection[str] = ()
) -> tuple[list[dict[str, Any]], list[DataError]]:
    """A result for each picture (its three most likely classes, and all probabilities), and the errors of unreadable ones.

    If a picture shows several marks, ``digit`` is None, ``top`` is empty, and ``warning`` is the reason.

    Args:
        show: a folder for the images as the network gets them; None: do not write them.
        trusted: packages whose code may run, besides this one.

    Raises:
        UsageError, RunDirectoryError: there is no trained network in ``directory``, or ``show`` cannot be written.
    """
    read_run(directory)  # before torch is imported, because a mistake is likely here
    import_torch()
    from mnist_exp.reader import Classifier

    network = Classifier(directory, trusted)
    taken = {path.absolute() for path in images}
    results: list[dict[str, Any]] = []
    errors: list[DataError] = []
    for path in images:
        result: dict[str, Any] = {"image": str(path), "digit": None, "warning": None, "seen": None, "top": []}
        try:
            seen, result["warning"] = network.images.as_training_image(read_picture(path))
        except SeveralMarks as error:
            results.append({**result, "warning": str(error), "probabilities": None})
            continue
        except ValueError as error:
            errors.append(DataError(f"{path}: {error}"))
            continue
        except DataError as error:
            errors.append(error)
            continue
        probabilities = network.probabilities(seen[None])[0]
        order = probabilities.argsort()[::-1][:3]
        result["digit"] = int(order[0])
        result["top"] = [{"digit": int(digit), "probability": float(probabilities[digit])} for digit in order]
        result["probabilities"] = [float(value) for value in probabilities]
        if show is not None:
            result["seen"] = str(write_seen(seen, show, path.stem, taken))
            taken.add(Path(result["seen"]).absolute())
        results.append(result)
    return results, errors


def write_seen(seen: NDArray[np.uint8], folder: Path, stem: str, taken: set[Path]) -> Path:
    """Write an image (S, S) as PNG into a folder, under a name that is not in ``taken``.

    Raises:
        UsageError: the folder cannot be written.
    """
    from PIL import Image

    names = (folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png") for number in count(1))
    file = next(name for name in names if name.absolute() not in taken)
    try:
        folder.mkdir(exist_ok=True)
        Image.fromarray(seen).save(file)
    except OSError as error:
        raise UsageError(f"{file}: cannot be written: {describe(error)}") from error
    return file
