"""The report as one HTML file that needs no network: it contains all styles, scripts, figures and images."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mnist_exp.errors import as_typed
from mnist_exp.reports import markdown, tables
from mnist_exp.reports.answer import Answer
from mnist_exp.reports.collect import Comparison
from mnist_exp.reports.figures import Figure, for_page, shown_arms, style
from mnist_exp.reports.pairwise import Pairwise
from mnist_exp.reports.reproduction import reproductions
from mnist_exp.reports.tables import Row, columns
from mnist_exp.reports.test_set import HardDigit


def page(
    comparison: Comparison, rows: Sequence[Row], pairs: Sequence[Pairwise], figures: Sequence[Figure], answer: Answer
) -> str:
    """The content of ``report.html``."""
    environment = Environment(
        loader=PackageLoader("mnist_exp.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=tables.percent, interval=tables.interval, p_value=tables.p_value, as_typed=as_typed
    )
    curves = shown_arms(rows)
    errors = next((figure for figure in figures if figure.name == "confusion"), None)
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        rows=rows,
        heading=markdown.heading(comparison),
        chosen=markdown.baseline_sentence(comparison),
        columns=columns(rows),
        pairs=pairs,
        baseline=comparison.arms[comparison.baseline],
        sections={
            name: [figure for figure in figures if figure.section == name]
            for name in ("answer", "curves", "pairwise", "costs", "settings", "errors")
        },
        switches=[(arm.label, *style(index)) for index, arm in enumerate(curves)],
        hidden_arms=len(rows) - len(curves),
        confused=list(dict.fromkeys(cell["arm"] for cell in errors.spec["data"]["values"])) if errors else [],
        first_confused=errors.spec["params"][0]["value"] if errors else "",
        digits=[_digit(digit) for digit in comparison.hard_digits],
        reproductions=reproductions(comparison),
        answer=answer,
        meaning=markdown.MEANING,
        specs=_script_json({figure.name: for_page(figure) for figure in figures}),
        library=_library(),
    )


def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    import vl_convert

    script = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub wants an argument that has a default
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
