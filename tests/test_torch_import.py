"""Every command imports PyTorch with garbage collection paused, and with it running afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from documented_lines import ROOT

IMPORT = "import gc, sys\nfrom mnist_exp.torch_import import import_torch\n"
OLD_RUN = next(path.parent for path in sorted((ROOT / "tests" / "runs" / "version_0_1").rglob("run.json")))


@pytest.fixture
def instead_of_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which the import of PyTorch ends the process, with status 3 if garbage is collected, else 4."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "torch.py").write_text("import gc, os\nos._exit(3 if gc.isenabled() else 4)\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path / "path")}


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "data=mnist5k", "logger=none"],
        ["train", "-m", "data=mnist5k", "logger=none", "seed=0,1"],
        ["train", f"init_from={OLD_RUN}", "data=mnist5k", "logger=none"],
        ["eval", OLD_RUN],
        ["predict", OLD_RUN, "digit.png"],
        ["demo", OLD_RUN],
    ],
    ids=lambda arguments: " ".join(Path(word).name for word in arguments),
)
def test_a_command_pauses_garbage_collection(
    arguments: list[str], instead_of_torch: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", f"mnist_exp.cli.{arguments[0]}", *arguments[1:]]
    done = subprocess.run(command, cwd=tmp_path, env=instead_of_torch, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr


def test_a_sweep_without_jobs_left_imports_no_pytorch(
    mnist_train: Callable[..., int], small: list[str], instead_of_torch: dict[str, str], tmp_path: Path
) -> None:
    arguments = ["-m", *small, "data.limit=64", "trainer.epochs=1", "hydra.sweep.dir=sweep"]
    assert mnist_train(*arguments, "seed=0,1") == 0
    command = [sys.executable, "-m", "mnist_exp.cli.train", *arguments]
    for seeds, status in (("seed=0,1", 0), ("seed=0,1,2", 4)):
        done = subprocess.run(
            [*command, seeds], cwd=tmp_path, env=instead_of_torch, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr


def test_garbage_collection_runs_afterwards(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    program = f"{IMPORT}import_torch()\nsys.exit(not ('torch' in sys.modules and gc.isenabled()))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0


@pytest.mark.parametrize("first", ["import mnist_exp.cli", ""], ids=["command", "library"])
def test_only_a_command_keeps_all_objects_until_its_end(first: str, tmp_path: Path) -> None:
    """In other processes the objects may be the user's, and must be freed."""
    (tmp_path / "torch.py").write_text("")
    program = f"{IMPORT}{first}\nimport_torch()\nprint(gc.get_freeze_count() > 0)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{first != ''}\n"


def test_garbage_collection_that_was_off_stays_off(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError")
    program = f"{IMPORT}gc.disable()\ntry:\n    import_torch()\nexcept OSError:\n    sys.exit(gc.isenabled())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0
