"""Audit the five studies and the paper of 1998 in claims/, and write docs/reproduction.md and the error rates of docs/audits.md.

    python scripts/reproduce.py                         # 21 networks, 10 seeds each, as far as docs/results lacks them
    python scripts/reproduce.py --seeds 0               # train nothing, write the documents from docs/results
    python scripts/reproduce.py hydra/launcher=joblib   # takes settings of mnist-train -m

You can stop and repeat the command: complete runs are kept, and interrupted runs continue.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from campaign import FIGURES, RESULTS, ROOT, write_between_markers
from numpy.typing import NDArray

from mnist_exp.audit import audit_reports
from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.reports.audit.document import Audit, markdown, write_pictures
from mnist_exp.reports.audit.findings import Audited
from mnist_exp.reports.axes import Spec
from mnist_exp.reports.figures import Figure, draw
from mnist_exp.reports.figures.parts import COLOURS, layer
from mnist_exp.reports.single_run import Verdict, distances, is_inside, is_outside

CLAIMS = ROOT / "claims"
RESULTS_CSV = RESULTS / "reproduction.csv"
DOCUMENT = ROOT / "docs" / "reproduction.md"
METHOD = ROOT / "docs" / "audits.md"
PICTURES = FIGURES / "reproduction"
ERROR_RATES = FIGURES / "audit_error_rates.svg"
INTRODUCTION = """\
Five public course reports trained LeNet-5 and an MLP of about its size on MNIST and regularised LeNet-5. The paper that published
LeNet-5 and MNIST is the sixth report. Their claims are in
[`claims/`](../claims), every network is a preset in [`conf/experiment/`](../conf/experiment), and all were trained on the official
splits. The test set selected nothing: the result is the last epoch, as in the reports. This document is written by a script from
[`results/reproduction.csv`](results/reproduction.csv); [how the verdicts are made](audits.md).

```console
$ python scripts/reproduce.py --seeds 0    # write it again
$ python scripts/reproduce.py              # first train what the file lacks of 10 seeds for each network
```

Runs that have only their last epoch in the file were made by an earlier version, with PyTorch in place of the kernels and the same
settings; figures by epoch show their last epoch only."""

DRAWS = 20_000
SEEDS = (2, 3, 5, 10, 30)
RIGHT = {
    "a run of the recipe": {},
    "the same, rounded to half a standard deviation": {"rounding": 0.5},
    "the same, skewed (gamma distribution, shape 4)": {"skewed": True},
    "a curve of 9 epochs, correlated 0.5": {"values": 9},
}


def simulated(
    n: int, *, distance: float | None = None, rounding: float = 0.0, skewed: bool = False, values: int = 1
) -> dict[Verdict, float]:
    """The share of each verdict in simulated audits.

    Args:
        n: seeds. values: numbers of one claim, correlated 0.5.
        distance: of the claim from the true mean, in standard deviations; None: the claim is one more run.
        rounding: unit of the claim's last digit, in standard deviations.
    """
    random = np.random.default_rng(0)

    def runs(number: int) -> NDArray[np.float64]:
        if skewed:
            return 2 - random.gamma(4, 0.5, (DRAWS, number, values))  # standard deviation 1
        shared, own = random.normal(size=(DRAWS, number, 1)), random.normal(size=(DRAWS, number, values))
        return own if values == 1 else np.sqrt(0.5) * (shared + own)

    measured = runs(n)
    claim = runs(1)[:, 0] if distance is None else np.full((DRAWS, values), distance)
    if rounding:
        claim = np.round(claim / rounding) * rounding
    apart = distances(claim - rounding / 2, claim + rounding / 2, measured.mean(axis=1), measured.std(axis=1, ddof=1))
    outside, inside = is_outside(apart, n, values).any(axis=1), is_inside(apart, n, values).all(axis=1)
    rates = {Verdict.REPRODUCED: inside.mean(), Verdict.NOT_REPRODUCED: outside.mean()}
    return {
        **{verdict: float(rate) for verdict, rate in rates.items()},
        Verdict.CANNOT_BE_TOLD: float((~inside & ~outside).mean()),
    }


def error_rates() -> Iterable[str]:
    """The table of verdicts about right claims."""
    yield f"| right claim, {DRAWS:,} simulated audits | n | {' | '.join(Verdict)} |"
    yield "|---|---:|---:|---:|---:|"
    for name, options in RIGHT.items():
        for n in SEEDS:
            rates = simulated(n, **options)
            yield f"| {name} | {n} | {' | '.join(f'{100 * rates[verdict]:.1f} %' for verdict in Verdict)} |"


def figure_of_error_rates() -> Figure:
    """The share of each verdict by the true distance of a claim."""
    colours = dict(zip(Verdict, (COLOURS[2], COLOURS[1], COLOURS[4]), strict=True))
    values = [
        {"seeds": f"{n} seeds", "distance": distance, "verdict": str(verdict), "share": rate}
        for n in (3, 5, 10, 30)
        for distance in np.arange(0, 8.01, 0.25).tolist()
        for verdict, rate in simulated(n, distance=distance).items()
    ]
    x = {
        "field": "distance",
        "type": "quantitative",
        "title": "distance of the claim from the true mean, standard deviations",
    }
    y: Spec = {"field": "share", "type": "quantitative", "title": "share of audits", "axis": {"format": "%"}}
    colour = {"field": "verdict", "type": "nominal", "title": None,
              "scale": {"domain": [str(verdict) for verdict in colours], "range": list(colours.values())}}  # fmt: skip
    dash = {"field": "seeds", "type": "nominal", "title": None, "sort": None,
            "scale": {"range": [[2, 2], [5, 3], [9, 3], [1, 0]]}}  # fmt: skip
    line = {"type": "line", "strokeWidth": 1.8}
    spec = {"data": {"values": values}, **layer(line, x=x, y=y, color=colour, strokeDash=dash)}
    return Figure("audit_error_rates", "Verdicts about claims at a known distance", "", "answer", spec, width=560)


def _without_this_machine(audited: Audited) -> Audited:
    """The network without its runs here that do not count, and with the path of its claims in the repository."""
    path = audited.report.path.relative_to(CLAIMS.parent)
    return replace(audited, problems=(), report=replace(audited.report, path=path))


def write_documents(audit: Audit) -> None:
    """Write both documents and their figures."""
    shown = Audit([_without_this_machine(audited) for audited in audit.networks])
    title, _, rest = markdown(shown, PICTURES.relative_to(ROOT / "docs").as_posix()).partition("\n\n")
    title = title.replace("# Audit: ", "")
    DOCUMENT.write_text(
        f"# The five studies and the paper of 1998, trained again\n\n{INTRODUCTION}\n\n**{title}.**\n\n{rest}",
        encoding="utf-8",
    )
    write_pictures({figure.name: draw(figure) for figure in shown.figures}, PICTURES)
    write_between_markers(METHOD, "error rates", error_rates())
    ERROR_RATES.write_text(draw(figure_of_error_rates()), encoding="utf-8")


@exit_status("reproduce.py")
@printing()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", default=[], help="settings of mnist-train -m, such as a launcher")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each network; default: 10")
    options = parser.parse_args(arguments)
    audit, _ = audit_reports([CLAIMS], options.seeds, RESULTS_CSV, options.overrides)
    write_documents(audit)


if __name__ == "__main__":
    main()
