"""LeNet-5 as published in 1998: 60,000 trainable parameters.

Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document recognition", Proceedings of
the IEEE 86(11), 1998: section II.B (the network), II.C (the loss), appendix A (squashing function, initial weights).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, Strict, validate_call
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_exp.models.layers import sequential

# Table I of the paper: the maps of S2 that each of the 16 maps of C3 is connected to.
C3_CONNECTIONS: tuple[tuple[int, ...], ...] = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# Figure 3 of the paper, the digits from 0 to 9: 7 pixels wide, 12 high, "#" is +1 and "." is -1.
DIGIT_BITMAPS = """
.#####. ...##.. .#####. ####### .#####. .#####. ..####. ####### .#####. .#####.
....... ..###.. ....... .....## ....... ....... .##.... .....## ##...## ##..###
..###.. .####.. .#####. ....##. ....... ####### ##..... .....## ##...## ##...##
.##.##. ...##.. ##...## ...##.. .##..## ##..... ##..... ....##. ##...## ##...##
##...## ...##.. #....## ..####. .##..## ##..... ######. ...##.. .#####. ##..###
##...## ...##.. ....##. .....## ###..## .####.. ###..## ...##.. ##...## .######
##...## ...##.. ..###.. .....## ##...## ..####. ##...## ..##... ##...## .....##
##...## ...##.. .##.... .....## ##...## .....## ##...## ..##... ##...## .....##
.##.##. ...##.. ##..... ##...## ##..### ##...## ###..## ..##... ##...## ....##.
..###.. .###### ####### .#####. .###### .#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
"""

# A quarter of the smallest squared distance between two codes of digits. See LeNet5_1998.
RUBBISH_PENALTY = 12.0

# A black pixel of MNIST under the usual normalisation, (0 - 0.1307) / 0.3081.
NORMALISED_BLACK = -0.1307 / 0.3081


class LeNet5_1998(nn.Module):
    """LeNet-5 of LeCun et al. 1998, section II.B, layer by layer with the paper's names.

    Images (N, 1, ``image_size``, ``image_size``), float32, to logits (N, 10), float32. C1 156 parameters, S2 12,
    C3 1,516, S4 32, C5 48,120, F6 10,164: 60,000 trainable parameters.

    With ``output="rbf"`` the logits are minus the penalties y of the output layer, the squared distances of F6 from ten
    fixed bitmaps, and the loss of the paper, equation 9,

        E = mean of  y_D + log(exp(-j) + sum_i exp(-y_i)),

    is the cross-entropy over the ten logits and an eleventh, constant one, ``rubbish_logit`` = -j, for the class "no
    digit". The paper gives no value of j; it only requires j > 0, so that large penalties are not increased further. The
    default is a quarter of the smallest squared distance between two codes: then a state of F6 is classified as a digit
    exactly if it is within half the smallest distance of a code (the largest balls around the codes that do not
    overlap). With much greater j the loss is a plain softmax, with much smaller j the squared distance to the right code,
    equation 8. A sum of 84 squared differences has large gradients: with SGD, momentum 0.9 and batches of 64, learning
    rates from 0.0003 to 0.003 train well and 0.01 does not.

    Deviations from the paper:
        - ``output="linear"`` has a linear output layer, 850 more parameters, for a plain cross-entropy.
        - The paper scales pixels so that background is -0.1 and ink 1.175; here ``data.mean=0.0784 data.std=0.7843`` does
          that. The paper trains with a diagonal Levenberg-Marquardt method on single patterns; here any optimizer can be
          used.
        - The bitmaps follow transcriptions of figure 3 in public reimplementations (mattwang44/LeNet-from-Scratch and
          others that agree with it), the bars above 0, 2, 4 and 5 included; the figure itself was not measured.

    Args:
        image_size: 32; or 28, MNIST's size, to which 2 pixels of background are added on each side, as in the paper.
        background: value of the pixels added to images of 28x28; the default is black under the normalisation
            (0.1307, 0.3081); the paper's scaling needs -0.1.
        output: ``rbf`` as published, or ``linear``.
        rubbish_penalty: j of equation 9, positive; no effect if ``output`` is ``linear``.
        num_classes: 10, the digits that have a bitmap.
        in_channels: 1, grey.

    Raises:
        ValueError: a value is not allowed.
    """

    rubbish_logit: float | None
    """-j with ``output="rbf"``; ``None`` with ``output="linear"``."""

    @validate_call
    def __init__(
        self,
        *,
        image_size: Literal[28, 32] = 32,
        background: Annotated[float, Strict(), Field(allow_inf_nan=False)] = NORMALISED_BLACK,
        output: Literal["rbf", "linear"] = "rbf",
        rubbish_penalty: Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)] = RUBBISH_PENALTY,
        num_classes: Literal[10] = 10,
        in_channels: Literal[1] = 1,
    ) -> None:
        super().__init__()
        self.rubbish_logit = -float(rubbish_penalty) if output == "rbf" else None

        layers: dict[str, nn.Module] = {}
        if image_size == 28:
            layers["pad"] = nn.ConstantPad2d(2, background)
        layers |= {
            "c1": nn.Conv2d(1, 6, 5),
            "squash1": ScaledTanh(),
            "s2": Subsampling(6),
            "squash2": ScaledTanh(),
            "c3": PartialConv2d(C3_CONNECTIONS, 6, 5),
            "squash3": ScaledTanh(),
            "s4": Subsampling(16),
            "squash4": ScaledTanh(),
            "c5": nn.Conv2d(16, 120, 5),
            "flatten": nn.Flatten(),
            "squash5": ScaledTanh(),
            "f6": nn.Linear(120, 84),
            "squash6": ScaledTanh(),
            "output": RBF(digit_codes()) if output == "rbf" else nn.Linear(84, 10),
        }
        self.layers = sequential(layers)
        for layer in layers.values():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                _uniform(layer.weight[0].numel(), *layer.parameters())

    @property
    def title(self) -> str:
        """Display name."""
        return "LeNet-5 (1998)" if self.rubbish_logit is not None else "LeNet-5 (1998), linear output"

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


class ScaledTanh(nn.Module):
    """1.7159 tanh(2/3 a), for which f(1) = 1 and f(-1) = -1 (appendix A). Any shape and floating type."""

    def forward(self, a: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(a * (2 / 3))


class Subsampling(nn.Module):
    """Sum of each 2x2 pixels times a coefficient plus a bias, one of each per map (section II.B, layer S2).

    (N, C, H, W) to (N, C, H/2, W/2).
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(maps, 1, 1))
        self.bias = nn.Parameter(torch.empty(maps, 1, 1))
        _uniform(4, self.weight, self.bias)

    def forward(self, maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, 2, divisor_override=1) * self.weight + self.bias


