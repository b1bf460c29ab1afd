"""The report as Markdown, for a repository or an issue: the same tables, figures by relative path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mnist_exp.errors import as_typed, printable
from mnist_exp.reports.answer import MEANING, Answer
from mnist_exp.reports.collect import Comparison
from mnist_exp.reports.figures import Figure
from mnist_exp.reports.pairwise import Pairwise
from mnist_exp.reports.reproduction import reproductions
from mnist_exp.reports.tables import Row, columns, interval, p_value, percent


def document(
    comparison: Comparison, rows: Sequence[Row], pairs: Sequence[Pairwise], figures: Sequence[Figure], answer: Answer
) -> str:
    """The content of ``report.md``."""
    parts = _answer(comparison, figures, answer)
    parts.append("\n".join(f"- {cell(note)}" for note in comparison.notes))
    parts.append("## What differs")
    if comparison.varied:
        heads = ["arm", *(column.title for column in comparison.varied)]
        parts.append(
            table(
                heads,
                (
                    [arm.label, *(column.shown(i) for column in comparison.varied)]
                    for i, arm in enumerate(comparison.arms)
                ),
            )
        )
    shared = "\n".join(f"{key}={as_typed(value)}" for key, value in comparison.common.items())
    parts.append(f"<details><summary>Settings that all arms share</summary>\n\n{code_block(shared)}\n\n</details>")
    parts += ["## Arms", arms_table(rows)]
    parts += ["## Curves", *pictures(figures, "curves")]
    parts += [
        f"## Against the baseline: {cell(comparison.arms[comparison.baseline].label)}",
        cell(baseline_sentence(comparison)),
    ]
    parts += [pairs_table(pairs), METHOD, *pictures(figures, "pairwise")]
    parts += ["## Costs and settings", *pictures(figures, "costs"), *pictures(figures, "settings")]
    parts += ["## Errors", *pictures(figures, "errors")]
    if comparison.hard_digits:
        digits = (
            [
                str(d.index),
                str(d.label),
                str(int(d.probabilities.argmax())),
                percent(float(d.probabilities.max()), 0),
                percent(float(d.probabilities[d.label]), 0),
                f"{d.wrong} of {d.runs}",
            ]
            for d in comparison.hard_digits
        )
        heads = ["test image", "label", "most likely answer", "probability", "probability of the label", "runs wrong"]
        parts += ["Digits that most runs get wrong:", table(heads, digits)]
    parts += ["## Not counted", problems_table(comparison)]
    parts.append("## Reproduce")
    for item in reproductions(comparison):
        parts.append(f"**{cell(item.label)}**\n\n" + code_block("\n".join(item.commands)))
        parts.append(cell(f"git {item.commit}; {item.versions}; {item.hardware}"))
    return "\n\n".join(part for part in parts if part) + "\n"


def _answer(comparison: Comparison, figures: Sequence[Figure], answer: Answer) -> list[str]:
    parts = [f"# {cell(answer.title)}", cell(answer.facts)]
    for contrast in answer.contrasts:
        parts += [cell(contrast.sentence), *map(code_block, contrast.commands)]
    parts += [f"To train more seeds:\n\n{code_block(command)}" for command in answer.more_seeds]
    parts += [*pictures(figures, "answer"), f"{heading(comparison)}."]
    if answer.contrasts:
        parts.append("\n".join(f"- **{title}**: {text}" for title, text in MEANING))
    return parts


def heading(comparison: Comparison) -> str:
    """The number of runs and of arms."""
    runs, arms = comparison.found, len(comparison.arms)
    number = f"{runs} run{'' if runs == 1 else 's'}"
    if arms == 1:
        (arm,) = comparison.arms
        all_in_arm = len(arm.runs) + len(arm.others) == runs  # else some are unreadable or repeated
        return f"Report on {number}" + (" that differ in their seed" if runs > 1 and all_in_arm else "")
    return f"Comparison of {number} in {arms} arms"


def baseline_sentence(comparison: Comparison) -> str:
    """The baseline and the reason for it, in words."""
    return f"The baseline is {comparison.arms[comparison.baseline].label}: {comparison.reason}."


METHOD = (
    "Differences are arm minus baseline, in percentage points of test accuracy. Over seeds (training with other seeds): "
    "Student's paired t-test, or Welch's if fewer than two seeds are shared. Over images (testing on other images): McNemar's "
    "mid-p test on each pair of networks, merged over seeds. P-values are corrected for the number of comparisons by Holm's "
    "method."
)


def arms_table(rows: Sequence[Row]) -> str:
    """The table of arms."""
    shown = columns(rows)
    return table([column.title for column in shown], ([column.show(row) for column in shown] for row in rows))


def pairs_table(pairs: Sequence[Pairwise]) -> str:
    """The table of comparisons with the baseline."""
    heads = [
        "arm",
        "verdict",
        "difference, points",
        "test images",
        "95 % over seeds",
        "p, seeds (Holm)",
        "95 % over images",
        "p, images (Holm)",
    ]
    return table(
        heads,
        (
            [
                pair.arm.label,
                pair.verdict,
                pair.effect,
                pair.in_images,
                interval(pair.seeds.interval if pair.seeds else None),
                p_value(pair.seeds_p),
                interval(pair.images.interval if pair.images else None),
                p_value(pair.images_p),
            ]
            for pair in pairs
        ),
    )


def problems_table(comparison: Comparison) -> str:
    """Runs that are not counted, and why."""
    if not comparison.problems:
        return f"All {comparison.found} runs that were found are counted."
    return table(
        ["directory", "status", "epochs", "reason"],
        ([problem.path, problem.status, str(problem.epochs), problem.reason] for problem in comparison.problems),
    )


def pictures(figures: Sequence[Figure], section: str) -> list[str]:
    return [f"![{cell(f.title)}](figures/{f.name}.svg)\n\n{cell(f.caption)}" for f in figures if f.section == section]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(heads), ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines)


def cell(text: str) -> str:
    return _words(" ".join(text.split())).replace("|", "\\|")


def _words(text: str) -> str:
    """Text that Markdown shows as it is: HTML, links, pictures and code, which a record may contain, are escaped.

    Underscores and stars are not escaped, because that would make the names of keys hard to read.
    """
    safe = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace("`", "\\`")
    # A bracket ends the text of a link only if a parenthesis, a colon or another bracket follows.
    safe = re.sub(r"\](?=\s*[\[(:])", r"\\]", safe)
    return re.sub(r"\b(https?|ftp|javascript|data|www)([:.])", r"\1&#8203;\2", safe, flags=re.IGNORECASE)


def code_block(text: str) -> str:
    # A row of as many backquotes in the text would end the block.
    fence = "`" * max(3, 1 + max((len(marks) for marks in re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
