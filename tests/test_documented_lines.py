"""Every documented line runs as it is typed: by a shell, in a process of its own, in an empty folder.

Long trainings are made short by overrides at the end of the line; what is typed stays as it is. Lines that show their
output print that. The shell is bash; zsh, which reads brackets as patterns, passes the same arguments on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from documented_examples import Examples
from documented_lines import COMMANDS, ROOT, Line, documented, in_help
from warm_commands import WarmCommands

BIN = Path(sys.executable).parent
# Lines that need what not every machine has, or that do nothing here, by their beginning or a part, and where they are tested.
ELSEWHERE = {
    "make quickstart": "tests/test_readme.py runs it",
    "make test": "is what runs this",
    "venv": "comes before what fetches packages",
    "pip install": "fetches packages; tests/test_install.py installs the wheel",
    "source ": "tests/test_readme.py: the activated commands are those of this file",
    "hydra/launcher=submitit_slurm": "needs Slurm: tests/sweeps/test_slurm.py; its overrides are tested below",
    "launcher=ray": "needs a Ray cluster: tests/sweeps/test_ray.py; its overrides are tested below",
    "hydra.launcher.ray": "an override of hydra/launcher=ray; tests/sweeps/test_ray.py composes it",
    "wandb sweep": "needs a server; tests/sweeps/test_wandb.py has a stand-in",
    "wandb agent": "needs a server; tests/sweeps/test_wandb.py has a stand-in",
    "--wandb-sync": "needs a server; tests/sweeps/test_wandb.py has a stand-in",
    "records.py --document --tried": "needs runs with validation data; tests/scripts/test_campaign.py has them",
    "growth --write": "takes an hour; tests/scripts/test_benchmark.py runs each candidate and writes the document",
    "mynet": "a network of examples/own_network: tests/test_python_docs.py types these lines there",
    "sweep=mlp_width,mlp_depth": "is shown as what is refused",
    "lr=0.1,seed=3": "the name of a directory",
}
REPLACED = {"image...": "digit.png", "DIR...": "DIR", "seed=N": "seed=7"}  # what stands for something of the user's
TRAINING = ("data.limit=128", "trainer.epochs=1", "trainer.threads=1", "trainer.device=cpu")
# A sweep of a preset is made as short as one that still has several jobs.
SWEEPS = {
    "mlp_width": ["'model.hidden=[8,8],[16,16]'", "seed=0"],
    "mlp_depth": ["model.depth=1,2", "seed=0"],
    "lenet5_variants": ["model.activation=relu", "model.padding=2,0", "model.pooling=max", "seed=0"],
    "regularization": ["regularization=none,dropout", "seed=0"],
    "learning_rate": ["optimizer.lr=0.01,0.1", "seed=0"],
    "data_fraction": ["data.limit=100,128", "seed=0"],
    "seeds": ["seed=0,1"],
    "search": ["hydra.sweeper.n_trials=1"],
}
CAMPAIGN = ["--seeds 1", "data.limit=64", "trainer.epochs=1", "trainer.threads=1", "logger=none"]
SCRIPTS = {
    "reproduce": ["--seeds 0"],
    "regularization": ["--document"],  # tests/scripts/test_campaign.py trains with it
    "scaling": ["--only 'hidden=[8,8]'", *CAMPAIGN],
    "records": ["--only record/mlp", *CAMPAIGN],
    "sequential": ["--sweeps 2"],
    "benchmark": ["--repetitions 1", "--images 256", "--only 'bare loop'"],
    "benchmark_sweep": ["--jobs 2", "--epochs 1", "--images 64"],
    "benchmark_report": ["--runs 4", "--seeds 2", "--epochs 2", "--images 100"],
}
SIZES = {
    "--sweeps",
    "--seeds",
    "--runs",
    "--epochs",
    "--images",
    "--jobs",
    "--repetitions",
}  # the last one given counts
PRINTS_ONLY = re.compile(r"--(help|cfg|info|hydra-help|version)\b")


def without_comment(text: str) -> str:
    return re.sub(r"\s+#.*", "", text)


def runnable(lines: list[Line]) -> list[Line]:
    """Each line once, without those that are tested elsewhere."""
    found: dict[str, Line] = {}
    for line in lines:
        if not any(part in line.text for part in ELSEWHERE):
            found.setdefault(without_comment(line.text), line)
    return list(found.values())


DOCUMENTED = documented()
LINES = runnable(DOCUMENTED)
# One of each kind, and one of each script: without the server that has everything imported already.
COLD = {
    *(
        "mnist-train data=mnist5k",
        "mnist-train -m seed=0,1,2",
        "mnist-train trainer.epoch=20",
        "mnist-train resume=DIR",
    ),
    *("mnist-train --cfg job --resolve", "mnist-train -m sweep.resume=DIR", "mnist-eval DIR", "mnist-report DIR"),
    "mnist-audit examples/claims/made_up.yaml --seeds 3",
    *(
        "mnist-train -m sweep=search hydra.sweeper.n_trials=1",
        "mnist-predict runs/lenet5-0 digit.png",
        "mnist-demo runs",
    ),
    *(f"python scripts/{name}.py --document" for name in ("records", "regularization", "scaling", "benchmark")),
    "python scripts/reproduce.py --seeds 0",
    "python scripts/sequential.py --write",
    "python scripts/draw.py model=lenet5 --output lenet5.png",
    "python scripts/benchmark_sweep.py cost",
    "python scripts/wandb_sweep.py sweep=search > sweep.yaml",
    "python scripts/benchmark_report.py --runs 1000 --epochs 50 --images 10000",
}


SERVES = re.compile(r"^mnist-demo|--serve\b")  # runs until it is interrupted


def as_typed(line: Line) -> str:
    """The line, without what stands for something of the user's."""
    text = line.text
    for word, replacement in REPLACED.items():
        text = text.replace(word, replacement)
    return text


