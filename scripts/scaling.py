"""Accuracy and cost against width, kernel size, depth and number of training images, for LeNet-5 and MLPs: docs/scaling.md.

python scripts/scaling.py                      # 33 arms, 5 seeds each; about an hour on two cores
python scripts/scaling.py --only data.limit    # a subset
python scripts/scaling.py --document           # train nothing, write the document from docs/results
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from campaign import FIGURES, ROOT, Campaign, Grid, run, write_between_markers
from scipy import special

from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.reports.statistics import LEVEL, Interval, over_seeds
from mnist_exp.reports.tables import seeds

LENET5 = {
    0.25: ("[2,4]", "[30,21]"),
    0.5: ("[3,8]", "[60,42]"),
    1: ("[6,16]", "[120,84]"),
    2: ("[12,32]", "[240,168]"),
    4: ("[24,64]", "[480,336]"),
}
WIDTHS = Grid(
    "model.hidden", ("[8,8]", "[16,16]", "[32,32]", "[71,71]", "[128,128]", "[256,256]", "[512,512]"), ("model=mlp",)
)
DEPTHS = Grid("model.depth", ("1", "3", "4", "6", "8"), ("model=mlp",))
LENET5_DEPTHS = Grid("model.hidden", ("[]", "[120]", "[120,84,84]", "[120,84,84,84,84]"), ("model=lenet5",))
# The padding keeps the size of the first convolution's maps.
KERNELS = [Grid("model.kernel_size", (str(2 * p + 1),), ("model=lenet5", f"model.padding={p}")) for p in (1, 3, 4)]
# Fewer images get more epochs, in proportion to 1 / sqrt(images): fewer steps than the whole set, but enough to learn.
IMAGES = {100: 245, 300: 141, 1_000: 77, 3_000: 45, 10_000: 24, 30_000: 14}
FRACTIONS = [
    Grid("model", ("lenet5", "mlp"), (f"data.limit={images}", f"trainer.epochs={epochs}"))
    for images, epochs in IMAGES.items()
]
ALL_IMAGES = 60_000
ONE = Grid("model.hidden", (LENET5[1][1],), ("model=lenet5", f"model.channels={LENET5[1][0]}")).arm(LENET5[1][1])
TWO_LAYERS = WIDTHS.arm("[71,71]")
DOCUMENT = ROOT / "docs" / "scaling.md"
FIGURE = FIGURES / "scaling.png"


def networks() -> Campaign:
    lenets = [
        Grid("model.hidden", (hidden,), ("model=lenet5", f"model.channels={maps}")) for maps, hidden in LENET5.values()
    ]
    return Campaign("scaling", [*lenets, *KERNELS, LENET5_DEPTHS, WIDTHS, DEPTHS, *FRACTIONS])


@dataclass(frozen=True)
class Family:
    """Arms that differ in one quantity.

    Attributes:
        title: in the figure and in the table of exponents.
        quantity: what the power law is fitted against: a column of the results, ``images``, or None: no power law.
        arms: by the value of the varied quantity.
    """

    title: str
    quantity: str | None
    arms: dict[float, str]


def families() -> list[Family]:
    """Depth 2 of an MLP is the width with at most LeNet-5's number of parameters."""
    arms = networks().arms
    kernels = {float(grid.values[0]): grid.arm(grid.values[0]) for grid in KERNELS} | {5.0: ONE}
    deep = dict(zip((0.0, 1.0, 3.0, 5.0), map(LENET5_DEPTHS.arm, LENET5_DEPTHS.values), strict=True)) | {2.0: ONE}
    depths = {float(value): DEPTHS.arm(value) for value in DEPTHS.values} | {2.0: TWO_LAYERS}
    widths = {float(value.strip("[]").split(",")[0]): WIDTHS.arm(value) for value in WIDTHS.values}

    def fractions(model: str, whole: str) -> dict[float, str]:
        return dict(zip(map(float, IMAGES), (grid.arm(model) for grid in FRACTIONS), strict=True)) | {ALL_IMAGES: whole}

    return [
        Family("LeNet-5, all widths", "macs", dict(zip(LENET5, arms, strict=False))),
        Family("LeNet-5, kernel size", None, dict(sorted(kernels.items()))),
        Family("LeNet-5, hidden linear layers", None, dict(sorted(deep.items()))),
        Family("MLP, 2 hidden layers, width", "macs", widths),
        Family("MLP, depth", None, dict(sorted(depths.items()))),
        Family("LeNet-5, training images", "images", fractions("lenet5", ONE)),
        Family("MLP, training images", "images", fractions("mlp", TWO_LAYERS)),
    ]


@dataclass(frozen=True)
class PowerLaw:
    """error = factor * x ** -exponent, fitted by least squares to the logarithms of the arms' mean errors.

    Attributes:
        exponent: of the law.
        interval: Student's 95 % interval of the exponent, from the distances of the arms to the line; it covers what
            seeds and a bend of the curve change in these arms, not what lies beyond them.
        factor: the error at x = 1.
        misfit: the largest factor between a measured error and the line.
        n: number of arms.
    """

    exponent: float
    interval: Interval
    factor: float
    misfit: float
    n: int


