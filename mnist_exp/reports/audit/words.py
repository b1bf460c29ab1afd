"""The tables and sentences of an audit, for the terminal, Markdown and the page."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mnist_exp.reports.audit.findings import Audited, Finding
from mnist_exp.reports.audit.results import values_at
from mnist_exp.reports.single_run import Judgement, Verdict
from mnist_exp.reports.statistics import Interval, over_seeds

WRONG = "wrong by counting"
COLUMNS = ("claim", "verdict", "claimed", "measured, mean ± std", "95 % of further runs", "n")

# Words of an audit, and what they mean.
MEANING = (
    (
        "Measured",
        "Mean and standard deviation of single runs over seeds, on the same test images as the report's. 95 % of further runs: "
        "the interval that contains the result of one more run of the recipe in 95 of 100 cases, Student's prediction interval "
        "for one observation: mean ± t · std · √(1 + 1/n)",
    ),
    (
        "Reproduced",
        "The claim, or a number that rounds to it, is within 1.96 standard deviations of the mean, where 95 % of runs would be if "
        "mean and standard deviation were known from infinitely many seeds",
    ),
    (
        "Not reproduced",
        "No number that rounds to the claim is in the prediction interval. If a report describes a run of this recipe, it is called "
        "so in at most 5 of 100 cases, so of 20 right claims one is expected to be",
    ),
    (
        "Cannot be told",
        "The claim is between these two limits: n seeds would allow it, infinitely many with the same mean and standard deviation "
        "would not. The number behind it is that of seeds with which the claim would be outside if both stay as they are",
    ),
    (
        "Several epochs",
        "Numbers after earlier epochs are one claim, judged by the number that is farthest from the runs. Each is judged at 5 % "
        "divided by their number (Bonferroni), so the whole curve is called not reproduced in at most 5 of 100 cases",
    ),
    (
        "Wrong by counting",
        "The network of the recipe has another number of trainable parameters. This needs no training, and leaves no doubt",
    ),
    (
        "Figures by epoch",
        "Thin lines are runs of the recipe, and the band is where 95 % of further runs are expected, at each epoch by itself. Dots "
        "are the claims, bars all values that round to them. Error is 100 % minus accuracy. The axis is logarithmic",
    ),
)


@dataclass(frozen=True)
class Line:
    """A line of the table of claims; a field without a value is empty.

    Attributes:
        verdict: a ``Verdict``, ``correct`` or ``WRONG``. seeds: behind it: how many are too few, and how many would do.
        further: the prediction interval. n: number of runs.
        sentence: what is not reproduced, wrong or open, in words.
    """

    claim: str
    claimed: str
    measured: str
    further: str = ""
    n: str = ""
    verdict: str = ""
    seeds: str = ""
    sentence: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """See ``COLUMNS``."""
        return self.claim, f"{self.verdict}{self.seeds}", self.claimed, self.measured, self.further, self.n


def lines(audited: Audited) -> Iterator[Line]:
    """The lines of one network: its parameters, then its results; a line without a verdict if it claims no result."""
    count = audited.count
    if count.claimed is not None:
        verdict, sentence = (WRONG, counted(audited)) if count.is_wrong else ("correct", "")
        yield Line("parameters", f"{count.claimed:,}", f"{count.total:,}", verdict=verdict, sentence=sentence)
    for finding in audited.findings:
        yield _line(finding)
    if not audited.findings:
        yield _unclaimed(audited)


def _line(finding: Finding) -> Line:
    worst, verdict = finding.worst, finding.verdict
    claimed = ", ".join(point.claimed.text for point in finding.points)
    if worst is None or worst.judgement is None or verdict is None:
        return Line(finding.title, claimed, "not measured yet", n="0")
    if len(finding.points) > 3:
        claimed = f"{len(finding.points)} numbers"
    if len(finding.points) > 1:
        claimed += f"; farthest: {worst.claimed.text}, epoch {worst.epoch}"
    judged = worst.judgement
    return Line(
        claim=finding.title,
        claimed=claimed,
        measured=spread(finding, judged),
        further=between(finding, judged.interval),
        n=str(judged.n),
        verdict=str(verdict),
        seeds=f" with {_number(judged.n, 'seed')} ({finding.needed} would)" if finding.needed else "",
        sentence="" if verdict == Verdict.REPRODUCED else _sentence(finding, judged),
    )


def _unclaimed(audited: Audited) -> Line:
    """The measured test accuracy of a network for which the report gives no result."""
    values = values_at(audited.runs, "test_accuracy", None)
    shown = "not measured yet"
    if values:
        sample = over_seeds(values)
        shown = f"{100 * sample.mean:.2f}" + (f" ± {100 * sample.std:.2f} %" if sample.std is not None else " %")
    return Line("test accuracy", "not given", shown, n=str(len(values)))


def spread(finding: Finding, judged: Judgement) -> str:
    """Mean and standard deviation."""
    scale, digits, unit = (100, 2, " %") if finding.is_fraction else (1, 4, "")
    std = "" if judged.std is None else f" ± {scale * judged.std:.{digits}f}"
    return f"{scale * judged.mean:.{digits}f}{std}{unit}"


def between(finding: Finding, interval: Interval | None) -> str:
    """A prediction interval."""
    if interval is None:
        return "-"
    scale, digits, unit = (100, 2, " %") if finding.is_fraction else (1, 4, "")
    low, high = max(0.0, interval.low), min(1.0, interval.high) if finding.is_fraction else interval.high
    return f"{scale * low:.{digits}f} to {scale * high:.{digits}f}{unit}"


def _sentence(finding: Finding, judged: Judgement) -> str:
    """By how much a claim differs from the runs, with the interval."""
    if judged.n == 1:
        return "One run does not show how much results differ from seed to seed."
    size = abs(judged.difference)
    apart = f"{100 * size:.2f} points" if finding.is_fraction else f"{size:.4f} nats"
    side = "below" if judged.difference < 0 else "above"
    if not judged.std:
        return (
            f"All {judged.n} runs give the same result, {apart} from the claim, so the spread over seeds is not known."
        )
    where = f" after epoch {finding.worst.epoch}" if finding.worst and finding.worst.epoch else ""
    return (
        f"The claim is {apart} {side} the mean of the runs{where}, {abs(judged.distance or 0):.1f} standard deviations; "
        f"{_per_cent_of_runs(len(finding.points))} are expected from {between(finding, judged.interval)}."
    )


def _per_cent_of_runs(values: int) -> str:
    return "95 % of further runs" if values == 1 else f"{100 - 5 / values:.3g} % of further runs"


def counted(audited: Audited) -> str:
    """Where a wrong count of parameters goes wrong."""
    count = audited.count
    assert count.claimed is not None
    total = f"{count.claimed:,} is claimed; the layers sum to {count.total:,} ({count.claimed - count.total:+,})."
    if not count.explanations:
        return f"{total} No single usual mistake gives that number."
    return f"{total} It would follow if {'; or if '.join(count.explanations)}."


def sum_of(audited: Audited) -> list[tuple[str, str, str, str]]:
    """Layer, how its parameters are counted, their number, and the sum up to it."""
    rows, so_far = [], 0
    for layer in audited.count.layers:
        so_far += layer.parameters
        rows.append((layer.name, layer.formula, f"{layer.parameters:,}", f"{so_far:,}"))
    return rows


def command(audited: Audited) -> str:
    """The command that trains the recipe once."""
    return shlex.join(["mnist-train", *audited.model.run])


def headline(networks: Sequence[Audited]) -> str:
    """The verdicts in one sentence."""
    verdicts = Counter(line.verdict for audited in networks for line in lines(audited))
    results = sum(verdicts[verdict] for verdict in Verdict)
    parts = []
    if results:
        shown = [f"{verdicts[verdict]} {verdict}" for verdict in Verdict if verdicts[verdict]]
        parts.append(f"{_number(results, 'claim')} about results: {', '.join(shown)}")
    if counts := verdicts[WRONG] + verdicts["correct"]:
        parts.append(f"{_number(counts, 'parameter count')}: {verdicts['correct']} correct, {verdicts[WRONG]} wrong")
    return "; ".join(parts) or "Nothing is measured yet"


def _number(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def more_seeds(networks: Sequence[Audited], options: Sequence[str]) -> list[str]:
    """The commands that train as many seeds as would decide what cannot be told yet, one for each claims file."""
    needed: dict[str, int] = {}
    for audited in networks:
        for finding in audited.findings:
            if finding.needed.isdigit():
                path = str(audited.report.path)
                needed[path] = max(needed.get(path, 0), int(finding.needed))
    return [shlex.join(["mnist-audit", path, "--seeds", str(number), *options]) for path, number in needed.items()]
