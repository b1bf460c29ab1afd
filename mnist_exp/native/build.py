"""The kernels as a shared library: compiled at first use, stored in the user's cache folder, loaded with ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from mnist_exp.data.files import cache_directory, describe, is_private
from mnist_exp.errors import is_unicode

SOURCES = Path(__file__).with_name("kernels")
COMPILERS = ("cc", "gcc", "clang")
# No -ffast-math, which assumes that there is no NaN; these flags and the source have its other optimizations.
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-shared",
    "-fPIC",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
)
# Functions of the two libraries.
POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64
FUNCTIONS: dict[str, tuple[type[ctypes.c_int64] | None, list[type[Any]]]] = {
    "lanes": (INTEGER, []),
    "workspace_floats": (INTEGER, [POINTER]),
    "scratch_floats": (INTEGER, [POINTER]),
    "forward": (None, [POINTER]),
    "backward": (None, [POINTER]),
    "train_step": (INTEGER, [POINTER]),
    "distortion_floats": (INTEGER, [POINTER]),
    "distort": (None, [POINTER]),
    "draw_noise": (None, [INTEGER, INTEGER, ctypes.c_uint64, POINTER, POINTER]),
}


class NativeUnavailable(Exception):
    """The native kernels cannot be used here. The message is one line with the reason."""


def load(constants: Mapping[str, int], source: str = "network.c") -> ctypes.CDLL:
    """The library of a source file with ``constants`` as macros, from the cache if it is there, else compiled.

    If other users can write to the cache folder, it is not used: the library is compiled in a private temporary folder.

    Raises:
        NativeUnavailable: no compiler, a failed compilation, a cache folder that cannot be written.
    """
    return _load(tuple(sorted(constants.items())), source)


@cache
def _load(constants: tuple[tuple[str, int], ...], source: str = "network.c") -> ctypes.CDLL:
    if sys.platform not in {"linux", "darwin"}:
        raise NativeUnavailable(f"they are not made for {sys.platform}")
    compiler = _compiler()
    flags = (*FLAGS, _native_flag(), *(f"-D{name}={value}" for name, value in constants), str(SOURCES / source))
    name = f"{_key(compiler, flags)}.so"
    folder = cache_directory() / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_private(folder) and is_unicode(str(folder)):  # ctypes can load no other names
            return _from_cache(folder / name, compiler, flags)
        with tempfile.TemporaryDirectory() as private:  # the library stays in memory after its file is deleted
            return _open(_compile(Path(private) / name, compiler, flags))
    except OSError as error:
        raise NativeUnavailable(f"{error.filename or folder}: {describe(error)}") from error


def _from_cache(library: Path, compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    with FileLock(library.with_suffix(".lock")):  # if many processes start at once, only one compiles
        if library.exists():
            try:
                return _open(library)
            except NativeUnavailable:
                library.unlink()  # damaged
        return _open(_compile(library, compiler, flags))


def _compile(library: Path, compiler: str, flags: tuple[str, ...]) -> Path:
    """Compile to ``library``, which is replaced atomically."""
    descriptor, temporary = tempfile.mkstemp(dir=library.parent, suffix=".so")
    try:
        os.close(descriptor)
        command = [compiler, *flags, "-o", temporary, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode != 0:
            first = next(iter(done.stderr.strip().splitlines()), f"exit status {done.returncode}")
            raise NativeUnavailable(f"{compiler} failed: {first}")
        os.replace(temporary, library)
    except subprocess.TimeoutExpired as error:
        raise NativeUnavailable(f"{compiler} took longer than {error.timeout:.0f} s") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return library


def _open(library: Path) -> ctypes.CDLL:
    try:
        opened = ctypes.CDLL(str(library))
    except OSError as error:
        raise NativeUnavailable(f"{library} cannot be loaded: {error}") from error
    for name, (restype, argtypes) in FUNCTIONS.items():
        if hasattr(opened, name):
            function = getattr(opened, name)
            function.restype, function.argtypes = restype, argtypes
    opened.use_team.argtypes = [ctypes.c_void_p] * 3
    opened.use_team(*_team())
    return opened


def _team() -> tuple[int | None, ...]:
    """Addresses of the functions that run work on PyTorch's threads; None if PyTorch does not use GNU OpenMP.

    They are looked up in PyTorch's library, because other packages may load another OpenMP.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        return tuple(ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in names)
    except (OSError, AttributeError):
        return (None, None, None)


def _compiler() -> str:
    for name in COMPILERS:
        if found := shutil.which(name):
            return found
    raise NativeUnavailable(f"no C compiler ({', '.join(COMPILERS)}) is installed")


def _native_flag() -> str:
    return "-march=native" if platform.machine() in {"x86_64", "AMD64", "i686"} else "-mcpu=native"


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    """A hash of the source, the flags, the compiler and the CPU model, as the library's file name."""
    version = _version_of(compiler)
    sources = [path.read_bytes() for path in sorted(SOURCES.iterdir())]
    parts = [*sources, " ".join(flags).encode(), compiler.encode(), version, _cpu()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def compiler_version() -> str:
    """The first line of what the compiler says about itself.

    Raises:
        NativeUnavailable: there is none.
    """
    return (_version_of(_compiler()).decode(errors="replace").splitlines() or [""])[0]


def _version_of(compiler: str) -> bytes:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NativeUnavailable(f"{compiler} --version failed: {error}") from error


def _cpu() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.release()}".encode()
    kinds = (b"model name", b"flags", b"Features", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.startswith(kinds)}))
