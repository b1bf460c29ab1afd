"""Does regularization help LeNet-5? Train each technique alone and all together, and write docs/regularization.md.

python scripts/regularization.py                     # 9 arms, 5 seeds each; about 40 minutes on two cores
python scripts/regularization.py --only augment --seeds 10
python scripts/regularization.py --document          # train nothing, write the document from docs/results
"""

from __future__ import annotations

from collections.abc import Iterable

from campaign import FIGURES, ROOT, Campaign, Grid, run, write_between_markers

from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.reports.statistics import Difference, holm, over_seeds, seed_difference
from mnist_exp.reports.tables import seeds

TECHNIQUES = {
    "none": "none",
    "dropout": "dropout",
    "batch_norm": "batch norm",
    "dropout_batch_norm": "dropout and batch norm",
    "weight_decay": "weight decay",
    "label_smoothing": "label smoothing",
    "augment": "augmentation",
    "ema": "average of weights (EMA)",
    "full": "all",
}
DOCUMENT = ROOT / "docs" / "regularization.md"
FIGURE = FIGURES / "regularization.png"


def factorial() -> Campaign:
    return Campaign("regularization", [Grid("regularization", tuple(TECHNIQUES))])


def accuracies(campaign: Campaign, technique: str) -> dict[int, float]:
    """Test accuracy after the last epoch in percent, by seed."""
    found = campaign.figures(f"regularization={technique}", "test_accuracy")
    return {seed: 100 * value for seed, value in found.items()}


def differences(campaign: Campaign) -> dict[str, Difference]:
    """The difference of each technique that has runs from none, in percentage points, paired by seed."""
    baseline = accuracies(campaign, "none")
    arms = {technique: accuracies(campaign, technique) for technique in TECHNIQUES if technique != "none"}
    return {technique: seed_difference(arm, baseline) for technique, arm in arms.items() if arm and baseline}


def table(campaign: Campaign) -> Iterable[str]:
    yield "| regularization | n | test accuracy, mean ± std | difference to none | 95 % interval | p (Holm) | train accuracy |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    compared = differences(campaign)
    known = [technique for technique, difference in compared.items() if difference.p is not None]
    corrected = dict(zip(known, holm([compared[technique].p or 0.0 for technique in known]), strict=True))
    for technique, title in TECHNIQUES.items():
        values = list(accuracies(campaign, technique).values())
        if not values:
            yield f"| {title} | 0 | not trained yet | | | | |"
            continue
        sample = over_seeds(values)
        spread = "" if sample.std is None else f" ± {sample.std:.2f}"
        seen = over_seeds(list(campaign.figures(f"regularization={technique}", "train_accuracy").values())).mean
        cells = [title, str(sample.n), f"{sample.mean:.2f}{spread} %"]
        if technique in corrected and (interval := compared[technique].interval) is not None:
            cells += [f"{compared[technique].mean:+.2f}", f"{interval.low:+.2f} to {interval.high:+.2f}"]
            cells += [f"{corrected[technique]:.3f}" if corrected[technique] >= 0.001 else "< 0.001"]
        else:
            cells += ["", "", ""]
        yield f"| {' | '.join(cells)} | {100 * seen:.2f} % |"


def draw(campaign: Campaign) -> None:
    """The difference that each technique makes: every seed as a dot, the mean with its interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    compared = differences(campaign)
    order = sorted(compared, key=lambda technique: compared[technique].mean)
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    baseline = accuracies(campaign, "none")
    for height, technique in enumerate(order):
        arm = accuracies(campaign, technique)
        dots = [arm[seed] - baseline[seed] for seed in sorted(arm.keys() & baseline.keys())]
        axes.plot(dots, [height - 0.2] * len(dots), "o", color="tab:grey", alpha=0.6, markersize=4, label="one seed")
        mean, interval = compared[technique].mean, compared[technique].interval
        reach = None if interval is None else [[mean - interval.low], [interval.high - mean]]
        label = "mean" if interval is None else "mean, 95 % interval"
        axes.errorbar([mean], [height], xerr=reach, fmt="s", color="tab:blue", capsize=4, label=label)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(order)), [TECHNIQUES[technique] for technique in order])
    axes.set_xlabel(
        "test accuracy minus that without regularization, percentage points; "
        + seeds(len(accuracies(campaign, technique).keys() & baseline.keys()) for technique in order)
    )
    axes.grid(axis="x", alpha=0.3)
    handles, titles = axes.get_legend_handles_labels()
    once = dict(zip(titles, handles, strict=True))
    axes.legend(once.values(), once.keys(), loc="lower right", fontsize=8)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)


def write_document(campaign: Campaign) -> None:
    write_between_markers(DOCUMENT, "table", table(campaign))
    if differences(campaign):
        draw(campaign)


@exit_status("regularization.py")
@printing()
def main() -> None:
    campaign = factorial()
    run(campaign, __doc__, seeds=5)
    write_document(campaign)


if __name__ == "__main__":
    main()