class PartialConv2d(nn.Module):
    """A convolution in which each output map is connected to some of the input maps (table I, layer C3).

    (N, C, H, W) to (N, ``len(connections)``, H - k + 1, W - k + 1). ``weight`` (connections, k * k) holds a kernel for
    each connection, sorted by output map, then by input map.
    """

    index: Tensor

    def __init__(self, connections: tuple[tuple[int, ...], ...], in_maps: int, kernel_size: int) -> None:
        super().__init__()
        self.shape = (len(connections), in_maps, kernel_size, kernel_size)
        index = [out * in_maps + source for out, sources in enumerate(connections) for source in sources]
        self.register_buffer("index", torch.tensor(index), persistent=False)
        self.weight = nn.Parameter(torch.empty(len(index), kernel_size * kernel_size))
        self.bias = nn.Parameter(torch.empty(len(connections)))
        kernels = torch.split(self.weight.detach(), [len(sources) for sources in connections])
        for out, own in enumerate(kernels):
            _uniform(own.numel(), own, self.bias[out])

    def forward(self, maps: Tensor) -> Tensor:
        # One dense convolution with zeros for missing connections is faster than one convolution for each fan-in.
        outs, ins, height, width = self.shape
        dense = self.weight.new_zeros(outs * ins, height * width).index_copy(0, self.index, self.weight)
        return F.conv2d(maps, dense.view(self.shape), self.bias)


class RBF(nn.Module):
    """Minus the squared Euclidean distance from each of some fixed ``codes`` (section II.B, equation 7).

    Codes (K, D); states (N, D) to logits (N, K).
    """

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes, persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        # Not the expanded square: its large terms cancel, which loses precision, above all in bfloat16.
        return -(states.unsqueeze(-2) - self.codes).square().sum(-1)


def digit_codes() -> Tensor:
    """The bitmaps of the ten digits, row by row: (10, 84), float32, each element +1 or -1."""
    rows = [row.split() for row in DIGIT_BITMAPS.split("\n") if row]
    pixels = ["".join(row[digit] for row in rows) for digit in range(10)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in digit] for digit in pixels])


def _uniform(fan_in: int, *parameters: Tensor) -> None:
    """Appendix A: uniform within 2.4 / fan-in of 0, where the fan-in is the number of inputs of one unit."""
    for parameter in parameters:
        parameter.detach().uniform_(-2.4 / fan_in, 2.4 / fan_in)
