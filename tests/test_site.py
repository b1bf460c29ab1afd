"""The documentation site is built without warnings and without the network, and needs none to be read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from documented_lines import ROOT

pytest.importorskip("mkdocs")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]  # it is built once, by one test process
# A browser follows these by itself, whatever the reader does.
FETCHED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1", "no_proxy": "", "NO_PROXY": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    return folder


def fetched(page: Path) -> list[str]:
    found: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, Any]]) -> None:
            found.extend(str(value) for name, value in attributes if (tag, name) in FETCHED)

    Parser().feed(page.read_text(encoding="utf-8"))
    return found


def test_every_document_is_a_page(site: Path) -> None:
    documents = [file.relative_to(ROOT / "docs").with_suffix("") for file in (ROOT / "docs").rglob("*.md")]
    assert all((site / name / "index.html").is_file() for name in documents)
    assert all((site / name / "index.html").is_file() for name in ("contributing", "changelog", "security"))
    assert "make quickstart" in (site / "index.html").read_text(encoding="utf-8").replace(
        '<span class="w"> </span>', " "
    )


def test_docstrings_are_there(site: Path) -> None:
    for page, names in {"python": ["load_runs"], "models": ["LeNet5_1998"], "training": ["on_epoch", "fit"]}.items():
        text = (site / "api" / page / "index.html").read_text(encoding="utf-8")
        assert all(name in text for name in names)
        assert "Raises:" in text or "Parameters:" in text


def test_source_files_that_documents_link_to_are_pages(site: Path) -> None:
    assert "seed: 0" in re.sub(r"<[^>]*>", "", (site / "source/conf/train.yaml/index.html").read_text(encoding="utf-8"))
    assert "kernels/lenet5.h" in (site / "source/mnist_exp/native/index.html").read_text(encoding="utf-8")


def test_reading_needs_no_network(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert {link for page in pages for link in fetched(page) if re.match(r"(https?:)?//", link)} == set()
    assert not any("@import" in file.read_text(encoding="utf-8") for file in site.rglob("*.css"))
