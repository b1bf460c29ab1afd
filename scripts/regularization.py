"""Does regularization help LeNet-5 if every technique is tuned? Tune each on validation data, settle on the test set, write docs.

python scripts/regularization.py               # about 600 trials, then up to 600 runs, as far as docs/results lacks them: hours
python scripts/regularization.py --schedule one_cycle
python scripts/regularization.py --document    # train nothing, write docs/regularization.md from docs/results

Each technique, also none, gets the same search: 30 trials with Optuna on 10,000 validation images, seed 0, 10 epochs. The test set
is not evaluated meanwhile. Then the best settings of all techniques are trained on all images, in rounds of seeds, as
``sweep.until`` does it, until each difference from none is settled. The same command continues what was stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

from campaign import FIGURES, RESULTS, ROOT, Campaign, Grid, read_csv, write_between_markers, write_csv
from omegaconf import OmegaConf

from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.errors import as_override
from mnist_exp.reports.sequential import is_settled, next_look, sequential_difference
from mnist_exp.reports.statistics import Difference, holm, over_seeds
from mnist_exp.runs import Run, find_runs, read_run
from mnist_exp.runs.reading import read_overrides
from mnist_exp.runs.sweep import Until

SCHEDULES = {"constant": "constant rate", "one_cycle": "one cycle"}
# What is searched besides the learning rate, by technique.
SPACES = {
    "none": (),
    "weight_decay": ("regularization.weight_decay=tag(log,interval(0.00001,0.01))",),
    "label_smoothing": ("regularization.label_smoothing=interval(0.01,0.3)",),
    "ema": ("regularization.ema=choice(0.99,0.995,0.998,0.999,0.9995)",),
    "mixup": ("regularization.mixup=interval(0.02,0.5)",),
    "dropout": ("regularization.dropout=interval(0.05,0.6)",),
    "batch_norm": (),
    "dropout_batch_norm": ("regularization.dropout=interval(0.05,0.6)",),
    "augment": ("regularization.augmentation.strength=interval(0.1,1.5)",),
    "full": (
        "regularization.dropout=interval(0.0,0.5)",
        "regularization.weight_decay=tag(log,interval(0.00001,0.01))",
        "regularization.label_smoothing=interval(0.0,0.2)",
        "regularization.augmentation.strength=interval(0.1,1.5)",
    ),
}
RATE = "optimizer.lr=tag(log,interval(0.003,0.3))"
TRIALS = 30
UNTIL = Until(points=0.05, max_seeds=30, first=5, planned=30)
FIRST_SEED = 10  # no trial had these seeds
DOCUMENT = ROOT / "docs" / "regularization.md"
FIGURE = FIGURES / "regularization.png"


def tuned_csv() -> Path:
    """A line for each technique and schedule: the best settings on validation data."""
    return RESULTS / "regularization_tuned.csv"


def arm(schedule: str, technique: str) -> str:
    return f"experiment={schedule}/{technique}"


def settling() -> Campaign:
    """The runs on all images with the best settings."""
    arms = [tuple(f"{schedule}/{technique}" for technique in SPACES) for schedule in SCHEDULES]
    return Campaign("regularization_settled", [Grid("experiment", each, first_seed=FIRST_SEED) for each in arms])


def train(*words: str) -> None:
    """Run ``mnist-train -m``; end the script if it was stopped or made a mistake."""
    command = [sys.executable, "-m", "mnist_exp.cli.train", "-m", *words, "logger=none", "quiet=true"]
    ended = subprocess.run(command, check=False)
    if ended.returncode in {2, 130, 143}:
        sys.exit(ended.returncode)


def tune(schedule: str, technique: str, runs: Path, more: Iterable[str]) -> None:
    """Search, and write the best settings; nothing if they are known."""
    known = read_csv(tuned_csv())
    if any((line["schedule"], line["technique"]) == (schedule, technique) for line in known):
        return
    folder = runs / "tune" / f"{schedule}-{technique}"
    # Without pruning: a high learning rate is behind in the first epochs of one cycle, and may be the best at the end.
    search = ("hydra/sweeper=optuna", f"hydra.sweeper.n_trials={TRIALS}", "hydra.sweeper.prune=false")
    shared = (f"regularization={technique}", f"scheduler={schedule}", "data.val_size=10000")
    train(*search, RATE, *SPACES[technique], *shared, as_override("hydra.sweep.dir", folder), *more)
    trials = [read_run(path) for path in find_runs(folder)]
    write_csv(tuned_csv(), [*known, best(schedule, technique, trials)])


def best(schedule: str, technique: str, trials: Iterable[Run]) -> dict[str, str]:
    """The line of the trial with the highest validation accuracy; of equal ones, that with the lower loss."""
    trials = list(trials)
    finals = [(run, run.record.final) for run in trials if run.status == "completed" and run.record.final]
    run, final = max(finals, key=lambda item: (item[1]["val_accuracy"], -item[1]["val_loss"]))
    searched = {"optimizer.lr", *(word.partition("=")[0] for word in SPACES[technique])}
    words = [word for word in read_overrides(run.path) if word.partition("=")[0] in searched]
    return {
        "schedule": schedule,
        "technique": technique,
        "trials": str(len(trials)),
        "completed": str(len(finals)),
        "val_accuracy": f"{final['val_accuracy']:.4f}",
        "val_loss": f"{final['val_loss']:.4f}",
        "settings": " ".join(words),
    }


def write_presets(folder: Path, tuned: Iterable[Mapping[str, str]]) -> None:
    """The best settings of each technique as presets, in a folder of ``experiment`` for each schedule, below ``folder``."""
    for line in tuned:
        settings = OmegaConf.to_yaml(OmegaConf.from_dotlist(line["settings"].split()))
        chosen = f"[override /regularization: {line['technique']}, override /scheduler: {line['schedule']}]"
        file = folder / "experiment" / line["schedule"] / f"{line['technique']}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# @package _global_\ndefaults: {chosen}\n{settings}", encoding="utf-8")


def compared(campaign: Campaign, schedule: str) -> dict[str, tuple[Difference, float | None]]:
    """The difference of each technique that has runs from none, and its p-value, corrected for their number."""
    none = campaign.figures(arm(schedule, "none"), "test_accuracy")
    differences = {
        technique: sequential_difference(values, none, UNTIL)
        for technique in SPACES
        if technique != "none" and (values := campaign.figures(arm(schedule, technique), "test_accuracy")) and none
    }
    known = {technique: difference.p for technique, difference in differences.items() if difference.p is not None}
    corrected = dict(zip(known, holm(list(known.values())), strict=True))
    return {technique: (difference, corrected.get(technique)) for technique, difference in differences.items()}


def wanted(campaign: Campaign, schedule: str) -> dict[str, int]:
    """The number of seeds of each arm after the next round: more if its difference is open, and as many of none."""
    found = compared(campaign, schedule)
    numbers = {}
    for technique in SPACES:
        n = len(campaign.figures(arm(schedule, technique), "test_accuracy"))
        settled = technique in found and is_settled(*found[technique], UNTIL)
        numbers[technique] = n if settled or n >= UNTIL.max_seeds else next_look(UNTIL, n)
    numbers["none"] = max(number for technique, number in numbers.items() if technique != "none")
    return {arm(schedule, technique): number for technique, number in numbers.items()}


def settle(campaign: Campaign, schedule: str, runs: Path, more: list[str]) -> None:
    """Train the best settings of all techniques on all images until each difference from none is settled."""
    write_presets(runs / "conf", (line for line in read_csv(tuned_csv()) if line["schedule"] == schedule))
    asked = ["--config-dir", str(runs / "conf"), "trainer.evaluate_test=last", *more]
    while lacking := {
        name: n for name, n in wanted(campaign, schedule).items() if len(campaign.figures(name, "seed")) < n
    }:
        before = len(campaign.rows)
        campaign.train(lacking, runs / "settle", asked)
        if len(campaign.rows) == before:
            sys.exit(1)  # every run failed, and mnist-train said why


def table(campaign: Campaign, schedule: str) -> Iterable[str]:
    """The results with one schedule, each technique against none."""
    tuned = {line["technique"]: line for line in read_csv(tuned_csv()) if line["schedule"] == schedule}
    found = compared(campaign, schedule)
    yield "| technique | best settings on validation data | validation accuracy | n | test accuracy, mean ± std | difference to none | 95 % interval | p (Holm) | |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---|"
    for technique in SPACES:
        line = tuned.get(technique, {})
        settings = ", ".join(_short(word) for word in line.get("settings", "").split()) or "not tuned yet"
        cells = [technique.replace("_", " "), settings, f"{100 * float(line['val_accuracy']):.2f} %" if line else ""]
        values = campaign.figures(arm(schedule, technique), "test_accuracy").values()
        sample = over_seeds([100 * value for value in values]) if values else None
        spread = f" ± {sample.std:.2f}" if sample and sample.std is not None else ""
        cells += [str(len(values)), f"{sample.mean:.2f}{spread} %" if sample else ""]
        difference, p = found.get(technique, (None, None))
        if difference is None or difference.interval is None or p is None:
            cells += ["", "", "", ""]
        else:
            known = f"{100 * difference.interval.low:+.2f} to {100 * difference.interval.high:+.2f}"
            state = "settled" if is_settled(difference, p, UNTIL) else "open"
            cells += [f"{100 * difference.mean:+.2f}", known, f"{p:.3f}" if p >= 0.001 else "< 0.001", state]
        yield f"| {' | '.join(cells)} |"


def draw(campaign: Campaign) -> None:
    """The difference that each technique makes, with its interval, for each schedule."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    techniques = [technique for technique in reversed(SPACES) if technique != "none"]
    for schedule, shift, colour in zip(SCHEDULES, (0.12, -0.12), ("tab:orange", "tab:blue"), strict=True):
        found = compared(campaign, schedule)
        for height, technique in enumerate(techniques):
            difference, _ = found.get(technique, (None, None))
            if difference is None or difference.interval is None:
                continue
            mean, low, high = (
                100 * value for value in (difference.mean, difference.interval.low, difference.interval.high)
            )
            axes.errorbar(
                [mean], [height + shift], xerr=[[mean - low], [high - mean]], fmt="o", markersize=5, capsize=3,
                color=colour, label=SCHEDULES[schedule],
            )  # fmt: skip
            axes.annotate(
                f"n = {difference.n}", (high, height + shift), (5, -3), textcoords="offset points", fontsize=7
            )
    axes.margins(x=0.1)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(techniques)), [technique.replace("_", " ") for technique in techniques])
    axes.set_xlabel("test accuracy minus that without regularization, percentage points; 95 % interval over seeds")
    axes.grid(axis="x", alpha=0.3)
    handles, titles = axes.get_legend_handles_labels()
    once = dict(zip(titles, handles, strict=True))
    axes.legend(once.values(), once.keys(), loc="upper right", fontsize=8)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)


def _short(word: str) -> str:
    key, _, value = word.partition("=")
    return f"{key.rpartition('.')[2].replace('_', ' ')} {float(value):.4g}"


@exit_status("regularization.py")
@printing()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="more overrides of mnist-train -m, such as hydra/launcher=joblib")
    parser.add_argument("--schedule", choices=SCHEDULES, help="only this schedule of the learning rate")
    parser.add_argument("--runs", type=Path, default=Path("outputs") / "regularization", help="folder of the sweeps")
    parser.add_argument("--document", action="store_true", help="train nothing, write the document from docs/results")
    options = parser.parse_args()
    if find_spec("matplotlib") is None:
        parser.error("drawing the figure needs matplotlib: pip install 'mnist-exp[figures]'")
    runs = options.runs.absolute()
    campaign = settling()
    for schedule in SCHEDULES if not options.document else ():
        if options.schedule in {None, schedule}:
            for technique in SPACES:
                tune(schedule, technique, runs, options.overrides)
            settle(campaign, schedule, runs, options.overrides)
    campaign.gather(runs / "settle")
    for schedule in SCHEDULES:
        write_between_markers(DOCUMENT, schedule, table(campaign, schedule))
    draw(campaign)


if __name__ == "__main__":
    main()
