"""docs/reproduction.md and the error rates of docs/audits.md say what the results say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import reproduce

from mnist_exp.reports.figures import Figure


def test_documents_say_what_the_results_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    committed = {name: getattr(reproduce, name).read_text(encoding="utf-8") for name in ("DOCUMENT", "METHOD")}
    results = shutil.copy(reproduce.RESULTS_CSV, tmp_path / "results.csv")
    drawn: list[str] = []

    def draw(figure: Figure) -> str:
        drawn.append(figure.name)
        return ""

    monkeypatch.setattr(reproduce, "draw", draw)
    monkeypatch.setattr(reproduce, "RESULTS_CSV", Path(results))
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(reproduce, "PICTURES", tmp_path / "docs/figures/reproduction")
    monkeypatch.setattr(reproduce, "ERROR_RATES", tmp_path / "error_rates.svg")
    for name, text in committed.items():
        (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
        monkeypatch.setattr(reproduce, name, tmp_path / f"{name}.md")
    reproduce.main(["--seeds", "0"])
    for name, text in committed.items():
        assert (tmp_path / f"{name}.md").read_text(encoding="utf-8") == text
    assert Path(results).read_text() == (reproduce.RESULTS / "reproduction.csv").read_text(), "nothing is lost"
    shown = re.findall(r"figures/reproduction/([\w/]+)\.svg", committed["DOCUMENT"])
    assert sorted([*shown, "audit_error_rates"]) == sorted(drawn)
    folder = reproduce.FIGURES / "reproduction"
    assert {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.svg")} == set(shown)
