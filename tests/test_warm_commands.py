"""A command from the server starts in the same state as a new process."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from warm_commands import SUPPORTED, WarmCommands

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="needs Linux")

# Everything that one run could leave behind for the next, or that the server could pass on.
PROBE = """\
#!{python}
import atexit, gc, json, logging, multiprocessing, os, random, resource, signal, socket, sys, tempfile, threading, warnings
early = dict(
    argv=sys.argv, orig_argv=sys.orig_argv[1:], path=sys.path, environment=dict(os.environ), directory=os.getcwd(),
    umask=os.umask(0), flags=str(sys.flags), stdin=sys.stdin.read(), isatty=[os.isatty(number) for number in range(3)],
    streams=[(stream.encoding, stream.errors, stream.line_buffering, stream.fileno(), stream.mode, stream.name,
              stream.write_through, stream.newlines) for stream in (sys.stdin, sys.stdout, sys.stderr)],
    same_streams=[sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
    signals=dict((number.name, str(signal.getsignal(number)).split(" at ")[0])
                 for number in signal.Signals if signal.getsignal(number) is not None),
    blocked=sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), limits=resource.getrlimit(resource.RLIMIT_NOFILE),
    files=sorted(os.listdir("/proc/self/fd"), key=int)[:-1], threads=[thread.name for thread in threading.enumerate()],
    tasks=len(os.listdir("/proc/self/task")), main=dict((name, str(value)) for name, value in globals().items()
    if name in ("__name__", "__file__", "__spec__", "__package__")), is_main=sys.modules["__main__"].__dict__ is globals(),
    hooks=[sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__, sys.exit.__module__,
           sys.gettrace(), sys.getprofile(), threading.excepthook.__name__],
    start_method=multiprocessing.get_start_method(allow_none=True), children=len(multiprocessing.active_children()),
    process=multiprocessing.current_process().name, tempdir=tempfile.tempdir, timeout=socket.getdefaulttimeout(),
    recursion=sys.getrecursionlimit(), collecting=[gc.isenabled(), gc.get_threshold()], nice=os.nice(0),
)
import numpy, optuna, torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
import mnist_exp.experiment
late = dict(
    hydra_config=HydraConfig.initialized(), global_hydra=GlobalHydra().is_initialized(),
    singletons=sorted(str(kind) for kind in Singleton._instances),
    resolvers=sorted(BaseContainer._resolvers),
    torch=[torch.get_num_threads(), torch.get_num_interop_threads(), str(torch.get_default_dtype()),
           torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(),
           torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled, str(torch.get_default_device())],
    handlers=[str(handler) for handler in logging.getLogger().handlers], level=logging.getLogger().level,
    numpy=str(numpy.geterr()), package=sorted(str(handler) for handler in logging.getLogger("mnist_exp").handlers),
    other_loggers=[name for name, logger in logging.root.manager.loggerDict.items() if getattr(logger, "handlers", None)
                   and name.startswith(("mnist", "hydra", "wandb", "optuna"))],
)
print(json.dumps(dict(early=early, late=late), default=str))
json.dump([random.random(), numpy.random.random(), torch.rand(1).item()], open("drawn-" + str(os.getpid()), "w"))
atexit.register(print, "at exit")
sys.exit(7)
"""
SMALL = ["data=mnist5k", "data.limit=64", "trainer.epochs=1", "trainer.threads=1", "logger.mode=offline"]


@pytest.fixture(scope="module")
def used(warm_commands: WarmCommands, tmp_path_factory: pytest.TempPathFactory) -> WarmCommands:
    """The server, after it has had a few commands executed, refused and killed."""
    folder = tmp_path_factory.mktemp("used")
    for arguments in (
        SMALL,
        ["-m", *SMALL, "seed=0,1", "hydra.sweep.dir=sweep"],
        ["trainer.epoch=3"],
        ["--cfg", "job"],
    ):
        subprocess.run([warm_commands.bin / "mnist-train", *arguments], cwd=folder, capture_output=True, check=False)
    return warm_commands


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "probe"
    path.write_text(PROBE.replace("{python}", sys.executable))
    path.chmod(0o755)
    return path


def ask(
    command: Path, program: Sequence[str] = (), **options: Any
) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    done = subprocess.run(
        [command, *program, "seed=1", "a b", ""], input="given", capture_output=True, text=True, check=False, **options
    )
    return json.loads(done.stdout.splitlines()[0] if done.stdout else "{}"), done


def test_a_child_equals_a_new_process(used: WarmCommands, probe: Path, tmp_path: Path) -> None:
    command = used.add("probe", probe)
    environment = {**os.environ, "MNIST_EXP_TEST": "ä", "NETRC": "/nowhere"}

    def blocked() -> None:
        os.umask(0o027)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])

    for options in ({}, {"env": environment, "preexec_fn": blocked}):
        expected, alone = ask(probe, cwd=tmp_path, **options)
        found, done = ask(command, cwd=tmp_path, **options)
        assert done.stderr == alone.stderr == ""
        assert found["early"] == expected["early"]
        assert found["late"] == expected["late"]
        assert done.stdout.splitlines()[1:] == alone.stdout.splitlines()[1:] == ["at exit"]
        assert done.returncode == alone.returncode == 7
    drawn = [json.loads(path.read_text()) for path in tmp_path.glob("drawn-*")]
    assert len({number for numbers in drawn for number in numbers}) == 12, "children draw different random numbers"


ENDS = """\
#!{python}
import os, signal, sys, time
how = sys.argv[1]
if how == "raise":
    raise ValueError("a message")
