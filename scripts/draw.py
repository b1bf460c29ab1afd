"""Draw a network in the style of LeCun et al. (1998), figure 2: maps as planes, labelled with shapes and parameters.

python scripts/draw.py model=lenet5 --output lenet5.png
python scripts/draw.py model=mlp 'model.hidden=[64,64]' --output mlp.png
python scripts/draw.py --all docs/pictures          all networks in the documentation

Overrides are those of mnist-train. Pictures are PNG.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from PIL import Image, ImageDraw, ImageFont
from torch import nn

try:
    import matplotlib
    import visualtorch
except ImportError as error:
    sys.exit(f"draw.py: {error}; pip install 'mnist-exp[draw]'")

from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.components import build_model
from mnist_exp.compose import CONF, resolve
from mnist_exp.config import check
from mnist_exp.models import count_parameters, layer_table
from mnist_exp.models.table import LayerRow

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # part of matplotlib
PICTURES = {
    "lenet5": ["model=lenet5"],
    "lenet5_1998": ["model=lenet5_1998"],
    "lenet5_resized": ["model=lenet5", "data.image_size=32", "model.padding=0"],
    "lenet5_valid": ["model=lenet5", "model.padding=0"],
    "lenet5_tanh_average": [
        "model=lenet5",
        "model.activation=tanh",
        "model.pooling=average",
        "model.softmax_output=true",
    ],
    "lenet5_batch_norm_dropout": [
        "model=lenet5",
        "regularization.batch_norm=true",
        "regularization.dropout=[0,0.5,0.5]",
    ],
    "lenet5_wide": ["model=lenet5", "model.channels=[10,32]", "regularization.batch_norm=true"],
    "mlp": ["model=mlp"],
    "mlp_90_70_50": ["model=mlp", "model.hidden=[90,70,50]"],
    "mlp_60_20": ["model=mlp", "model.hidden=[60,20]", "data.image_size=32"],
    "mlp_64_32": ["model=mlp", "model.hidden=[64,32]", "data.image_size=32"],
    "mlp_64_64_64_32_16": ["model=mlp", "model.hidden=[64,64,64,32,16]"],
}
DRAWN = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.Linear)
HIDDEN = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Dropout, nn.BatchNorm1d, nn.BatchNorm2d, nn.Softmax)


@exit_status("draw.py")
@printing()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="as for mnist-train: model=mlp 'model.hidden=[64,64]'")
    parser.add_argument("--output", type=Path, default=Path("network.png"), help="default: network.png")
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="draw all networks of the documentation")
    options = parser.parse_args(arguments)
    jobs = {options.output: options.overrides}
    if options.all:
        options.all.mkdir(parents=True, exist_ok=True)
        jobs = {options.all / f"{name}.png": overrides for name, overrides in PICTURES.items()}
    for path, overrides in jobs.items():
        draw(overrides).quantize(64).save(path, optimize=True)
        print(path)


def draw(overrides: Sequence[str]) -> Image.Image:
    """A picture of the network that these overrides describe."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = check(resolve(compose("train", overrides=["name=drawing", *overrides])))
    model, side = build_model(config), config.data.image_size
    rows = layer_table(model, side)
    font = ImageFont.truetype(str(FONT), 15)
    drawing = visualtorch.render(
        model.eval(),
        (1, 1, side, side),
        style="lenet",
        type_ignore=[kind for kind in {type(module) for module in model.modules()} if hides(kind)],
        scale_xy=4,
        scale_z=1,
        min_xy=14,
        max_xy=640,
        max_channels=32,
        offset_z=7,
        spacing=46,
        low_dim_orientation="y",
        show_dimension=False,
        font=font,
        padding=24,
    )
    return labelled(drawing.convert("RGB"), f"{model.title}: {count_parameters(model):,} parameters", rows, side)


def hides(kind: type[nn.Module]) -> bool:
    """Whether a layer is not drawn, because it leaves the shape unchanged."""
    return issubclass(kind, HIDDEN) or kind.__name__ in {"ScaledTanh", "Flatten", "ConstantPad2d"}


def labelled(drawing: Image.Image, title: str, rows: Sequence[LayerRow], side: int) -> Image.Image:
    """The drawing with its title above, and below it each layer's name, shape and parameters."""
    large, small = ImageFont.truetype(str(FONT), 20), ImageFont.truetype(str(FONT), 14)
    cells = [("image", f"1x{side}x{side}", "")]
    cells += [
        (
            row.name.rpartition(".")[2],
            "x".join(map(str, row.output_shape)),
            f"{row.parameters:,}" if row.parameters else "",
        )
        for row in rows
        if row.kind not in {"Flatten", "ConstantPad2d"}
    ]
    room = max(drawing.width, 840) - 20
    columns = min(len(cells), room // 105)
    width = room // columns
    lines = -(-len(cells) // columns)
    page = Image.new("RGB", (room + 20, drawing.height + 50 + 66 * lines), "white")
    page.paste(drawing, ((page.width - drawing.width) // 2, 40))
    pen = ImageDraw.Draw(page)
    pen.text((12, 10), title, "black", large)
    for index, cell in enumerate(cells):
        left, top = 12 + width * (index % columns), drawing.height + 46 + 66 * (index // columns)
        for line, (text, colour) in enumerate(zip(cell, ("black", "#0072B2", "#A34700"), strict=True)):
            pen.text((left, top + 19 * line), text, colour, small)
    return page


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