def power_law(x: Sequence[float], error: Sequence[float]) -> PowerLaw:
    """Fit a power law to three points or more, all positive."""
    u, v = np.log(x), np.log(error)
    slope, intercept = (float(value) for value in np.polyfit(u, v, 1))
    distance = v - (slope * u + intercept)
    degrees = len(u) - 2
    standard_error = math.sqrt(float(distance @ distance) / degrees / float(((u - u.mean()) ** 2).sum()))
    half = standard_error * float(special.stdtrit(degrees, (1 + LEVEL) / 2))
    return PowerLaw(
        -slope,
        Interval(-slope - half, -slope + half),
        math.exp(intercept),
        math.exp(float(abs(distance).max())),
        len(u),
    )


def points(campaign: Campaign, family: Family) -> list[tuple[float, float, list[float]]]:
    """For each arm that was trained: the varied quantity, the fitted or drawn one, and the errors of its seeds in percent."""
    found = []
    for value, arm in family.arms.items():
        errors = [100 * (1 - accuracy) for accuracy in campaign.figures(arm, "test_accuracy").values()]
        if errors:
            x = value if family.quantity == "images" else max(campaign.figures(arm, "macs").values())
            found.append((value, x, errors))
    return found


def laws(campaign: Campaign) -> Iterable[str]:
    yield "| varied | from, to | against | error falls as | 95 % interval of the exponent | largest distance from the line | arms |"
    yield "|---|---|---|---|---:|---:|---:|"
    for family in families():
        measured = points(campaign, family)
        if family.quantity is None or len(measured) < 3:
            continue
        law = power_law([x for _, x, _ in measured], [statistics.fmean(errors) for *_, errors in measured])
        low, high = measured[0][1], measured[-1][1]
        against = {"macs": "MACs", "images": "images"}[family.quantity]
        yield (
            f"| {family.title} | {low:,.0f}, {high:,.0f} | {against} | {against}^-{law.exponent:.2f} "
            f"| {law.interval.low:.2f} to {law.interval.high:.2f} | {100 * (law.misfit - 1):.0f} % | {law.n} |"
        )


def table(campaign: Campaign) -> Iterable[str]:
    yield "| network | parameters | MACs an image | n | test accuracy, mean ± std | seconds an epoch | peak memory, MiB |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for arm in campaign.arms:
        typed = shlex.join(arm.split())
        accuracies = [100 * value for value in campaign.figures(arm, "test_accuracy").values()]
        if not accuracies:
            yield f"| `{typed}` | | | 0 | not trained yet | | |"
            continue
        sample = over_seeds(accuracies)
        (parameters,) = {int(count) for count in campaign.figures(arm, "parameters").values()}
        (macs,) = {int(count) for count in campaign.figures(arm, "macs").values()}
        seconds = min(campaign.figures(arm, "fastest_epoch_seconds").values())
        memory = statistics.median(campaign.figures(arm, "peak_memory_mib").values())
        spread = "" if sample.std is None else f" ± {sample.std:.2f}"
        yield f"| `{typed}` | {parameters:,} | {macs:,} | {sample.n} | {sample.mean:.2f}{spread} % | {seconds:.2f} | {memory:.0f} |"


def draw(campaign: Campaign) -> None:
    """The test error against multiply-accumulates and against training images, both logarithmic, with the fitted power laws."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    costs, images = figure.subplots(1, 2, sharey=True)
    colours = ("tab:blue", "tab:cyan", "tab:purple", "tab:orange", "tab:green", "tab:blue", "tab:orange")
    counts = []
    for family, colour in zip(families(), colours, strict=True):
        axes = images if family.quantity == "images" else costs
        measured = points(campaign, family)
        if len(measured) < 2:
            continue
        counts += [len(errors) for *_, errors in measured]
        x = [each for _, each, _ in measured]
        samples = [over_seeds(errors) for *_, errors in measured]
        means = [sample.mean for sample in samples]
        label = family.title
        if family.quantity is not None and len(x) >= 3:
            law = power_law(x, means)
            label += f": x^-{law.exponent:.2f}"
            ends = np.array([min(x), max(x)])
            axes.plot(ends, law.factor * ends**-law.exponent, color=colour, linewidth=0.8, linestyle="--")
        spread = [sample.std or 0.0 for sample in samples]
        axes.errorbar(
            x, means, yerr=spread, color=colour, marker="o", markersize=4, capsize=3, linewidth=1, label=label
        )
        if family.quantity is None:
            for value, each, errors in measured:
                axes.annotate(f"{value:g}", (each, statistics.fmean(errors)), fontsize=7, xytext=(4, 4),
                              textcoords="offset points")  # fmt: skip
    for axes, label in ((costs, "multiply-accumulates for one image"), (images, "training images")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    costs.set_ylabel("test error, %")
    figure.suptitle(f"Mean ± standard deviation, {seeds(counts)}; dashed: power law", fontsize=10)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)


def write_document(campaign: Campaign) -> None:
    write_between_markers(DOCUMENT, "table", table(campaign))
    write_between_markers(DOCUMENT, "laws", laws(campaign))
    draw(campaign)


@exit_status("scaling.py")
@printing()
def main() -> None:
    campaign = networks()
    run(campaign, __doc__, seeds=5)
    write_document(campaign)


if __name__ == "__main__":
    main()
