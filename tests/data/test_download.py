"""Downloads from mirrors on this machine that serve, refuse, die and keep silent."""

from __future__ import annotations

import hashlib
import http.server
import queue
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from lazily import Lazily

from mnist_exp.data import DataError, download, idx_folder
from mnist_exp.data.idx import FILES

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]
WAYS_ON = (
    "; use data=mnist5k (5,000 real digits, no download), "
    "or set MNIST_DIR (or data.root) to a folder with the four IDX files"
)
HANG = 60.0  # seconds; who waits as long for another one waits for nothing

torchvision = Lazily("torchvision")


class Quiet(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], str]]:
    """Start a server that answers every request with the given function; returns its address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(answer: Answer) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, *_: object) -> None:
                pass

        server = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def serve(folder: Path, requested: list[str] | None = None) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        content = (folder / request.path.lstrip("/")).read_bytes()
        if requested is not None:
            requested.append(request.path.lstrip("/"))
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


def refuse(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_error(403)


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let torchvision's MNIST be what a folder holds, at the given mirrors."""

    def replace(folder: Path, *mirrors: str) -> None:
        resources = [
            (f"{file}.gz", hashlib.md5((folder / f"{file}.gz").read_bytes(), usedforsecurity=False).hexdigest())
            for file in FILES
        ]
        monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", list(mirrors))

    return replace


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        idx_folder(root=str(root), download="MNIST")
    message = str(caught.value)
    assert "\n" not in message
    return message


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


@pytest.mark.parametrize("name", download.DOWNLOADABLE)
def test_torchvision_has_the_files_under_these_names(name: str) -> None:
    published = getattr(torchvision.datasets, name)
    assert {file for file, _ in published.resources} == {f"{file}.gz" for file in FILES}
    assert all(len(checksum) == 32 for _, checksum in published.resources)
    assert all(url.endswith("/") for url in published.mirrors)


def test_the_whole_mnist(
    mnist_dir: Path, cache: Path, mirror: Callable[[Answer], str], publish: Callable[..., None]
) -> None:
    publish(mnist_dir, mirror(serve(mnist_dir)))
    digits = idx_folder(root=None, download="MNIST")
    assert sorted(path.name for path in (cache / "MNIST").iterdir()) == sorted(f"{file}.gz" for file in FILES)
    expected = idx_folder(root=str(mnist_dir), download=None)
    assert torch.equal(digits.train.images, expected.train.images)
    assert torch.equal(digits.test.labels, expected.test.labels)


