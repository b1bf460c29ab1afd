"""The README begins with two commands; the first of them is run here. tests/test_documented_lines.py runs the others."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from documented_lines import ROOT, documented


def test_the_readme_begins_with_the_two_commands() -> None:
    first, second, *_ = (line.text for line in documented() if line.where.startswith("README.md"))
    assert first.startswith("make quickstart ")
    assert second.startswith("make test ")


def installed() -> bool:
    """Whether make would find nothing to install."""
    stamp = ROOT / ".venv" / ".installed"
    sources = [ROOT / name for name in ("pyproject.toml", "constraints.txt")]
    return stamp.exists() and all(source.stat().st_mtime <= stamp.stat().st_mtime for source in sources)


@pytest.mark.skipif(not installed(), reason="make quickstart would install first")
def test_activated_commands_are_the_installed_ones() -> None:
    command = "source .venv/bin/activate && command -v mnist-train"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == ROOT / ".venv" / "bin" / "mnist-train"


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="make quickstart would install first")
def test_quickstart() -> None:
    """In an installed checkout it installs nothing again, trains, and says where everything lies."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "MAKE"))}
    done = subprocess.run(
        ["make", "quickstart"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Installing" not in done.stdout
    accuracy = re.search(r"LeNet-5 \| test accuracy ([\d.]+)%", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 96.0
    assert "outputs/quickstart" in done.stdout
    directory = re.search(r"run directory: (\S+)", done.stdout)
    assert directory is not None
    assert (ROOT / directory[1] / "run.json").exists()
