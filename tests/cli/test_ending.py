"""The end of commands: closed output, a full disk, Ctrl-C; only commands exit."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from warm_commands import WarmCommands

from mnist_exp.cli.ending import exit_status
from mnist_exp.errors import RunFailed, RunInterrupted, UsageError

PACKAGE = Path(__file__).parents[2] / "mnist_exp"
# A thread that ends the worker process of a launcher when the command has ended.
WATCHER = {("sweeps/job.py", name) for name in ("_end_with_command", "watch")}


@pytest.fixture
def type_in(warm_commands: WarmCommands, tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """A line for bash, whose exit status is that of the command and not of what reads from it."""
    environment = {**os.environ, "PATH": os.pathsep.join([str(warm_commands.bin), os.environ["PATH"]])}

    def run(line: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    return run


READERS = ["head -1", "true"]  # one leaves after a line, the other before the first


@pytest.mark.parametrize("reader", READERS)
def test_closed_output_stops_no_command(
    reader: str,
    type_in: Callable[[str], subprocess.CompletedProcess[str]],
    trained: Callable[..., Path],
    small: list[str],
) -> None:
    run = trained("run", *small)
    (run / "evaluation.json").unlink(missing_ok=True)
    for line in (
        "mnist-eval run",
        "mnist-report run",
        "mnist-predict run run/worst_digits.png run/worst_digits.png --json",
        f"mnist-train {' '.join(small)} hydra.run.dir=other",
        f"mnist-train -m {' '.join(small)} seed=0,1 hydra.sweep.dir=sweep",
        "mnist-train --help",
        "mnist-train --cfg job",
    ):
        done = type_in(f"{line} | {reader}")
        if "predict" in line:  # its pictures are many digits each, which is told after the output
            assert done.returncode == 2
            assert "BrokenPipe" not in done.stderr
        else:
            assert (done.returncode, done.stderr) == (0, ""), line
    assert (run / "evaluation.json").is_file()
    assert Path("outputs/report/report.html").is_file()
    assert '"completed"' in Path("other/run.json").read_text()
    assert sorted('"completed"' in file.read_text() for file in Path("sweep").glob("*/run.json")) == [True, True]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line(
    type_in: Callable[[str], subprocess.CompletedProcess[str]], trained: Callable[..., Path], small: list[str]
) -> None:
    run = trained("run", *small)
    (run / "evaluation.json").unlink(missing_ok=True)
    for line in ("mnist-eval run", "mnist-train --help"):
        done = type_in(f"{line} > /dev/full")
        name = line.split()[0]
        assert (done.returncode, done.stderr) == (
            2,
            f"{name}: standard output cannot be written: No space left on device\n",
        )
    assert (run / "evaluation.json").is_file()


ENDS = [
    (UsageError("a\nb"), 2, "x: a\nx: b\n"),
    (RunFailed("it failed"), 1, "x: it failed\n"),
    (RunInterrupted("", signal.SIGTERM), 143, ""),
    (KeyboardInterrupt(), 130, ""),
]


@pytest.mark.parametrize(("error", "status", "said"), ENDS, ids=[type(error).__name__ for error, *_ in ENDS])
def test_exit_status(error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving, exit_status("x"):
        raise error
    assert leaving.value.code == status
    assert capsys.readouterr().err == said


def test_a_failure_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), exit_status("x"):
        raise ZeroDivisionError
    with pytest.raises(BrokenPipeError), exit_status("x"):
        raise BrokenPipeError("of a socket, not of standard output")


def test_only_commands_exit() -> None:
    found = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    text = ast.unparse(node) if isinstance(node, ast.Call | ast.Raise) else ""
                    if text.startswith(("sys.exit(", "os._exit(", "exit(", "raise SystemExit")):
                        found.add((name, function.name))
    assert {place for place in found if not place[0].startswith("cli/")} == WATCHER