def shortened(text: str) -> str:
    """The line with overrides at its end, before a comment."""
    command, comment = re.fullmatch(r"(.*?)(\s+[#|].*)?", text).groups()  # type: ignore[union-attr]
    more: list[str] = []
    if command.startswith("mnist-train") and not PRINTS_ONLY.search(command) and "resume=" not in command:
        preset = re.search(r"\bsweep=(\w+)", command)
        # W&B, the default, only in lines of COLD and where the line is about it: it takes as long as all the rest.
        logger = "logger.mode=offline" if command in COLD or re.search("logger|wandb", command) else "logger=none"
        more = [*TRAINING, logger, *(SWEEPS.get(preset[1], ["seed=0"]) if preset else [])]
        if "sweep.until" in command:
            more += ["sweep.max_seeds=3"]
        if preset and preset[1] == "data_fraction":
            more.remove("data.limit=128")
    elif script := re.match(r"python scripts/(\w+)\.py", command):
        more = SCRIPTS.get(script[1], []) if "--document" not in command else []
    elif SERVES.search(command):
        more = ["--port 0"]
    given = {key for key, value in re.findall(r"([\w./]+|--\w+)[= ](\S+)", command) if key not in SIZES}
    given |= {"logger.mode"} if "logger=none" in command else set()
    given |= {"--seeds"} if "--seeds 0" in command else set()
    return " ".join([command, *(word for word in more if re.split("[= ]", word.strip("'"))[0] not in given)]) + (
        comment or ""
    )


@pytest.fixture(scope="session")
def examples(warm_commands: WarmCommands, shared_folder: Path) -> Examples:
    return Examples(shared_folder / "examples", shared_folder / "cache of examples", warm_commands)


