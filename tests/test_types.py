"""The types of the package, the scripts and the tests. Here because mypy uses one core, and other tests need the second one."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_types() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
