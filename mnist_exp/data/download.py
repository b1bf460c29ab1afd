"""Download of IDX files with torchvision, from its mirrors and with its checksums."""

from __future__ import annotations

import errno
import io
import queue
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from mnist_exp.data.files import DataError, describe

DOWNLOADABLE = ("MNIST", "FashionMNIST", "KMNIST")

TIMEOUT = 10.0  # seconds, for the first answer of a mirror, and for each read of a file


def fetch(dataset: str, names: Sequence[str], folder: Path) -> None:
    """Download the gzipped files ``names`` of a torchvision data set into ``folder``; no file is left incomplete.

    Args:
        dataset: one of ``DOWNLOADABLE``.
        names: torchvision's names, for example ``train-images-idx3-ubyte.gz``.
        folder: created if it does not exist.

    Raises:
        DataError: no mirror can be reached, no mirror has a file with the right checksum, or ``folder`` is not writable.
    """
    from torchvision import datasets  # type: ignore[import-untyped]  # torchvision ships no types
    from torchvision.datasets.utils import download_url  # type: ignore[import-untyped]  # the same

    published = getattr(datasets, dataset)
    checksums: dict[str, str] = dict(published.resources)
    mirrors, refusals = _reachable_mirrors(published.mirrors, names[0])
    if not mirrors:
        raise _failure(dataset, folder / names[0], refusals)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as staging, _socket_timeout(TIMEOUT):
            for name in names:
                refusals = {}
                for mirror in mirrors:
                    try:
                        with _progress(mirror + name):
                            download_url(mirror + name, staging, filename=name, md5=checksums[name])
                    except (OSError, HTTPException, RuntimeError) as error:
                        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}:
                            raise  # another mirror would not help
                        refusals[mirror] = _reason(error)
                    else:
                        Path(staging, name).replace(folder / name)
                        break
                else:
                    raise _failure(dataset, folder / name, refusals)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {describe(error)}") from error


def _reachable_mirrors(mirrors: Sequence[str], name: str) -> tuple[list[str], dict[str, str]]:
    """The mirrors, the first to answer first, or no mirrors and the reason why each one failed.

    Each mirror is asked in a thread that is never joined: name resolution, or a host with many addresses that do not
    answer, can take longer than a socket timeout.
    """
    replies: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()

    def ask(mirror: str) -> None:
        try:
            request = Request(mirror + name, headers={"User-Agent": "mnist-exp"})  # noqa: S310  # torchvision names the mirrors
            urlopen(request, timeout=TIMEOUT).close()  # noqa: S310  # the same
        except (OSError, HTTPException, ValueError) as error:
            replies.put((mirror, _reason(error)))
        else:
            replies.put((mirror, None))

    for mirror in mirrors:
        threading.Thread(target=ask, args=(mirror,), daemon=True).start()
    refusals = dict.fromkeys(mirrors, "no answer")
    deadline = time.monotonic() + TIMEOUT
    for _ in mirrors:
        try:
            mirror, refusal = replies.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        if refusal is None:
            return [mirror, *(other for other in mirrors if other != mirror)], {}
        refusals[mirror] = refusal
    return [], refusals


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)  # torchvision sets no timeout
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _progress(url: str) -> Iterator[None]:
    print(f"Downloading {url}", file=sys.stderr)
    # torchvision rewrites its progress line for every 32 kB, which fills a log file.
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        yield


def _reason(error: Exception) -> str:
    match error:
        case HTTPError():
            return f"HTTP status {error.code}"
        case URLError(reason=Exception() as inner):
            return _reason(inner)
        case TimeoutError():
            return "no answer"
        case OSError():
            return error.strerror or str(error) or type(error).__name__
        case RuntimeError():
            return "incomplete, or of a wrong checksum"
        case _:
            return str(error) or type(error).__name__


def _failure(dataset: str, path: Path, refusals: dict[str, str]) -> DataError:
    reasons = ", ".join(f"{mirror}: {refusal}" for mirror, refusal in refusals.items())
    advice = (
        "use data=mnist5k (5,000 real digits, no download), or set MNIST_DIR (or data.root) to a folder with the four IDX "
        "files"
        if dataset == "MNIST"
        else f"set data.root to a folder with the four IDX files of {dataset}"
    )
    return DataError(f"{path}: missing and cannot be downloaded ({reasons}); {advice}")
