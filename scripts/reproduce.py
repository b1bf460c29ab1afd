"""Train every row of the five studies over several seeds and write docs/reproduction.md.

    python scripts/reproduce.py                                    # 19 rows, 3 seeds each; about half an hour on two cores
    python scripts/reproduce.py --only study_d --seeds 5           # a subset
    python scripts/reproduce.py hydra/launcher=submitit_slurm      # on a cluster; also takes other overrides of mnist-train -m
    python scripts/reproduce.py --document                         # train nothing, write the document from docs/results

You can stop and repeat the command: complete runs are kept, and interrupted runs continue.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from campaign import FIGURES, RESULTS, ROOT, Campaign, Grid, read_csv, run, write_between_markers, write_csv

from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.runs import Run

CURVES_CSV = RESULTS / "reproduction_study_b_lenet5.csv"
FIGURE = FIGURES / "reproduction_study_b.png"
DOCUMENT = ROOT / "docs" / "reproduction.md"


@dataclass(frozen=True)
class Claim:
    """A report's figures for one of its models; None if the report does not give them.

    Attributes:
        low, high: the test accuracies that the report would round to the same digits.
    """

    parameters: int | None
    accuracy: str | None = None
    low: float | None = None
    high: float | None = None


def digits(text: str, half_unit: float) -> tuple[str, float, float]:
    return text, float(text) - half_unit, float(text) + half_unit


CLAIMS = {
    "study_a/lenet5": Claim(61_706, "above 0.98", 0.98, 1.0),
    "study_a/mlp": Claim(61_338, "about 0.95", 0.945, 0.955),
    "study_a/lenet5_regularized": Claim(None),
    "study_b/lenet5": Claim(61_706, *digits("0.9909", 0.00005)),
    "study_b/mlp": Claim(81_020),
    "study_b/lenet5_improved": Claim(None),
    "study_c/lenet5": Claim(61_706, *digits("0.977", 0.0005)),
    "study_c/lenet5_regularized": Claim(61_990, *digits("0.981", 0.0005)),
    "study_c/mlp": Claim(62_930, *digits("0.949", 0.0005)),
    "study_c/lenet5_unswapped": Claim(61_706),
    "study_c/lenet5_regularized_unswapped": Claim(61_990),
    "study_c/mlp_unswapped": Claim(62_930),
    "study_d/lenet5": Claim(61_720, *digits("0.9889", 0.00005)),
    "study_d/mlp": Claim(123_412),
    "study_d/lenet5moon": Claim(None, *digits("0.9906", 0.00005)),
    "study_d/lenet5moon2": Claim(None, *digits("0.9922", 0.00005)),
    "study_e/lenet5": Claim(61_706, *digits("0.99", 0.005)),
    "study_e/mlp": Claim(68_650, *digits("0.98", 0.005)),
    "study_e/lenet5_regularized": Claim(None, *digits("0.99", 0.005)),
}

# Study B, LeNet-5: train loss, train accuracy in percent, test loss, test accuracy in percent, by epoch.
CLAIMED_CURVE = [
    (0.2811, 90.84, 0.0614, 97.96), (0.0620, 98.03, 0.0543, 98.28), (0.0431, 98.62, 0.0449, 98.40),
    (0.0331, 98.99, 0.0356, 98.86), (0.0271, 99.14, 0.0402, 98.69), (0.0220, 99.32, 0.0328, 98.92),
    (0.0181, 99.39, 0.0377, 98.80), (0.0156, 99.50, 0.0276, 99.11), (0.0128, 99.59, 0.0289, 98.97),
    (0.0106, 99.66, 0.0291, 99.09),
]  # fmt: skip


def studies() -> Campaign:
    return Campaign("reproduction", [Grid("experiment", tuple(CLAIMS))])


def gather_curves(runs: Iterable[Run]) -> None:
    """Add the epochs of study B's LeNet-5 to their CSV file."""
    curves = {(row["seed"], row["epoch"]): row for row in read_csv(CURVES_CSV)}
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    for found in runs:
        if found.record.name == "study_b.lenet5":
            for line in found.metrics:
                key = (str(found.record.seed), str(line["epoch"]))
                curves[key] = {"seed": key[0], "epoch": key[1], **{name: f"{line[name]:.6f}" for name in names}}
    write_csv(CURVES_CSV, sorted(curves.values(), key=lambda row: (int(row["seed"]), int(row["epoch"]))))