def type_in(line: Line, where: Path, examples: Examples, environment: dict[str, str]) -> None:
    """Type the line into bash, and look at what it did."""
    text = as_typed(line)
    examples.provide(text, where)
    if SERVES.search(text):
        return serve(shortened(text), where, environment)
    done = subprocess.run(
        ["bash", "-c", shortened(text)], cwd=where, env=environment, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    refused = any(shown.startswith("mnist-") for shown in line.output)
    assert done.returncode == (2 if refused else 0), said
    if line.output:
        pattern = "\n".join(".*" if shown.strip() == "..." else re.escape(shown) for shown in line.output)
        assert re.fullmatch(pattern + "\n?", said, re.DOTALL), said
    if not refused:
        look_at_results(text, where, said)
    return None


def look_at_results(text: str, where: Path, said: str) -> None:
    if PRINTS_ONLY.search(text):
        assert "optimizer:" in said or "--cfg" not in text
    elif text.startswith("mnist-train"):
        statuses = {json.loads(path.read_text())["status"] for path in where.rglob("run.json")}
        assert statuses == {"completed"}
    elif text.startswith("mnist-eval"):
        assert "test accuracy" in said
        assert list(where.rglob("evaluation.json"))
    elif text.startswith("mnist-report"):
        output = re.search(r"--output (\S+)", text)
        folder = where / (output[1] if output else "outputs/report")
        assert {"report.html", "report.md", "results.csv"} <= {path.name for path in folder.iterdir()}
        assert (folder / "wandb_report.json").exists() == ("--wandb-dry-run" in text)
    elif text.startswith("mnist-predict"):
        assert "%" in said or json.loads(said)
    elif text.startswith("mnist-audit"):
        assert {"audit.html", "audit.md", "results.csv"} <= {path.name for path in (where / "outputs/audit").iterdir()}
    elif "scripts/sequential" in text:
        assert re.search(r"n = \d+ sweeps", said)
    elif "--document" in text or "scripts/reproduce" in text:
        (name,) = re.findall(r"(\w+)\.py", text)
        document = {"reproduce": "reproduction", "benchmark": "speed"}.get(name, name)
        assert (where / "docs" / f"{document}.md").read_text() == (ROOT / "docs" / f"{document}.md").read_text()
    elif "scripts/benchmark" in text:
        assert re.search(r"\d\.\d+ (s|times)\b|ratio of medians +\d|against the first line +\d|\d GFLOP/s", said)
    elif output := re.search(r"--output (\S+)", text):
        assert (where / output[1]).exists()


def serve(text: str, where: Path, environment: dict[str, str]) -> None:
    """A command that serves until Ctrl-C."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {text}"], cwd=where, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    address = re.search(r"http://\S+", process.stdout.readline())
    assert address is not None
    with urllib.request.urlopen(address[0]) as page:
        assert page.status == 200
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 0


def typed_once() -> list[Line]:
    """The lines that differ when they are made short; of those that do not, one of ``COLD`` if there is one."""
    found: dict[str, Line] = {}
    for line in sorted(LINES, key=lambda line: without_comment(line.text) not in COLD):
        found.setdefault(without_comment(shortened(as_typed(line))), line)
    return list(found.values())


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, id=line.text, marks=[pytest.mark.slow] if "scripts/benchmark" in line.text else [])
        for line in typed_once()
    ],
)
def test_line(line: Line, tmp_path: Path, examples: Examples) -> None:
    environment = examples.environment
    if without_comment(line.text) in COLD:
        environment = {**environment, "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]])}
    type_in(line, tmp_path, examples, environment)


def test_each_command_and_each_script_has_a_line_that_imports_everything_itself() -> None:
    documented = {without_comment(line.text) for line in LINES}
    assert documented >= COLD

    def programs(lines: set[str]) -> set[str]:
        words = [text.split() for text in lines if not text.startswith("wandb")]
        return {" ".join(line[: 2 if line[0] == "python" else 1]) for line in words}

    assert programs(COLD) == programs(documented)


CLUSTERS = [line.text for line in DOCUMENTED if re.match("mnist-train .*launcher=(submitit_slurm|ray)", line.text)]


@pytest.mark.parametrize("text", [text for text in dict.fromkeys(CLUSTERS) if "--cfg" not in text])
def test_launchers_that_are_tested_elsewhere_take_what_is_documented(
    text: str, tmp_path: Path, examples: Examples
) -> None:
    command = re.sub(r" (?:-m|sweep=\w+)", "", text) + " --cfg hydra --package hydra.launcher"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=examples.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for key, value in re.findall(r"hydra\.launcher\.(\S+)=(\S+)", text):
        assert f"{key.rpartition('.')[2]}: {value}\n" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, tmp_path: Path, examples: Examples) -> None:
    """It answers, also without the server; what it shows is documented elsewhere too, or is run here."""
    done = subprocess.run(
        [BIN / command, "--help"], cwd=tmp_path, env=examples.environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    known = {without_comment(line.text) for line in LINES}
    for number, line in enumerate(runnable(list(in_help(done.stdout, f"{command} --help")))):
        if line.text not in known:
            (tmp_path / str(number)).mkdir()
            type_in(line, tmp_path / str(number), examples, examples.environment)


@pytest.fixture(scope="session")
def echoing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Commands that print their arguments."""
    folder = tmp_path_factory.mktemp("echoing")
    for name in (*COMMANDS, "python", "make", "wandb"):
        (folder / name).write_text("#!/bin/sh\nprintf '[%s]\\n' \"$@\"\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_reads_each_line_as_bash_does(tmp_path: Path, echoing: Path) -> None:
    """Comments are left out: zsh on a terminal has none."""
    for name in ("runs/lenet5-0", "runs/mlp-0", "outputs/a/lenet5-0", "DIR/offline-run-1-DIR"):
        (tmp_path / name).mkdir(parents=True)
    environment = {**os.environ, "PATH": os.pathsep.join([str(echoing), os.environ["PATH"]])}
    different = []
    for line in DOCUMENTED:
        text = without_comment(line.text)
        if re.search(r"""[][(){}*?~^!<>$|;&'"]| =""", text):
            read = [
                subprocess.run(
                    [*shell, text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
                )
                for shell in (["bash", "-c"], ["zsh", "-f", "-c"])
            ]
            if len({(done.returncode, done.stdout, done.stderr) for done in read}) > 1:
                different.append(f"{line.where}: {text}: {read[1].stderr}")
    assert not different, "\n".join(different)


def test_lines_that_are_tested_elsewhere_are_still_documented() -> None:
    texts = [line.text for line in DOCUMENTED]
    assert [part for part in ELSEWHERE if not any(part in text for text in texts)] == []
