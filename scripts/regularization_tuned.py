"""Does regularization help LeNet-5 if every technique is tuned? Tune each on validation data, settle on the test set, write docs.

python scripts/regularization_tuned.py               # about 600 trials, then up to 600 runs: hours; the same command continues
python scripts/regularization_tuned.py --schedule one_cycle
python scripts/regularization_tuned.py --document    # train nothing, write docs/regularization.md from docs/results

Each technique, also none, gets the same search: 30 trials with Optuna on 10,000 validation images, seed 0, 10 epochs. The test set
is not evaluated meanwhile. Then a sweep with ``sweep.until`` trains the best settings of all techniques on all images.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from campaign import RESULTS, ROOT, read_csv, row, write_between_markers, write_csv
from omegaconf import OmegaConf

from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.errors import as_override
from mnist_exp.reports.sequential import is_settled, sequential_difference
from mnist_exp.reports.statistics import holm, over_seeds
from mnist_exp.runs import Run, find_runs, read_run
from mnist_exp.runs.reading import read_overrides
from mnist_exp.runs.sweep import Until

SCHEDULES = ("constant", "one_cycle")
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
SEEDS = "seed=10,11,12,13,14"  # the first ones; no trial had them
DOCUMENT = ROOT / "docs" / "regularization.md"


def tuned_csv() -> Path:
    """A line for each technique and schedule: the best settings on validation data."""
    return RESULTS / "regularization_tuned.csv"


def settled_csv() -> Path:
    """A line for each run on all images with the best settings."""
    return RESULTS / "regularization_settled.csv"


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


def settle(schedule: str, runs: Path, more: Iterable[str]) -> None:
    """Train the best settings of all techniques on all images until each difference from none is settled."""
    tuned = [line for line in read_csv(tuned_csv()) if line["schedule"] == schedule]
    write_presets(runs / "conf", tuned)
    arms = ",".join(f"{schedule}/{technique}" for technique in SPACES)
    folder = runs / "settle" / schedule
    asked = (f"sweep.until={UNTIL.points}", f"sweep.max_seeds={UNTIL.max_seeds}", "trainer.evaluate_test=last")
    where = ("--config-dir", str(runs / "conf"), as_override("hydra.sweep.dir", folder))
    train(f"experiment={arms}", SEEDS, *asked, *where, *more)


def gather(runs: Path) -> None:
    """Write the complete runs on all images into their file."""
    found = {(line["arm"], line["seed"]): line for line in read_csv(settled_csv())}
    folder = runs / "settle"
    for path in find_runs(folder) if folder.exists() else ():
        run = read_run(path)
        if run.status == "completed":
            arm = next(word for word in read_overrides(path) if word.startswith("experiment="))
            line = row(arm.partition("=")[2], run)
            found[line["arm"], line["seed"]] = line
    order = [f"{schedule}/{technique}" for schedule in SCHEDULES for technique in SPACES]
    write_csv(settled_csv(), [found[key] for key in sorted(found, key=lambda key: (order.index(key[0]), int(key[1])))])


def table(schedule: str) -> Iterable[str]:
    """The results with one schedule, each technique against none."""
    tuned = {line["technique"]: line for line in read_csv(tuned_csv()) if line["schedule"] == schedule}
    accuracies: dict[str, dict[int, float]] = {technique: {} for technique in SPACES}
    for line in read_csv(settled_csv()):
        of, _, technique = line["arm"].partition("/")
        if of == schedule:
            accuracies[technique][int(line["seed"])] = float(line["test_accuracy"])
    differences = {
        technique: sequential_difference(values, accuracies["none"], UNTIL)
        for technique, values in accuracies.items()
        if technique != "none" and values and accuracies["none"]
    }
    known = [technique for technique, difference in differences.items() if difference.p is not None]
    corrected = dict(zip(known, holm([differences[technique].p or 0.0 for technique in known]), strict=True))
    yield "| technique | best settings on validation data | validation accuracy | n | test accuracy, mean ± std | difference to none | 95 % interval | p (Holm) | |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---|"
    for technique, values in accuracies.items():
        line = tuned.get(technique, {})
        settings = ", ".join(_short(word) for word in line.get("settings", "").split()) or "not tuned yet"
        cells = [technique.replace("_", " "), settings, f"{100 * float(line['val_accuracy']):.2f} %" if line else ""]
        sample = over_seeds([100 * value for value in values.values()]) if values else None
        spread = f" ± {sample.std:.2f}" if sample and sample.std is not None else ""
        cells += [str(len(values)), f"{sample.mean:.2f}{spread} %" if sample else ""]
        difference = differences.get(technique)
        if difference is None or difference.interval is None:
            cells += ["", "", "", ""]
        else:
            p = corrected[technique]
            known_interval = f"{100 * difference.interval.low:+.2f} to {100 * difference.interval.high:+.2f}"
            state = "settled" if is_settled(difference, p, UNTIL) else "open"
            cells += [f"{100 * difference.mean:+.2f}", known_interval, f"{p:.3f}" if p >= 0.001 else "< 0.001", state]
        yield f"| {' | '.join(cells)} |"


def _short(word: str) -> str:
    key, _, value = word.partition("=")
    return f"{key.rpartition('.')[2].replace('_', ' ')} {float(value):.4g}"


@exit_status("regularization_tuned.py")
@printing()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="more overrides of mnist-train -m, such as hydra/launcher=joblib")
    parser.add_argument("--schedule", choices=SCHEDULES, help="only this schedule of the learning rate")
    parser.add_argument(
        "--runs", type=Path, default=Path("outputs") / "regularization_tuned", help="folder of the sweeps"
    )
    parser.add_argument("--document", action="store_true", help="train nothing, write the document from docs/results")
    options = parser.parse_args()
    runs = options.runs.absolute()
    for schedule in SCHEDULES if not options.document else ():
        if options.schedule in {None, schedule}:
            for technique in SPACES:
                tune(schedule, technique, runs, options.overrides)
            settle(schedule, runs, options.overrides)
            gather(runs)
    gather(runs)
    for schedule in SCHEDULES:
        write_between_markers(DOCUMENT, schedule, table(schedule))


if __name__ == "__main__":
    main()
