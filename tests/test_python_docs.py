"""The Python of docs/python.md and docs/extending.md, the examples and the notebook run as they stand, in fresh processes.

Commands of docs/extending.md, "Own network", are typed in a copy of the example's folder.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from documented_lines import ROOT
from warm_commands import WarmCommands

EXAMPLES = ROOT / "examples"
OWN_NETWORK = (
    (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").partition("## Own network")[2].partition("\n## ")[0]
)
Run = Callable[..., str]


@pytest.fixture
def shell(tmp_path: Path, warm_commands: WarmCommands, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Type a line into bash, in an empty folder unless another is given; returns what was printed."""
    monkeypatch.setenv("PATH", str(warm_commands.bin), prepend=":")

    def run(line: str, folder: Path = tmp_path) -> str:
        done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def program(pieces: list[str], folder: Path) -> str:
    """A command that runs the pieces one after the other, in one namespace, with warnings as errors."""
    body = ["import warnings", "warnings.simplefilter('error')", "space = {'__name__': '__main__'}"]
    body += [f"exec(compile({piece!r}, 'piece {number}', 'exec'), space)" for number, piece in enumerate(pieces, 1)]
    (folder / "program.py").write_text("\n".join(body))
    return "python program.py"


def test_python_md(shell: Run, tmp_path: Path) -> None:
    said = shell(program(blocks((ROOT / "docs" / "python.md").read_text(encoding="utf-8"), "python"), tmp_path))
    assert "trainer.epoch is not a key; did you mean trainer.epochs?" in said
    assert " diverged: " in said
    assert re.search(r"lenet5 +0\.01 +2 ", said), said
    assert "'0.weight'" in said or ".weight'" in said
    assert float(re.findall(r"epoch 3: test accuracy ([\d.]+)%", said)[0]) > 70


def test_own_loop(shell: Run) -> None:
    said = shell(f"python {EXAMPLES / 'own_loop.py'}")
    assert float(re.findall(r"epoch 3: test accuracy ([\d.]+)%", said)[0]) > 90


def test_the_loop_of_the_document_is_the_example() -> None:
    document = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    example = (EXAMPLES / "own_loop.py").read_text(encoding="utf-8")
    loop = example[example.index("optimizer =") :]
    assert loop in document
    assert len([line for line in example.partition("\n\n")[2].splitlines() if line]) <= 18


def test_notebook(shell: Run, tmp_path: Path) -> None:
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") for cell in notebook["cells"])  # it is kept without results
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    shell(program([*cells, "assert len(frame) == 4 and len(curves) == 4 and len(wrong) < 250"], tmp_path))


def test_own_network(shell: Run, tmp_path: Path) -> None:
    """Every command of the document, in its order; trainings and sweeps are made short at the end of the line."""
    folder = tmp_path / "own_network"
    shutil.copytree(EXAMPLES / "own_network", folder, ignore=shutil.ignore_patterns("__pycache__"))
    lines = [line.removeprefix("$ ") for block in blocks(OWN_NETWORK, "console") for line in block.splitlines()]
    short = " data.limit=128 trainer.threads=1 logger=none"
    said = {line: shell(line + (short if "model=mynet" in line else ""), folder) for line in lines}
    assert len(said) == 7
    statuses = [json.loads(path.read_text())["status"] for path in sorted(folder.rglob("run.json"))]
    assert statuses == ["completed"] * 4
    (evaluated,) = (said[line] for line in lines if line.startswith("mnist-eval"))
    assert "as the run recorded it" in evaluated
    (tested,) = (said[line] for line in lines if line.startswith("pytest"))
    assert "7 passed" in tested
    in_python = blocks(OWN_NETWORK, "python")
    check = "assert type(model).__name__ == 'MyNet' and not model.training and TestMyNet().build().training"
    shell(program([*in_python, check], folder), folder)


def test_own_network_is_refused_in_one_line(shell: Run, tmp_path: Path) -> None:
    folder = tmp_path / "own_network"
    shutil.copytree(EXAMPLES / "own_network", folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = sorted(path.name for path in folder.iterdir())
    said = shell("mnist-train --config-dir conf model=mynet model.width=0 data=mnist5k 2>&1; test $? = 2", folder)
    assert said == "mnist-train: model.width=0 should be at least 1\n"
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == before


def test_the_example_test_is_in_the_document() -> None:
    example = (EXAMPLES / "own_network" / "test_mynet.py").read_text(encoding="utf-8")
    assert example.partition('"""\n\n')[2] in blocks(OWN_NETWORK, "python")
