"""Train every row of the five studies over several seeds and write docs/reproduction.md.

    python scripts/reproduce.py                              # 19 rows, 3 seeds each; about half an hour on two cores
    python scripts/reproduce.py --only study_d --seeds 5     # a subset
    python scripts/reproduce.py --document                   # train nothing, write the document from docs/results

What is complete is kept, what was interrupted continues, so the command can be stopped and repeated. Each run is a process of
its own with one thread: on the same cores that is faster than one after the other with all of them. Results are gathered in
docs/results/reproduction.csv, a line for each run; what stands there already, trained here or elsewhere, is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mnist_exp.composition import CONF
from mnist_exp.runs import RunDirectoryError, read_run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
RUNS_CSV = RESULTS / "reproduction.csv"
CURVES_CSV = RESULTS / "reproduction_study_b_lenet5.csv"
FIGURE = ROOT / "docs" / "figures" / "reproduction_study_b.png"
COLUMNS = (
    *("preset", "seed", "epochs", "parameters", "train_accuracy", "test_loss", "test_accuracy"),
    *("train_seconds", "threads", "torch", "config_hash"),
)


@dataclass(frozen=True)
class Claim:
    """What a report says of one of its models; None where it says nothing.

    Attributes:
        low, high: test accuracies that would be called the same, from the digits that the report gives.
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


def train(preset: str, seed: int, runs: Path) -> None:
    """One run in a process of its own, unless it is complete."""
    directory = runs / preset / str(seed)
    try:
        status = read_run(directory).status
    except RunDirectoryError:
        status = "new"
    if status == "completed":
        return
    common = ["quiet=true", "logger=none", "trainer.threads=1"]
    new = [f"experiment={preset}", f"seed={seed}", f"hydra.run.dir={directory}", *common]
    arguments = new if status in {"new", "failed"} else [f"resume={directory}"]
    subprocess.run([sys.executable, "-m", "mnist_exp.train", *arguments], check=False)


def gather(runs: Path) -> None:
    """Bring the complete runs under ``runs`` into the CSV files, beside what they hold already."""
    rows = {(row["preset"], row["seed"]): row for row in read_csv(RUNS_CSV)}
    curves = {(row["seed"], row["epoch"]): row for row in read_csv(CURVES_CSV)}
    for preset in CLAIMS:
        for directory in sorted((runs / preset).glob("*")):
            run = read_run(directory)
            if run.status != "completed":
                continue
            final, record = run.record["final"], run.record
            rows[preset, str(record["seed"])] = {
                "preset": preset,
                "seed": str(record["seed"]),
                "epochs": str(final["epoch"]),
                "parameters": str(record["parameters"]),
                **{name: f"{final[name]:.6f}" for name in ("train_accuracy", "test_loss", "test_accuracy")},
                "train_seconds": f"{record['seconds']['train']:.1f}",
                "threads": str(record["threads"]),
                "torch": record["versions"]["torch"],
                "config_hash": record["config_hash"],
            }
            if preset == "study_b/lenet5":
                for line in run.metrics:
                    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
                    figures = {name: f"{line[name]:.6f}" for name in names}
                    key = (str(record["seed"]), str(line["epoch"]))
                    curves[key] = {"seed": key[0], "epoch": key[1], **figures}
    order = list(CLAIMS)
    write_csv(RUNS_CSV, sorted(rows.values(), key=lambda row: (order.index(row["preset"]), int(row["seed"]))))
    write_csv(CURVES_CSV, sorted(curves.values(), key=lambda row: (int(row["seed"]), int(row["epoch"]))))


def read_csv(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: Sequence[dict[str, str]]) -> None:
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def verdict(claim: Claim, parameters: int, accuracies: Sequence[float]) -> str:
    """The claim against the measurement: the same where they are within two standard deviations of the seeds, on top of
    the digits that the report rounds to."""
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


def table() -> Iterable[str]:
    yield "| preset | parameters claimed | computed | accuracy claimed | measured, mean ± std | n | verdict | train s |"
    yield "|---|---:|---:|---:|---:|---:|---|---:|"
    rows = read_csv(RUNS_CSV)
    for preset, claim in CLAIMS.items():
        runs = [row for row in rows if row["preset"] == preset]
        if not runs:
            yield f"| `{preset}` | | | {claim.accuracy or '-'} | not trained yet | 0 | | |"
            continue
        accuracies = [float(row["test_accuracy"]) for row in runs]
        parameters = int(runs[0]["parameters"])
        spread = f" ± {statistics.stdev(accuracies):.4f}" if len(accuracies) > 1 else ""
        seconds = statistics.median(float(row["train_seconds"]) for row in runs)
        claimed = f"{claim.parameters:,}" if claim.parameters else "-"
        yield (
            f"| `{preset}` | {claimed} | {parameters:,} | {claim.accuracy or '-'} | {statistics.mean(accuracies):.4f}{spread}"
            f" | {len(accuracies)} | {verdict(claim, parameters, accuracies)} | {seconds:.0f} |"
        )


def draw() -> None:
    """Study B's LeNet-5, epoch by epoch: each seed as a line, what the report says as dots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
            axes.plot(range(1, 11), claimed, "o", color=colour, markersize=4, label=f"{split}, as reported")
        axes.set_xlabel("epoch")
        axes.set_ylabel("accuracy, %" if name == "accuracy" else "loss, nats")
        axes.grid(alpha=0.3)
    right.set_ylim(97, 100)
    left.set_ylim(0, 0.15)
    right.legend(fontsize=8)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)


def write_document() -> None:
    """docs/reproduction.md: the table between its two markers is replaced, what people wrote around it stays."""
    path = ROOT / "docs" / "reproduction.md"
    before, _, rest = path.read_text(encoding="utf-8").partition("<!-- table -->\n")
    _, _, after = rest.partition("<!-- end of table -->\n")
    text = f"{before}<!-- table -->\n" + "\n".join(table()) + f"\n<!-- end of table -->\n{after}"
    path.write_text(text, encoding="utf-8")
    if read_csv(CURVES_CSV):
        draw()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="presets, or the beginning of their names")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at once, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("outputs/reproduction"), help="where the run directories lie")
    parser.add_argument("--document", action="store_true", help="train nothing")
    options = parser.parse_args()
    assert all((CONF / "experiment" / f"{preset}.yaml").exists() for preset in CLAIMS)
    chosen = [preset for preset in CLAIMS if preset.startswith(tuple(options.only))]
    if not chosen:
        parser.error(f"--only {' '.join(options.only)} fits none of {', '.join(CLAIMS)}")
    if not options.document:
        known = {(row["preset"], int(row["seed"])) for row in read_csv(RUNS_CSV)}
        # Seeds outermost: a stop leaves whole rounds behind.
        wanted = [(preset, seed) for seed in range(options.seeds) for preset in chosen]
        jobs = [(*job, options.runs) for job in wanted if job not in known]
        with ThreadPoolExecutor(options.processes) as pool:
            for _ in pool.map(lambda job: train(*job), jobs):
                gather(options.runs)
    gather(options.runs)
    write_document()


if __name__ == "__main__":
    main()
