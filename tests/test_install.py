"""An installed wheel trains: it contains conf/."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_installed_wheel_trains_from_anywhere(tmp_path: Path, small: list[str]) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", cwd=ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    # Dependencies come from this environment; a path in a .pth file does not bring this environment's own .pth files,
    # so the editable installation of the checkout stays outside.
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)

    away = tmp_path / "away"
    away.mkdir()
    where = run(python, "-c", "import mnist_exp.compose as c; print(c.CONF)", cwd=away).strip()
    assert Path(where) == packages / "mnist_exp" / "conf"
    out = run(home / "bin" / "mnist-train", *small, "hydra.run.dir=run", cwd=away)
    assert "\n    2/2 " in out
    assert "run, epoch 2: test accuracy" in run(home / "bin" / "mnist-eval", "run", cwd=away)
    assert "lenet5" in run(home / "bin" / "mnist-report", "run", cwd=away)
    assert '"git": null' in (away / "run" / "run.json").read_text()
