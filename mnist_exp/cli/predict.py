"""Classify pictures of digits with a trained network.

    mnist-predict outputs/2026-11-21/lenet5-a1b2c3 seven.png photo.jpg
    mnist-predict outputs/2026-11-21/lenet5-a1b2c3 scans/ --json

Pictures are scans, drawings or photographs of any size, in any two colours, with one digit each. The digit is centred and
scaled as in the network's training images.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_exp.cli.arguments import ArgumentParser, add_trust
from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.errors import UsageError, report
from mnist_exp.predict import classify, find_images

SEEN = Path("seen")  # the folder of --show


def main(arguments: Sequence[str] | None = None) -> None:
    """``mnist-predict``: exit status 2 without a network or a picture, or if a picture does not show exactly one digit."""
    parser = ArgumentParser(
        prog="mnist-predict", example="mnist-predict DIR image.png", description="Classify pictures of digits."
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="run directory of the network")
    kinds = "PNG, JPEG, WebP, GIF, BMP or TIFF files, or folders of them"
    parser.add_argument("images", nargs="+", type=Path, metavar="image", help=kinds)
    parser.add_argument("--json", action="store_true", help="print JSON: all probabilities of each picture")
    parser.add_argument(
        "--show", action="store_true", help=f"write the images that the network gets into the folder {SEEN}"
    )
    add_trust(parser)
    options = parser.parse(arguments)
    with exit_status("mnist-predict"):
        folder = SEEN if options.show else None
        results, mistakes = classify(options.directory, find_images(options.images), folder, options.trust)
        with printing():
            if options.json:
                print(json.dumps(results, indent=2))
            else:
                print_results(results)
        for mistake in mistakes:
            report(mistake, "mnist-predict")
        for result in results:
            if result["warning"]:
                report(UsageError(f"{result['image']}: {result['warning']}"), "mnist-predict")
    if mistakes or any(result["digit"] is None for result in results):
        sys.exit(2)


def print_results(results: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each picture: the three most probable digits."""
    for result in results:
        shown = "   ".join(f"{entry['digit']} {entry['probability']:7.2%}" for entry in result["top"])
        saw = f"   saw {result['seen']}" if result["seen"] else ""
        print(f"{result['image']}: {shown or 'no answer'}{saw}")


if __name__ == "__main__":
    main()