if how == "text":
    sys.exit("a text")
if how == "interrupt":
    raise KeyboardInterrupt
if how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "threads":
    print(os.environ["OMP_NUM_THREADS"], "torch" in sys.modules)
if how == "wait":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(5))
    open("pid", "w").write(str(os.getpid()))
    while True:
        time.sleep(0.01)
"""


@pytest.fixture
def both(warm_commands: WarmCommands, tmp_path: Path) -> tuple[Path, Path]:
    """A script that ends in some way, as it is and from the server."""
    path = tmp_path / "ends"
    path.write_text(ENDS.replace("{python}", sys.executable))
    path.chmod(0o755)
    return path, warm_commands.add("ends", path)


@pytest.mark.parametrize("how", ["nothing", "raise", "text", "interrupt", "kill"])
def test_a_child_ends_as_a_new_process_ends(how: str, both: tuple[Path, Path]) -> None:
    alone, done = (subprocess.run([command, how], capture_output=True, text=True, check=False) for command in both)
    assert (done.returncode, done.stdout, done.stderr) == (alone.returncode, alone.stdout, alone.stderr)


def test_python_runs_a_script_that_is_named_by_a_relative_path(
    warm_commands: WarmCommands, probe: Path, tmp_path: Path
) -> None:
    command = warm_commands.bin / "python"
    expected, _ = ask(Path(sys.executable), program=[probe.name], cwd=tmp_path)
    found, done = ask(command, program=[probe.name], cwd=tmp_path)
    assert done.returncode == 7
    assert found["early"] == expected["early"]


@pytest.mark.parametrize("arguments", [["-c", "{program}", "a b"], ["-u", "-m", "program", "a b"]], ids=["-c", "-m"])
def test_python_takes_code_and_modules(arguments: list[str], warm_commands: WarmCommands, tmp_path: Path) -> None:
    program = "import json, os, sys; print(json.dumps([sys.argv[-1], sys.path[0], sys.stdout.write_through, __name__]))"
    (tmp_path / "program.py").write_text(program)
    words = [word.replace("{program}", program) for word in arguments]
    alone, done = (
        subprocess.run([python, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        for python in (sys.executable, warm_commands.bin / "python")
    )
    assert (done.stdout, done.stderr) == (alone.stdout, "")


def test_processes_that_a_child_starts_come_from_the_server(warm_commands: WarmCommands, tmp_path: Path) -> None:
    """With open files, and with a folder whose ``sitecustomize.py`` they run."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.customized = 'torch' in sys.modules\n")
    inner = "import os, sys; os.write(int(sys.argv[1]), str([sys.customized, 'torch' in sys.modules]).encode())"
    outer = f"""
import os, subprocess, sys
read, write = os.pipe()
assert sys.executable == {str(warm_commands.bin / "python")!r}
process = subprocess.Popen([sys.executable, "-c", {inner!r}, str(write)], pass_fds=[write])
os.close(write)
print(os.read(read, 100).decode(), os.read(read, 100), process.wait())
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [warm_commands.bin / "python", "-c", outer]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[True, True] b'' 0\n", "the pipe has ended when the child has"
    (tmp_path / "other.py").touch()
    done = subprocess.run(
        [*command[:2], "import sys; print(sys.customized)"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n", "a folder with modules needs an ordinary process"


def test_signals_reach_the_child(both: tuple[Path, Path], tmp_path: Path) -> None:
    process = subprocess.Popen([both[1], "wait"], cwd=tmp_path)
    child = started(tmp_path, process)
    process.terminate()
    assert process.wait() == 5
    process = subprocess.Popen([both[1], "wait"], cwd=tmp_path)
    child = started(tmp_path, process)
    process.kill()
    process.wait()
    end = os.pidfd_open(child) if Path(f"/proc/{child}").exists() else None
    if end is not None:
        select.select([end], [], [])
        os.close(end)


def started(folder: Path, process: subprocess.Popen[bytes]) -> int:
    """The child's process, when it waits."""
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    child = int((folder / "pid").read_text())
    (folder / "pid").unlink()
    return child


def test_settings_of_the_interpreter_need_a_new_process(both: tuple[Path, Path]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([both[1], "threads"], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "2 False\n"
