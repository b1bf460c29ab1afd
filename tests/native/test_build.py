"""Where the kernels come from: compiled once, cached, never taken from somebody else, and done without where they cannot be had."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mnist_exp.native import NativeUnavailable, build

MLP = {"ACTIVATION": 0}
LENET5 = {
    "ACTIVATION": 0,
    "SIDE": 28,
    "PADDING": 2,
    "KERNEL": 5,
    "CHANNELS1": 6,
    "CHANNELS2": 16,
    "DENSE": 0,
    "AVERAGE": 0,
}
OTHER = {
    "ACTIVATION": 4,
    "SIDE": 17,
    "PADDING": 1,
    "KERNEL": 4,
    "CHANNELS1": 9,
    "CHANNELS2": 35,
    "DENSE": 0,
    "AVERAGE": 0,
}
SANITIZED = [
    ({"ACTIVATION": 0}, ["3", "1", "130", "2", "10"]),
    ({"ACTIVATION": 1}, ["8", "10"]),
    (LENET5, ["28", "6", "16", "12", "8", "10"]),
    (OTHER, ["17", "9", "35", "5", "17", "2"]),
    ({**LENET5, "DENSE": 1}, ["28", "6", "16", "12", "8", "10"]),
    ({**OTHER, "DENSE": 1, "AVERAGE": 1}, ["17", "9", "35", "5", "17", "2"]),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_EXP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``cc`` that calls the real one and writes down that it compiled; returns where."""
    real, log = shutil.which("cc"), tmp_path / "log"
    if real is None:
        pytest.skip("no C compiler")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "cc").write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo compiled >> {log}\nexec {real} "$@"\n')
    (folder / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return log


def test_processes_that_start_at_once_compile_once(compiler: Path, tmp_path: Path) -> None:
    load = build._load.__wrapped__  # without the cache of one process
    with ThreadPoolExecutor(4) as pool:
        libraries = list(pool.map(lambda _: load(tuple(MLP.items())), range(4)))
    assert [library.lanes() for library in libraries] == [libraries[0].lanes()] * 4
    assert compiler.read_text() == "compiled\n"
    folder = tmp_path / "cache" / "native"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.suffix for path in folder.iterdir()} == {".so", ".lock"}


def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is no library where the cache of this test has one; not yet opened, since a name is opened only once."""
    build.load(MLP)
    (made,) = (tmp_path / "cache" / "native").glob("*.so")
    folder = tmp_path / "other" / "native"
    folder.mkdir(mode=0o700, parents=True)
    (folder / made.name).write_bytes(b"theirs")
    monkeypatch.setenv("MNIST_EXP_CACHE", str(folder.parent))
    build._load.cache_clear()
    return folder / made.name


def test_a_damaged_library_is_compiled_again(compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = planted(tmp_path, monkeypatch)
    assert build.load(MLP).lanes() in {8, 16}
    assert library.read_bytes() != b"theirs"
    assert compiler.read_text() == "compiled\ncompiled\n"


def test_a_folder_that_others_may_write_to_is_not_trusted(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = planted(tmp_path, monkeypatch)
    folder = library.parent
    folder.chmod(0o777)
    assert build.load(MLP).lanes() in {8, 16}
    assert library.read_bytes() == b"theirs"
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    elsewhere.chmod(0o700)
    folder.symlink_to(elsewhere)
    build._load.cache_clear()
    assert build.load(MLP).lanes() in {8, 16}
    assert library.read_bytes() == b"theirs"


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeUnavailable, match=r"no C compiler \(cc, gcc, clang\) is installed"):
        build.load(MLP)


def test_with_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gcc").write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit\necho 'no space' >&2\nexit 4\n")
    (tmp_path / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeUnavailable, match=r"gcc failed: no space"):
        build.load(MLP)
    assert not list((tmp_path / "cache" / "native").glob("*.so"))


def test_with_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(NativeUnavailable, match=r"cache.*is not a folder"):
        build.load(MLP)


@pytest.mark.parametrize(
    ("name", "constants", "arguments"), [*(("bounds.c", *case) for case in SANITIZED), ("augment_bounds.c", {}, [])]
)
def test_the_kernels_stay_within_bounds(
    name: str, constants: dict[str, int], arguments: list[str], tmp_path: Path
) -> None:
    compiler, program = build._compiler(), tmp_path / "bounds"
    flags = [
        "-std=gnu11",
        "-Og",
        "-march=native",
        "-Wno-psabi",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    macros = [f"-D{name}={value}" for name, value in constants.items()]
    source = Path(__file__).with_name(name)
    command = [compiler, *flags, *macros, f"-I{build.SOURCES}", str(source), "-o", str(program), "-lm"]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    if (compiled.returncode != 0 and "sanitize" in compiled.stderr + compiled.stdout) or "asan" in compiled.stderr:
        pytest.skip("this compiler has no address sanitizer")
    assert compiled.returncode == 0, compiled.stderr
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "within bounds\n"), done.stderr[-3000:]