def test_only_what_is_missing_is_fetched_and_only_once(
    idx: Callable[..., Path],
    mirror: Callable[[Answer], str],
    publish: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, root = idx(gz=True, folder="source"), idx(folder="mine")
    requested: list[str] = []
    url = mirror(serve(source, requested))
    publish(source, url)
    missing = "t10k-images-idx3-ubyte"
    (root / missing).unlink()
    digits = idx_folder(root=str(root), download="MNIST")
    assert len(digits.test) == 20
    assert set(requested) == {f"{missing}.gz"}
    assert (root / f"{missing}.gz").read_bytes() == (source / f"{missing}.gz").read_bytes()
    assert len(list(root.iterdir())) == 4
    assert capsys.readouterr().err == f"Downloading {url}{missing}.gz\n"

    requested.clear()
    idx_folder(root=str(root), download="MNIST")
    assert requested == []


def test_the_next_mirror_helps_out(
    idx: Callable[..., Path], tmp_path: Path, mirror: Callable[[Answer], str], publish: Callable[..., None]
) -> None:
    source = idx(gz=True)
    publish(source, closed_port(), mirror(refuse), mirror(serve(source)))
    assert len(idx_folder(root=str(tmp_path / "new"), download="MNIST").train) == 60


def test_no_network(tmp_path: Path, idx: Callable[..., Path], publish: Callable[..., None]) -> None:
    first, second, root = closed_port(), closed_port(), tmp_path / "new"
    publish(idx(gz=True), first, second)
    assert refusal(root) == (
        f"{root / FILES[0]}.gz: missing and cannot be downloaded "
        f"({first}: Connection refused, {second}: Connection refused)" + WAYS_ON
    )
    assert not root.exists()


def test_a_mirror_that_refuses(
    tmp_path: Path, idx: Callable[..., Path], mirror: Callable[[Answer], str], publish: Callable[..., None]
) -> None:
    url, root = mirror(refuse), tmp_path / "new"
    publish(idx(gz=True), url)
    assert refusal(root) == (
        f"{root / FILES[0]}.gz: missing and cannot be downloaded ({url}: HTTP status 403)" + WAYS_ON
    )


def test_silence_has_an_end(
    tmp_path: Path,
    idx: Callable[..., Path],
    mirror: Callable[[Answer], str],
    publish: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert download.TIMEOUT <= 12, "no network is known within 15 s"
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    over, waited = threading.Event(), queue.SimpleQueue[bool]()
    urls, root = [mirror(lambda request: waited.put(over.wait(HANG))) for _ in range(2)], tmp_path / "new"
    publish(idx(gz=True), *urls)
    message = refusal(root)
    assert waited.empty(), "it was over while the mirrors were silent still"
    over.set()
    reasons = ", ".join(f"{url}: no answer" for url in urls)
    assert message == f"{root / FILES[0]}.gz: missing and cannot be downloaded ({reasons})" + WAYS_ON


def test_mirrors_are_asked_side_by_side(
    tmp_path: Path,
    idx: Callable[..., Path],
    mirror: Callable[[Answer], str],
    publish: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first one says nothing until the second one has been asked, too."""
    monkeypatch.setattr(download, "TIMEOUT", 2 * HANG)
    asked, waited, source = threading.Event(), queue.SimpleQueue[bool](), idx(gz=True)

    def second(request: http.server.BaseHTTPRequestHandler) -> None:
        asked.set()
        serve(source)(request)

    publish(source, mirror(lambda request: waited.put(asked.wait(HANG))), mirror(second))
    assert len(idx_folder(root=str(tmp_path / "new"), download="MNIST").train) == 60
    assert waited.get(timeout=2 * HANG)


def half(folder: Path, hang: threading.Event | None = None) -> Answer:
    """All of the first file, half of every other; then the connection ends, or nothing more comes."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        content = (folder / request.path.lstrip("/")).read_bytes()
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content if FILES[0] in request.path else content[: len(content) // 2])
        request.wfile.flush()
        if hang is not None and FILES[0] not in request.path:
            hang.wait(HANG)

    return answer


@pytest.mark.parametrize("hangs", [False, True])
def test_a_mirror_that_dies_in_mid_file(
    tmp_path: Path,
    idx: Callable[..., Path],
    mirror: Callable[[Answer], str],
    publish: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    hangs: bool,
) -> None:
    download_url = torchvision.datasets.utils.download_url

    def brief_silence(url: str, *arguments: str, **options: str) -> None:
        assert socket.getdefaulttimeout() == download.TIMEOUT
        if FILES[0] not in url:
            socket.setdefaulttimeout(0.5)
        download_url(url, *arguments, **options)

    if hangs:
        monkeypatch.setattr(torchvision.datasets.utils, "download_url", brief_silence)
    monkeypatch.setattr(download, "TIMEOUT", HANG)
    source, root, over = idx(gz=True), tmp_path / "new", threading.Event()
    url = mirror(half(source, over if hangs else None))
    publish(source, url)
    timeout = socket.getdefaulttimeout()
    message = refusal(root)
    over.set()
    reason = "no answer" if hangs else "incomplete, or of a wrong checksum"
    assert message == f"{root / FILES[1]}.gz: missing and cannot be downloaded ({url}: {reason})" + WAYS_ON
    assert [path.name for path in root.iterdir()] == [f"{FILES[0]}.gz"], "what was complete stays, nothing else"
    assert socket.getdefaulttimeout() == timeout

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", download_url)
    publish(source, mirror(serve(source)))
    assert len(idx_folder(root=str(root), download="MNIST").train) == 60


def test_other_bytes_than_published(
    tmp_path: Path, idx: Callable[..., Path], mirror: Callable[[Answer], str], publish: Callable[..., None]
) -> None:
    source, root = idx(gz=True), tmp_path / "new"
    url = mirror(serve(source))
    publish(source, url)
    (source / f"{FILES[0]}.gz").write_bytes(b"<html>Log in to this network</html>")
    assert f"({url}: incomplete, or of a wrong checksum)" in refusal(root)
    assert list(root.iterdir()) == []


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, idx: Callable[..., Path], mirror: Callable[[Answer], str], publish: Callable[..., None]
) -> None:
    source = idx(gz=True)
    publish(source, mirror(serve(source)))
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at all")
    assert refusal(tmp_path / "dangling") == f"{tmp_path / 'dangling'}: cannot be written: is not a folder"


def test_other_data_sets_are_not_sent_to_mnist_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST_DIR is read by data=mnist alone, and 5,000 digits are no clothes."""
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DataError) as caught:
        idx_folder(root=str(tmp_path), download="FashionMNIST")
    assert str(caught.value).endswith("; set data.root to a folder with the four IDX files of FashionMNIST")


def test_a_full_disk_is_no_mirror_s_fault(
    idx: Callable[..., Path], mirror: Callable[[Answer], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [mirror(serve(idx(gz=True)))])
    monkeypatch.setattr("torchvision.datasets.utils.download_url", full)
    with pytest.raises(DataError) as caught:
        idx_folder(root=str(tmp_path / "root"), download="MNIST")
    assert str(caught.value) == f"{tmp_path / 'root'}: cannot be written: No space left on device"
