"""Fixtures for all tests. No test uses the user's caches, accounts or run directories."""

from __future__ import annotations

import gc
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra._internal.config_repository import ConfigRepository
from process_state import restored
from wandb_server import WandbServer
from warm_commands import WarmCommands

from mnist_exp.compose import CONF, resolve
from mnist_exp.runs.provenance import available_cores

# Set before torch is imported: tests are small, and two thread pools on the same cores are many times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
# As joblib sets them for its workers, which can then be forked by the server of warm commands.
os.environ.update(OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
# Set in many containers. Then each of hundreds of processes compiles the package again, which takes a fifth of its time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# If a shell starts pytest in the background, pytest and its child processes ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As in an activated environment, so that tests can run documented lines unchanged.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

SMALL = ["data=mnist5k", "data.limit=320", "trainer.epochs=2", "trainer.threads=1", "trainer.device=cpu", "logger=none"]


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """For ``--numprocesses=auto``: two more than the number of cores, because many tests wait for other processes."""
    return min(4, available_cores() + 2)


@pytest.hookimpl(trylast=True)  # after pytest-randomly's
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow tests first: at the end no process of pytest-xdist waits while another one has a long test."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_sessionstart() -> None:
    gc.disable()  # importing and collecting make objects that stay


def pytest_collection_finish() -> None:
    """Garbage collection then ignores the modules and tests, which stay: it takes a tenth of the tests' time otherwise."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(10_000, 20, 20)  # the defaults, 700 and 10, take a fiftieth of the tests' time


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries that count their objects at the end would report these


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of pytest-xdist share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def _shared_cache(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> Iterator[None]:
    """One cache for all test processes: the bundled digits are parsed once, and each kind of kernel is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_EXP_CACHE", str(shared_folder / "cache"))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))  # W&B copies files to it
        # Otherwise PyTorch itself sets this variable when it first needs the folder.
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(shared_folder / "inductor"))
        if compiler := shutil.which("cc"):
            patch.setenv("PATH", str(_quick_compiler(shared_folder, compiler)), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session", autouse=True)
def _configuration_files_read_once() -> Iterator[None]:
    """Files of ``conf/`` and of Hydra are parsed once for a test process, which takes a quarter of each composition's time."""
    read: dict[tuple[str, ...], Any] = {}
    load = ConfigRepository.load_config

    def load_once(repository: ConfigRepository, config_path: str) -> Any:
        sources = [source.full_path() for source in repository.sources]
        if not {*sources} <= {"pkg://hydra.conf", f"file://{CONF}", "structured://"}:  # a test may change others
            return load(repository, config_path=config_path)
        key = (config_path, *sources)
        if key not in read:
            read[key] = load(repository, config_path=config_path)
        return deepcopy(read[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", load_once)
        yield


QUICK = "quick compiler"


def _quick_compiler(shared_folder: Path, compiler: str) -> Path:
    """A folder with a ``cc`` that optimizes less: the tests compile a hundred kernels, which takes twice as long with ``-O3``."""
    folder = shared_folder / QUICK
    folder.mkdir(exist_ok=True)
    script = folder / f"{os.getpid()}"
    script.write_text(f'#!/bin/sh\nexec "{compiler}" "$@" -O1\n', encoding="utf-8")
    script.chmod(0o755)
    script.replace(folder / "cc")
    return folder


@pytest.fixture
def shipped_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels are compiled as they are for users."""
    from mnist_exp.native import build

    folders = os.environ["PATH"].split(os.pathsep)
    monkeypatch.setenv("PATH", os.pathsep.join(folder for folder in folders if Path(folder).name != QUICK))
    build._load.cache_clear()
    yield
    build._load.cache_clear()


@pytest.fixture(autouse=True)
def _clean_state() -> Iterator[None]:
    """A test that changes the state of the process fails, and the state is restored for the next test."""
    with restored() as changed:
        yield
    assert not changed, f"the test does not restore: {', '.join(changed)}"


@pytest.fixture(autouse=True)
def _alone(_clean_state: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No account, no state of another test, and an empty working directory."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)  # random numbers of tests without a seed are the same in every order and every run


@pytest.fixture(scope="session")
def warm_commands(_shared_cache: None, shared_folder: Path) -> WarmCommands:
    """The installed commands; each call runs in a new process that has torch imported. All test processes share a server."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    until = os.getppid() if worker else os.getpid()
    unique = zlib.crc32(str(shared_folder).encode())  # short, unlike the folder's path
    commands = WarmCommands(Path(tempfile.gettempdir()) / f"warm-{until}-{unique:x}", worker or "bin", until)
    for script in Path(sys.executable).parent.glob("mnist-*"):
        commands.add(script.name, script)
    return commands


@pytest.fixture
def small() -> list[str]:
    """Overrides of a run that takes less than a second."""
    return list(SMALL)


@pytest.fixture
def mnist_train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``mnist-train`` in this process, whose state is then restored; returns the exit status."""
    from mnist_exp.cli import train

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["mnist-train", *arguments])
        with restored():
            try:
                train.main()
            except SystemExit as leaving:
                return int(leaving.code or 0)
        return 0

    return run


@pytest.fixture
def stopped_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """A context in which runs of this process stop after a number of steps, as after SIGTERM."""
    from mnist_exp.signals import StopRequest

    @contextmanager
    def inside(steps: int) -> Iterator[None]:
        calls = 0

        def stop(request: StopRequest) -> bool:
            nonlocal calls
            calls += 1
            request.signal = signal.SIGTERM if calls == steps else None
            return request.signal is not None

        with monkeypatch.context() as patch:
            patch.setattr(StopRequest, "__call__", stop)
            yield

    return inside


@pytest.fixture
def trained(
    shared_folder: Path,
    mnist_train: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Callable[..., Path]:
    """A copy, in this test's folder, of a run with these overrides; each run is trained once for all test processes."""

    def run(name: str, *overrides: str) -> Path:
        folder = shared_folder / "trained" / f"{zlib.crc32(repr(overrides).encode()):x}"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "complete").exists():
                shutil.rmtree(folder / "run", ignore_errors=True)  # of a test that failed
                with monkeypatch.context() as patch:
                    patch.chdir(folder)
                    assert mnist_train(*overrides, "hydra.run.dir=run") == 0
                capsys.readouterr()
                (folder / "complete").touch()
        shutil.copytree(folder / "run", tmp_path / name)
        return tmp_path / name

    return run


@pytest.fixture
def mnist_train_process(tmp_path: Path, warm_commands: WarmCommands) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``mnist-train`` in a new process."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [warm_commands.bin / "mnist-train", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, **options)

    return run


@pytest.fixture
def mnist_train_terminal(tmp_path: Path, warm_commands: WarmCommands) -> Callable[..., tuple[int, str]]:
    """``mnist-train`` in a new process, on a terminal; returns the exit status and the output.

    With ``warm=False`` the process has not loaded PyTorch before.
    """

    def run(*arguments: str, warm: bool = True) -> tuple[int, str]:
        parent, child = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"}
        script = (warm_commands.bin if warm else Path(sys.executable).parent) / "mnist-train"
        process = subprocess.Popen([script, *arguments], stdout=child, stderr=child, env=environment, cwd=tmp_path)
        os.close(child)
        screen = b""
        while True:
            try:
                part = os.read(parent, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if not part:
                break
            screen += part
        os.close(parent)
        return process.wait(), screen.decode()

    return run


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A replacement for the W&B server, with an account, for this process and its child processes."""
    import wandb

    from mnist_exp.loggers.wandb import WandbLogger

    monkeypatch.setattr(WandbLogger, "_no_answer", None)
    wandb.teardown()
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
        wandb.teardown()


@pytest.fixture
def brief_outages(wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """An override with a long timeout for W&B in this process; little of it is used while the server does not answer."""
    from mnist_exp.loggers import wandb

    start_online, share = wandb.WandbLogger._start_online, wandb.START

    def start(self: wandb.WandbLogger, deadline: float) -> str | None:
        monkeypatch.setattr(wandb, "START", 0.05 if wandb_server.silent else share)
        return start_online(self, deadline)

    monkeypatch.setattr(wandb.WandbLogger, "_start_online", start)
    monkeypatch.setattr(wandb, "END", 0.05)
    return "logger.timeout_seconds=60"


@cache
def _composed(overrides: tuple[str, ...], environment: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return resolve(compose("train", overrides=["name=test", *overrides]))


@pytest.fixture
def composed() -> Callable[..., dict[str, Any]]:
    """The resolved configuration of a command line; composed once, because Hydra takes a tenth of a second."""

    def run(*overrides: str) -> dict[str, Any]:
        read = sorted(item for item in os.environ.items() if item[0].startswith(("WANDB_", "MNIST")))
        return deepcopy(_composed(overrides, tuple(read)))

    return run


@pytest.fixture
def idx_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write 80 training and 40 test images of noise as four IDX files, different for each seed; returns their folder."""
    import numpy as np

    def write(name: str, seed: int = 0) -> Path:
        random = np.random.default_rng(seed)
        (tmp_path / name).mkdir(parents=True)
        for stem, count in (("train", 80), ("t10k", 40)):
            images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            labels = (np.arange(count) % 10).astype(np.uint8)
            for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
                header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
                (tmp_path / name / f"{stem}-{kind}-ubyte").write_bytes(header + array.tobytes())
        return tmp_path / name

    return write