def verdict(claim: Claim, parameters: int, accuracies: Sequence[float]) -> str:
    """Compare claim and measurement: reproduced if the mean is within two standard deviations over seeds of the range
    that the report rounds to the same digits."""
    words = []
    if claim.parameters not in {None, parameters}:
        words.append("parameter count is wrong")
    if claim.low is None or claim.high is None:
        words.append("no accuracy claimed")
    elif len(accuracies) < 3:
        words.append("fewer than three seeds: unable to say")
    else:
        mean, spread = statistics.mean(accuracies), 2 * statistics.stdev(accuracies)
        if mean > claim.high + spread:
            words.append("**not reproduced**: measured higher")
        elif mean < claim.low - spread:
            words.append("**not reproduced**: measured lower")
        else:
            words.append("reproduced")
    return "; ".join(words)


def table(campaign: Campaign) -> Iterable[str]:
    yield "| preset | parameters claimed | computed | accuracy claimed | measured, mean ± std | n | verdict | train s |"
    yield "|---|---:|---:|---:|---:|---:|---|---:|"
    for preset, claim in CLAIMS.items():
        arm = f"experiment={preset}"
        accuracies = list(campaign.figures(arm, "test_accuracy").values())
        if not accuracies:
            yield f"| `{preset}` | | | {claim.accuracy or '-'} | not trained yet | 0 | | |"
            continue
        (parameters,) = {int(count) for count in campaign.figures(arm, "parameters").values()}
        spread = f" ± {statistics.stdev(accuracies):.4f}" if len(accuracies) > 1 else ""
        seconds = statistics.median(campaign.figures(arm, "train_seconds").values())
        claimed = f"{claim.parameters:,}" if claim.parameters else "-"
        yield (
            f"| `{preset}` | {claimed} | {parameters:,} | {claim.accuracy or '-'} | {statistics.mean(accuracies):.4f}{spread}"
            f" | {len(accuracies)} | {verdict(claim, parameters, accuracies)} | {seconds:.0f} |"
        )


def draw() -> None:
    """Study B's LeNet-5, epoch by epoch: each seed as a line, the report's figures as dots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves = read_csv(CURVES_CSV)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    seeds = sorted({row["seed"] for row in curves})
    for axes, name, columns in ((left, "loss", (0, 2)), (right, "accuracy", (1, 3))):
        for split, column, colour in (("train", columns[0], "tab:blue"), ("test", columns[1], "tab:orange")):
            scale = 100 if name == "accuracy" else 1
            for seed in seeds:
                values = [float(row[f"{split}_{name}"]) * scale for row in curves if row["seed"] == seed]
                label = f"{split}, {len(seeds)} seeds" if seed == seeds[0] else None
                axes.plot(range(1, len(values) + 1), values, color=colour, alpha=0.6, linewidth=1.2, label=label)
            claimed = [line[column] for line in CLAIMED_CURVE]
            axes.plot(
                range(1, len(claimed) + 1), claimed, "o", color=colour, markersize=4, label=f"{split}, as reported"
            )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("accuracy, %" if name == "accuracy" else "loss, nats")
        axes.grid(alpha=0.3)
    right.set_ylim(97, 100)
    right.set_title("below 97 % not shown", fontsize=9)
    left.set_ylim(0, 0.15)
    left.set_title("above 0.15 not shown", fontsize=9)
    right.legend(fontsize=8)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)


def write_document(campaign: Campaign) -> None:
    write_between_markers(DOCUMENT, "table", table(campaign))
    if CURVES_CSV.exists():
        draw()


@exit_status("reproduce.py")
@printing()
def main() -> None:
    campaign = studies()
    gather_curves(run(campaign, __doc__, seeds=3))
    write_document(campaign)


if __name__ == "__main__":
    main()
