"""The report as one HTML file that needs no network: it contains all styles, scripts, figures and images."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from mnist_exp.data.files import cache_directory, is_private
from mnist_exp.errors import as_typed
from mnist_exp.reports import markdown, run_pages, tables
from mnist_exp.reports.answer import MEANING, Answer
from mnist_exp.reports.axes import Spec
from mnist_exp.reports.collect import Comparison
from mnist_exp.reports.figures import Figure, default_splits, for_page, recorded_splits, shown_arms, style
from mnist_exp.reports.pairwise import Pairwise
from mnist_exp.reports.reproduction import reproductions
from mnist_exp.reports.statistics import Interval
from mnist_exp.reports.tables import Row, columns
from mnist_exp.reports.test_set import HardDigit
from mnist_exp.runs import RunDirectoryError
from mnist_exp.runs.files import write_atomically

Parts = tuple[Comparison, Sequence[Row], Sequence[Pairwise], Sequence[Figure], Answer]


ENVIRONMENT = Environment(
    loader=PackageLoader("mnist_exp.reports", "page"),
    autoescape=select_autoescape(["j2"]),  # not the style sheet and the script
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
MANY = 12  # arms; the tables of more are folded, so that the figures come first


def page(
    comparison: Comparison,
    rows: Sequence[Row],
    pairs: Sequence[Pairwise],
    figures: Sequence[Figure],
    answer: Answer,
    folder: Path | None = None,
) -> str:
    """The content of ``report.html``.

    Args:
        folder: where the file will be; run directories are linked from there. None: they are not linked.
    """
    link = None if folder is None else partial(_relative, folder)
    values = _values(comparison, rows, pairs, figures, answer, link)
    return ENVIRONMENT.get_template("page.html.j2").render(
        **values, specs=_script_json(specs(figures)), library=_library(), live=False
    )


def live_page(report_parts: Parts, version: int) -> str:
    """The page of the live report; it asks the server for what changes.

    Args:
        report_parts: the arguments of ``page`` except the last.
        version: of the report.
    """
    return ENVIRONMENT.get_template("page.html.j2").render(
        **_values(*report_parts, run_pages.address), specs=_script_json(specs(report_parts[3])), library=_library(),
        live=True, version=version,
    )  # fmt: skip


def waiting_page() -> str:
    """The page of the live report while there is no run."""
    return ENVIRONMENT.get_template("page.html.j2").render(
        answer=None, specs=_script_json({}), library=_library(), live=True, version=0
    )


def live_body(report_parts: Parts) -> str:
    """The part of the page that changes."""
    return ENVIRONMENT.get_template("body.html.j2").render(**_values(*report_parts, run_pages.address))


def specs(figures: Sequence[Figure]) -> dict[str, Spec]:
    """The specification of each figure for the page, by name."""
    return {figure.name: for_page(figure) for figure in figures}


def _values(
    comparison: Comparison,
    rows: Sequence[Row],
    pairs: Sequence[Pairwise],
    figures: Sequence[Figure],
    answer: Answer,
    link: Callable[[str], str] | None,
) -> dict[str, Any]:
    """The values of the template; ``link`` gives the address of a run directory, None without links."""
    drawn = shown_arms(rows)
    errors = next((figure for figure in figures if figure.name == "confusion"), None)
    curves = [figure for figure in figures if figure.section == "curves"]
    epochs = [value["epoch"] for figure in curves for value in figure.spec["data"]["values"]]
    splits = [recorded_splits(figure) for figure in curves]
    opponents = [contrast.opponent for contrast in answer.contrasts] or [row.arm for row in rows[1:]]
    shown = columns(rows)
    return {
        "comparison": comparison,
        "rows": rows,
        "single": len(rows) == 1,
        "many": len(rows) > MANY,
        "heading": markdown.heading(comparison),
        "answer": answer,
        "meaning": MEANING,
        "facts": [
            (column.title, text) for column in shown[1:] if (text := column.show(rows[0])) not in {"-", "", "one seed"}
        ],
        "by_validation": tables.is_ranked_by_validation(rows),
        "chosen": markdown.baseline_sentence(comparison),
        "columns": shown,
        "pairs": pairs,
        "baseline": comparison.arms[comparison.baseline],
        "sides": [arm.label for arm in (rows[0].arm, *opponents[:1])],
        "sections": {
            name: [figure for figure in figures if figure.section == name]
            for name in ("answer", "curves", "pairwise", "costs", "settings", "errors")
        },
        "splits": max(splits, key=len, default=[]),
        "first_splits": default_splits(drawn),
        "several_seeds": any(len(arm.runs) + len(arm.others) > 1 for arm in drawn),
        "epochs": (min(epochs, default=1), max(epochs, default=1)),
        "switches": [(arm.label, *style(index)) for index, arm in enumerate(drawn)],
        "hidden_arms": len(rows) - len(drawn),
        "confused": list(dict.fromkeys(cell["arm"] for cell in errors.spec["data"]["values"])) if errors else [],
        "first_confused": errors.spec["params"][0]["value"] if errors else "",
        "digits": [_digit(digit) for digit in comparison.hard_digits],
        "reproductions": reproductions(comparison),
        "link": link,
    }


def _relative(folder: Path, directory: str) -> str:
    """The address of a run directory, relative to the folder of the report."""
    try:
        return quote(Path(os.path.relpath(directory, folder)).as_posix() + "/")
    except ValueError:  # on another drive
        return Path(directory).absolute().as_uri()


def _unbroken(text: str) -> str:
    """Text in which a line does not end between a number and its percent sign, or in a p-value."""
    return re.sub(r" (?=%|[=<])|(?<=[=<]) ", "\u00a0", text)


def _points(value: Interval) -> str:
    """An interval of differences in percentage points."""
    return f"{100 * value.low:+.2f} to {100 * value.high:+.2f}"


ENVIRONMENT.filters.update(
    percent=tables.percent,
    interval=tables.interval,
    p_value=tables.p_value,
    as_typed=as_typed,
    points=_points,
    unbroken=_unbroken,
)


def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script. Making it takes a second, so it is stored in the user's cache folder."""
    folder = cache_directory() / "report"
    stored = folder / f"vega-{version('vl-convert-python')}.js.gz"
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    script, is_trusted = None, is_private(folder)  # what others may write must not get into a page
    if is_trusted:
        with suppress(OSError, EOFError, zlib.error, UnicodeDecodeError):  # it is missing or damaged
            script = gzip.decompress(stored.read_bytes()).decode()
    if script is None:
        import vl_convert

        script = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub wants an argument that has a default
        if is_trusted:
            with suppress(OSError, RunDirectoryError):
                write_atomically(stored, gzip.compress(script.encode()))
    return script.replace("</script", "<\\/script")


def _png_of(pixels: Any) -> bytes:
    """A test image as PNG bytes, see ``picture_of``."""
    from mnist_exp.pictures import picture_of

    buffer = io.BytesIO()
    picture_of(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _digit(digit: HardDigit) -> dict[str, Any]:
    likely = digit.probabilities.argsort()[::-1][:3]
    return {
        "source": "data:image/png;base64," + base64.b64encode(_png_of(digit.pixels)).decode(),
        "label": digit.label,
        "index": digit.index,
        "wrong": digit.wrong,
        "runs": digit.runs,
        "likely": [(int(number), float(digit.probabilities[number])) for number in likely],
    }


def _script_json(value: object) -> str:
    """JSON for a script element, which it cannot end because it contains no ``<``."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
