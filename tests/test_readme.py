"""Every command in the README and in the documents of results runs, and where it shows output, prints that."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_exp.runs import read_run
from mnist_exp.signals import StopRequest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A documented command trains for minutes; the same command with these trains for a second.
SHORT = ["data=mnist5k", "data.limit=128", "trainer.epochs=1", "trainer.threads=1", "logger.mode=offline"]


def commands(document: str) -> list[tuple[list[str], list[str]]]:
    """Commands of a document, split as a shell does, each with the output that it is shown with."""
    found: list[tuple[list[str], list[str]]] = []
    for block in BLOCK.findall((ROOT / document).read_text()):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((shlex.split(line[2:], comments=True), []))
            else:
                found[-1][1].append(line)
    return found


ALL = commands("README.md")
DOCUMENTS = ("reproduction", "regularization", "scaling", "records")
RESULTS = [command for name in DOCUMENTS for command in commands(f"docs/{name}.md")]
TRAIN = [(words, output) for words, output in ALL + RESULTS if words[0] == "mnist-train"]


def test_the_readme_begins_with_the_two_commands() -> None:
    assert [words for words, _ in ALL[:2]] == [["make", "quickstart"], ["make", "test"]]
    assert {words[0] for words, _ in ALL} <= {"make", "source", "mnist-train", "mnist-eval", "mnist-report"}


def test_scripts_of_the_documents_are_there() -> None:
    """What they do is tested in tests/scripts; with what they say, in test_campaign.py."""
    others = [words for words, _ in RESULTS if words[0] != "mnist-train"]
    assert {words[0] for words in others} == {"python"}
    assert all((ROOT / words[1]).exists() for words in others)


@pytest.mark.parametrize(("words", "output"), TRAIN, ids=[" ".join(words) for words, _ in TRAIN])
def test_train_command(
    words: list[str],
    output: list[str],
    mnist_train: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = words[1:]
    if output:
        assert mnist_train(*arguments) == 2
        assert capsys.readouterr().err.splitlines() == output
    elif "resume=DIR" in arguments:
        with monkeypatch.context() as patch:
            patch.setattr(StopRequest, "__call__", lambda request: setattr(request, "signal", 15) is None)
            assert mnist_train(*SHORT, "hydra.run.dir=DIR") == 143
        assert mnist_train(*arguments) == 0
        assert read_run(Path("DIR")).status == "completed"
    elif "--cfg" in arguments:
        assert mnist_train(*arguments) == 0
        assert "optimizer:" in capsys.readouterr().out
    else:
        if any("DIR" in word for word in arguments):
            assert mnist_train(*SHORT, "hydra.run.dir=DIR") == 0
        repeated = {word.partition("=")[0] for word in SHORT}
        kept = [word for word in arguments if word.partition("=")[0] not in repeated]
        assert mnist_train(*kept, *SHORT) == 0


def test_evaluate_and_report_commands(mnist_train: Callable[..., int]) -> None:
    assert mnist_train(*SHORT, "hydra.run.dir=DIR") == 0
    for words, _ in ALL:
        if words[0] in {"mnist-eval", "mnist-report"}:
            module = {"mnist-eval": "mnist_exp.evaluate", "mnist-report": "mnist_exp.report"}[words[0]]
            command = [sys.executable, "-m", module, *words[1:]]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


def installed() -> bool:
    """Whether make would find nothing to install."""
    stamp = ROOT / ".venv" / ".installed"
    sources = [ROOT / name for name in ("pyproject.toml", "constraints.txt")]
    return stamp.exists() and all(source.stat().st_mtime <= stamp.stat().st_mtime for source in sources)


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
