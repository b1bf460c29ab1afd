"""Train the record recipes over seeds, once each on all training images, and write docs/records.md.

    python scripts/records.py                               # 10 seeds each; hours on two cores
    python scripts/records.py --only record/lenet5 --seeds 3
    python scripts/records.py --document                    # train nothing, write the document from docs/results

Recipes were chosen on validation images alone; docs/results/records_tried.csv has a line for every such run, with its whole
command. This command adds your own runs:

    python scripts/records.py --document --tried outputs/sweeps/mine
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable
from pathlib import Path

from campaign import RESULTS, ROOT, Campaign, Grid, one_line_for, read_csv, run, write_between_markers, write_csv

from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.reports.statistics import over_seeds
from mnist_exp.runs import Run, find_runs, read_run
from mnist_exp.runs.reading import read_overrides

PRESETS = ("record/lenet5", "record/lenet5_regularized", "record/mlp", "record/speedrun")
SEEDS = 10  # of a record
FIRST_SEED = {"record/mlp": 20}
GOALS = {"record/lenet5": 99.65, "record/mlp": 99.4, "record/speedrun": 99.0}
DOCUMENT = ROOT / "docs" / "records.md"
TRIED_CSV = RESULTS / "records_tried.csv"
# Overrides that do not change the recipe.
CIRCUMSTANCES = ("seed", "name", "quiet", "logger", "trainer.threads", "hydra.", "sweep.", "resume")


# Recipes that were the best on validation images before that of the preset, the latest first.
AUGMENTATION = "regularization.augmentation."
FIRST_SHAPE = tuple(
    f"{AUGMENTATION}{each}" for each in ("rotation=10.0", "translation=0.08", "scale=0.1", "shear=10.0")
)
ALL_PIXELS = (
    *("trainer.epochs=150", "model.pooling=1", "model.hidden=[64,64,64]"),
    *(f"{AUGMENTATION}{each}" for each in ("rotation=7.0", "scale=0.1", "shear=5.0", "elastic_alpha=16.0")),
    f"{AUGMENTATION}interpolation=bilinear",
)
EARLIER = [
    Grid("experiment", ("record/lenet5",), fixed=FIRST_SHAPE),
    Grid("experiment", ("record/lenet5",), fixed=(*FIRST_SHAPE, f"{AUGMENTATION}interpolation=bilinear")),
    Grid("experiment", ("record/mlp",), fixed=("trainer.epochs=60",), first_seed=10),
    Grid("experiment", ("record/mlp",), fixed=ALL_PIXELS),
]


def records() -> Campaign:
    # A recipe that replaced another one is tested on seeds that the other one did not have.
    grids = [Grid("experiment", (preset,), first_seed=FIRST_SEED.get(preset, 0)) for preset in PRESETS]
    return Campaign("records", [*grids, *EARLIER])


def gather_tried(folder: Path) -> None:
    """Write the complete runs with validation images below ``folder`` into their CSV file."""
    rows = {(row["name"], row["seed"]): row for row in read_csv(TRIED_CSV)}
    for found in map(read_run, find_runs(folder)):
        if found.status == "completed" and (found.record.final or {}).get("val_accuracy") is not None:
            with one_line_for(found.path):
                rows[str(found.record.name), str(found.record.seed)] = tried_row(found)
    write_csv(TRIED_CSV, [rows[key] for key in sorted(rows)])


def tried_row(run: Run) -> dict[str, str]:
    """The line of a run with validation images."""
    final = run.record.final
    typed = read_overrides(run.path)
    return {
        "name": str(run.record.name),
        "seed": str(run.record.seed),
        "epochs": str(final["epoch"]),
        **{figure: f"{final[figure]:.6f}" for figure in ("train_accuracy", "val_loss", "val_accuracy")},
        "train_seconds": f"{run.record.seconds['train']:.0f}",
        "overrides": " ".join(each for each in typed if not each.startswith(CIRCUMSTANCES)),
    }


def table(campaign: Campaign) -> Iterable[str]:
    yield "| preset | parameters | epochs | n | test accuracy, mean ± std | 95 % interval of the mean | lowest, highest | goal |"
    yield "|---|---:|---:|---:|---:|---:|---:|---|"
    for arm in campaign.arms:
        *changed, experiment = arm.split()
        preset = experiment.removeprefix("experiment=")
        label = " ".join([f"`{preset}`", *changed]).replace(AUGMENTATION, "")
        target = None if changed else GOALS.get(preset)
        goal = "-" if target is None else f"{target:.2f}"
        values = [100 * value for value in campaign.figures(arm, "test_accuracy").values()]
        if not values:
            yield f"| {label} | | | 0 | not trained yet | | | {goal} |"
            continue
        sample = over_seeds(values)
        spread = "" if sample.std is None else f" ± {sample.std:.3f}"
        interval = "" if sample.interval is None else f"{sample.interval.low:.3f} to {sample.interval.high:.3f}"
        parameters, epochs = (int(min(campaign.figures(arm, column).values())) for column in ("parameters", "epochs"))
        if target is not None:
            if sample.n < SEEDS:
                goal += f", not decided by {sample.n} of {SEEDS} seeds"
            else:
                goal += ", reached" if sample.mean >= target - 1e-9 else ", not reached"
        yield (
            f"| {label} | {parameters:,} | {epochs} | {sample.n} | {sample.mean:.3f}{spread} % | {interval} "
            f"| {min(values):.2f}, {max(values):.2f} | {goal} |"
        )


def tried(kind: str) -> Iterable[str]:
    """The table of runs whose name begins with ``kind``, the lowest validation loss first."""
    yield "| tried | epochs | n | validation accuracy, mean ± std | validation loss |"
    yield "|---|---:|---:|---:|---:|"
    arms: dict[str, list[dict[str, str]]] = {}
    for row in read_csv(TRIED_CSV):
        if row["name"].startswith(f"{kind}."):
            arms.setdefault(row["name"], []).append(row)
    losses = {name: statistics.fmean(float(row["val_loss"]) for row in rows) for name, rows in arms.items()}
    for name in sorted(arms, key=lambda name: losses[name]):
        sample = over_seeds([100 * float(row["val_accuracy"]) for row in arms[name]])
        spread = "" if sample.std is None else f" ± {sample.std:.2f}"
        words = name.partition(".")[2].replace("_", " ")
        yield f"| {words} | {arms[name][0]['epochs']} | {sample.n} | {sample.mean:.2f}{spread} % | {losses[name]:.4f} |"


def write_document(campaign: Campaign) -> None:
    write_between_markers(DOCUMENT, "table", table(campaign))
    for kind in ("lenet5", "mlp", "speedrun"):
        write_between_markers(DOCUMENT, f"tried {kind}", tried(kind))


@exit_status("records.py")
@printing()
def main() -> None:
    campaign = records()
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--tried", type=Path)
    options, rest = parser.parse_known_args()
    run(campaign, __doc__, seeds=SEEDS, arguments=rest)
    if options.tried is not None:
        gather_tried(options.tried)
    write_document(campaign)


if __name__ == "__main__":
    main()
