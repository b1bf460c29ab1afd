"""Accuracy, time and memory against parameters, for LeNet-5 and for MLPs under the same conditions: docs/scaling.md.

python scripts/scaling.py                      # 17 networks, 3 seeds each; about 25 minutes on two cores
python scripts/scaling.py --only model=mlp     # a subset
python scripts/scaling.py --document           # train nothing, write the document from docs/results
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterable

from campaign import FIGURES, ROOT, Campaign, Grid, run, write_between_markers

from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.reports.statistics import over_seeds
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
ONE = Grid("model.hidden", (LENET5[1][1],), ("model=lenet5", f"model.channels={LENET5[1][0]}")).arm(LENET5[1][1])
DOCUMENT = ROOT / "docs" / "scaling.md"
FIGURE = FIGURES / "scaling.png"


def networks() -> Campaign:
    lenets = [
        Grid("model.hidden", (hidden,), ("model=lenet5", f"model.channels={maps}")) for maps, hidden in LENET5.values()
    ]
    return Campaign("scaling", [*lenets, WIDTHS, DEPTHS])


def families() -> dict[str, list[str]]:
    """Arms by the scaled quantity; depth 2 is the width with at most LeNet-5's number of parameters."""
    lenets, widths = networks().arms[: len(LENET5)], [WIDTHS.arm(value) for value in WIDTHS.values]
    depths = [DEPTHS.arm(value) for value in DEPTHS.values]
    two = WIDTHS.arm("[71,71]")
    return {
        "LeNet-5, all widths": lenets,
        "MLP, 2 hidden layers, width": widths,
        "MLP, depth 1 to 8": [depths[0], two, *depths[1:]],
    }


def table(campaign: Campaign) -> Iterable[str]:
    yield "| network | parameters | n | test accuracy, mean ± std | seconds an epoch | against LeNet-5 | peak memory, MiB |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    one = min(campaign.figures(ONE, "fastest_epoch_seconds").values(), default=None)
    for arm in campaign.arms:
        typed = shlex.join(arm.split())
        accuracies = [100 * value for value in campaign.figures(arm, "test_accuracy").values()]
        if not accuracies:
            yield f"| `{typed}` | | 0 | not trained yet | | | |"
            continue
        sample = over_seeds(accuracies)
        (parameters,) = {int(count) for count in campaign.figures(arm, "parameters").values()}
        seconds = min(campaign.figures(arm, "fastest_epoch_seconds").values())
        memory = statistics.median(campaign.figures(arm, "peak_memory_mib").values())
        spread = "" if sample.std is None else f" ± {sample.std:.2f}"
        ratio = "" if one is None else f"{seconds / one:.2f}"
        yield f"| `{typed}` | {parameters:,} | {sample.n} | {sample.mean:.2f}{spread} % | {seconds:.1f} | {ratio} | {memory:.0f} |"


def draw(campaign: Campaign) -> None:
    """Accuracy against parameters, and against depth at one budget; a disc's area is the time of an epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes, depths = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    counts = []
    (lenets, widths, deep), (blue, orange, green) = families().items(), ("tab:blue", "tab:orange", "tab:green")
    for panel, (title, arms), colour in ((axes, lenets, blue), (axes, widths, orange), (depths, deep, green)):
        points = []
        for arm in arms:
            if values := [100 * value for value in campaign.figures(arm, "test_accuracy").values()]:
                sample = over_seeds(values)
                counts.append(sample.n)
                parameters = next(iter(campaign.figures(arm, "parameters").values()))
                x = parameters if panel is axes else 2 if "[" in arm else int(arm.rpartition("=")[2])
                seconds = min(campaign.figures(arm, "fastest_epoch_seconds").values())
                points.append((x, sample.mean, sample.std or 0.0, seconds))
        points.sort()
        x, y, std, seconds = zip(*points, strict=True)
        panel.errorbar(x, y, yerr=std, color=colour, capsize=3, linewidth=1, label=title)
        panel.scatter(x, y, s=[60 * value for value in seconds], color=colour, alpha=0.35)
        panel.grid(alpha=0.3)
    budget = next(iter(campaign.figures(ONE, "parameters").values()))
    axes.axvline(budget, color="black", linewidth=0.6, linestyle=":")
    axes.annotate(f"{budget:,.0f}", (budget, axes.get_ylim()[0]), fontsize=8, xytext=(3, 4), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xlabel("parameters")
    axes.set_ylabel("test accuracy, %")
    depths.set_xlabel(f"hidden layers of an MLP\nof about {budget:,.0f} parameters")
    depths.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(f"Mean ± standard deviation, {seeds(counts)}; area of a disc: time of an epoch", fontsize=10)
    legend = axes.legend(loc="lower right", fontsize=8)
    axes.add_artist(legend)
    sizes = [
        axes.scatter([], [], s=60 * value, color="tab:grey", alpha=0.5, label=f"{value} s") for value in (1, 5, 20)
    ]
    axes.legend(
        handles=sizes, loc="center right", fontsize=8, labelspacing=2, borderpad=1.5, handletextpad=2,
        title="an epoch", title_fontsize=8, bbox_to_anchor=(1, 0.45),
    )  # fmt: skip
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)


def write_document(campaign: Campaign) -> None:
    write_between_markers(DOCUMENT, "table", table(campaign))
    if all(any(campaign.figures(arm, "seed") for arm in arms) for arms in families().values()):
        draw(campaign)


@exit_status("scaling.py")
@printing()
def main() -> None:
    campaign = networks()
    run(campaign, __doc__, seeds=3)
    write_document(campaign)


if __name__ == "__main__":
    main()
