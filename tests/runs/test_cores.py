"""The number of cores of a process: allowed cores, quota of CPU time, OMP_NUM_THREADS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_exp.runs import provenance
from mnist_exp.runs.provenance import available_cores, cores, cpu_quota

V1, V2 = "cgroup cgroup rw,cpu,cpuacct", "cgroup2 cgroup2 rw"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        ("0::/\n", [("/", "g", V2)], {"g/cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", [("/", "g", V2)], {"g/cpu.max": "max 100000"}, None),
        ("0::/\n", [("/", "g", V2)], {}, None),
        ("0::/a/b\n", [("/", "g", V2)], {"g/a/b/cpu.max": "max 100000", "g/a/cpu.max": "200000 100000"}, 2.0),
        ("0::/a/b\n", [("/", "g", V2)], {"g/a/b/cpu.max": "50000 100000", "g/a/cpu.max": "200000 100000"}, 0.5),
        ("0::/a\n", [("/", "g", V2)], {"g/b/cpu.max": "50000 100000"}, None),
        ("0::/../../x\n", [("/", "g", V2)], {"g/cpu.max": "300000 100000", "g/x/cpu.max": "1 100000"}, 3.0),
        ("0::/a\n", [("/a", "g", V2)], {"g/cpu.max": "300000 100000"}, 3.0),
        ("0::/a: b\n", [("/", "g h", V2)], {"g h/a: b/cpu.max": "300000 100000"}, 3.0),
        (
            "5:cpu,cpuacct:/docker/1\n3:memory:/docker/1\n0::/\n",
            [("/docker/1", "cpu", V1), ("/docker/1", "mem", "cgroup cgroup rw,memory"), ("/", "unified", V2)],
            {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000", "mem/cpu.cfs_quota_us": "1"},
            2.5,
        ),
        (
            "5:cpu,cpuacct:/user/me\n",
            [("/", "cpu", V1)],
            {
                **{"cpu/user/me/cpu.cfs_quota_us": "-1", "cpu/user/me/cpu.cfs_period_us": "100000"},
                **{"cpu/user/cpu.cfs_quota_us": "50000", "cpu/user/cpu.cfs_period_us": "10000"},
            },
            5.0,
        ),
        ("5:cpu:/\n", [("/", "cpu", V1)], {"cpu/cpu.cfs_quota_us": "0", "cpu/cpu.cfs_period_us": "0"}, None),
        ("0::/\n", [("/", "g", V2)], {"g/cpu.max": ""}, None),
        ("", [], {}, None),
    ],
)
def test_the_quota_is_the_smallest_of_the_group_and_its_parents(
    tmp_path: Path, groups: str, mounts: list[tuple[str, str, str]], files: dict[str, str], expected: float | None
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    lines = [
        f"31 23 0:28 {root} {str(tmp_path / point).replace(' ', chr(92) + '040')} rw,relatime shared:1 - {filesystem}\n"
        for root, point, filesystem in mounts
    ]
    (tmp_path / "cgroup").write_text(groups)
    (tmp_path / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + "".join(lines))
    assert cpu_quota(tmp_path) == expected


def test_no_control_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "no such process") is None


@pytest.mark.parametrize(
    ("quota", "omp", "available", "expected"),
    [
        (None, "", 8, 8),
        (2.9, "", 2, 2),
        (0.5, "", 1, 1),
        (64.0, "", 8, 8),
        (4.0, "3", 4, 3),
        (4.0, "6", 4, 4),
        (None, " 2,4 ", 8, 2),
        *((None, nonsense, 8, 8) for nonsense in ("0", "-1", "two", "1.5", "²", ",")),
    ],
)
def test_the_smallest_limit_is_used(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, omp: str, available: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(provenance, "cpu_quota", lambda: quota)
    monkeypatch.setenv("OMP_NUM_THREADS", omp)
    assert (available_cores(), cores()) == (available, expected)


START = """
import sys
from mnist_exp.runs import provenance
provenance.cpu_quota = lambda: 1.5
from mnist_exp.cli.train import main
main()
"""


def test_a_run_uses_its_quota_and_warns_of_more_threads(small: list[str], tmp_path: Path) -> None:
    small.remove("trainer.threads=1")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

    def train(*overrides: str) -> str:
        command = [sys.executable, "-c", START, *small, "trainer.epochs=1", "data.limit=10", *overrides]
        result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
        return result.stdout

    assert "threads" not in train("hydra.run.dir=first")
    record = json.loads((tmp_path / "first" / "run.json").read_text())
    assert (record["threads"], record["hardware"]["cores"]) == (1, 1)
    warning = "3 threads on 1 core: training may be many times slower than with trainer.threads=1\n"
    assert warning in train("hydra.run.dir=second", "trainer.threads=3", "quiet=true")
    assert warning in (tmp_path / "second" / "train.log").read_text()
    assert json.loads((tmp_path / "second" / "run.json").read_text())["threads"] == 3
