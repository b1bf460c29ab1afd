"""Trained networks look at pictures: the mnist-predict command and the server behind mnist-demo."""

from __future__ import annotations

import http.client
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pictures_of_digits import two
from PIL import Image
from synthetic_runs import write_run

from mnist_exp import demo as server_of_demo
from mnist_exp import loopback
from mnist_exp.cli import demo, predict
from mnist_exp.data.embedded import mnist5k

TRAINING = [
    "data=mnist5k",
    "trainer.epochs=4",
    "trainer.threads=1",
    "trainer.device=cpu",
    "logger=none",
    "optimizer.lr=0.03",
]


@pytest.fixture
def network(trained: Callable[..., Path]) -> Path:
    trained("run", *TRAINING, "data.image_size=32", "model.padding=0")
    return Path("run")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A hundred real digits, dark on light, large, named by their label."""
    test = mnist5k(mean=0.0, std=1.0).test
    (tmp_path / "pictures").mkdir()
    for number, (image, label) in enumerate(zip(test.images[:100, 0], test.labels, strict=False)):
        pixels = 255 - np.kron(image.mul(255).round().byte().numpy(), np.ones((4, 4), dtype=np.uint8))
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:03}_{label}.png")
    return tmp_path / "pictures"


def test_a_folder_of_pictures(network: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "notes.txt").write_text("no picture")
    predict.main([str(network), str(pictures), "--json"])
    results = json.loads(capsys.readouterr().out)
    assert len(results) == 100
    assert np.mean([result["image"].endswith(f"_{result['digit']}.png") for result in results]) > 0.85
    first = results[0]
    assert sum(first["probabilities"]) == pytest.approx(1)
    assert [entry["probability"] for entry in first["top"]] == sorted(first["probabilities"], reverse=True)[:3]


def test_one_line_a_picture(network: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = pictures / "001_1.png"
    predict.main([str(network), str(file)])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{file}: 1 ")
    assert line.count("%") == 3


def test_what_the_network_saw(
    network: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    for name in ("001_1.png", "._001_1.png"):  # the second is what a Mac leaves beside files
        (tmp_path / "other" / name).write_bytes((pictures / "001_1.png").read_bytes())
    predict.main([str(network), str(pictures / "001_1.png"), "--show", str(tmp_path / "other")])
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("   saw seen/001_1.png")
    assert second.endswith("   saw seen/001_1-2.png")
    assert np.asarray(Image.open("seen/001_1.png")).shape == (28, 28)
    predict.main([str(network), "seen/001_1.png", "--json"])  # taken as it is
    (result,) = json.loads(capsys.readouterr().out)
    assert result["digit"] == 1
    Path("seen").rename("before")
    Path("seen").write_text("a file")
    with pytest.raises(SystemExit) as leaving:
        predict.main([str(network), str(pictures / "001_1.png"), "--show"])
    assert leaving.value.code == 2
    assert capsys.readouterr().err == "mnist-predict: seen/001_1.png: cannot be written: is not a folder\n"


def test_two_digits_get_a_warning_and_no_answer(network: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = mnist5k(mean=0.0, std=1.0).test.images[1:3, 0].mul(255).round().byte().numpy()
    two(digits[0], digits[1]).save("two.png")
    warning = "shows 2 marks where one digit is expected; cut out one of them"
    for options in ([], ["--json"]):
        with pytest.raises(SystemExit) as leaving:
            predict.main([str(network), "two.png", *options])
        assert leaving.value.code == 2
        out, err = capsys.readouterr()
        assert err == f"mnist-predict: two.png: {warning}\n"
        if options:
            (result,) = json.loads(out)
            assert (result["digit"], result["warning"], result["top"]) == (None, warning, [])
        else:
            assert out == "two.png: no answer\n"


class TestOtherData:
    """Pictures are brought to the look of what a network was trained on."""

    def trained(self, mnist_train: Callable[..., int], folder: Path, images: np.ndarray, *data: str) -> Path:
        labels = mnist5k(mean=0.0, std=1.0).train.labels.numpy().astype(np.uint8)
        folder.mkdir()
        for split, part in (("train", slice(1000, 4000)), ("t10k", slice(1000))):
            for name, array in (
                (f"{split}-images-idx3-ubyte", images[part]),
                (f"{split}-labels-idx1-ubyte", labels[part]),
            ):
                header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
                (folder / name).write_bytes(header + array.tobytes())
        rest = [argument for argument in TRAINING if not argument.startswith("data=")]
        assert mnist_train(*rest, *data, f"data.root={folder}", "hydra.run.dir=run") == 0
        return Path("run")

    @pytest.fixture
    def images(self) -> np.ndarray:
        return mnist5k(mean=0.0, std=1.0).train.images[:, 0].mul(255).round().byte().numpy()

    def test_dark_digits_on_light(
        self,
        images: np.ndarray,
        mnist_train: Callable[..., int],
        pictures: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        network = self.trained(mnist_train, tmp_path / "dark", 255 - images, "data=idx", "data.mean=0.87")
        (tmp_path / "stored").mkdir()
        for file in list(pictures.iterdir())[:50]:
            small = np.asarray(Image.open(file))[::4, ::4]
            Image.fromarray(small).save(tmp_path / "stored" / file.name)
            Image.fromarray(255 - small).save(tmp_path / "stored" / f"negative_{file.name}")
        capsys.readouterr()
        for folder in (pictures, tmp_path / "stored"):
            predict.main([str(network), str(folder), "--json"])
            results = json.loads(capsys.readouterr().out)
            assert np.mean([result["image"].endswith(f"_{result['digit']}.png") for result in results]) > 0.8
            framed = folder == pictures
            warning = "was framed as a digit, and this network was trained on data of your own"
            told = np.mean([result["warning"] == warning for result in results])
            assert told == 1 if framed else told < 0.1  # a few of MNIST are not as large, or not in the middle

    def test_no_digits(
        self,
        images: np.ndarray,
        mnist_train: Callable[..., int],
        pictures: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        large = np.stack([np.asarray(Image.fromarray(image).crop((4, 4, 24, 24)).resize((28, 28))) for image in images])
        network = self.trained(mnist_train, tmp_path / "clothes", large, "data=fashion_mnist")
        Image.fromarray(large[0]).save("stored.png")
        Image.fromarray(255 - large[0]).save("negative.png")
        capsys.readouterr()
        predict.main([str(network), "stored.png", "negative.png", "--show", "--json"])
        assert len({str(result["probabilities"]) for result in json.loads(capsys.readouterr().out)}) == 1
        for name in ("stored", "negative"):
            assert np.array_equal(np.asarray(Image.open(f"seen/{name}.png")), large[0])
        with pytest.raises(SystemExit):
            predict.main([str(network), str(pictures / "001_1.png")])
        out, err = capsys.readouterr()
        assert out == ""
        assert err == (
            f"mnist-predict: {pictures / '001_1.png'}: this network was trained on FashionMNIST, not on digits, and takes "
            "only pictures like those: 28x28 pixels, grey; this one has 112x112\n"
        )
        with demo.Demo(demo.load_networks([str(network)]), port=0) as server:
            picture = (pictures / "001_1.png").read_bytes()
            with pytest.raises(ValueError, match=r"^this network was trained on FashionMNIST"):
                server.answer(picture)


class TestMistakes:
    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
        with pytest.raises(SystemExit) as leaving:
            predict.main([str(argument) for argument in arguments])
        assert leaving.value.code == 2
        captured = capsys.readouterr()
        return captured.out, captured.err

    def test_no_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out, err = self.refused(capsys, tmp_path, "x.png")
        assert (out, err) == ("", f"mnist-predict: {tmp_path} is not a run directory: it has no run.json\n")

    def test_folder_without_pictures(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _, err = self.refused(capsys, "run", tmp_path)
        assert (
            err
            == f"mnist-predict: {tmp_path} holds no picture; expected files that end in .png, .jpg, .jpeg, .webp, .gif, .bmp, .tif, .tiff\n"
        )

    def test_the_others_are_classified(self, network: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("bad.png").write_bytes(b"rubbish")
        out, err = self.refused(capsys, network, pictures / "001_1.png", "bad.png", "gone.png")
        assert len(out.splitlines()) == 1
        assert err == (
            "mnist-predict: bad.png: is not a picture in a format that is read (PNG, JPEG, WebP, GIF, BMP, TIFF)\n"
            "mnist-predict: gone.png: does not exist\n"
        )


class TestDemo:
    @pytest.fixture
    def server(self, network: Path) -> Iterator[demo.Demo]:
        with demo.Demo(demo.load_networks([str(network)]), port=0) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            yield server
            server.shutdown()
            thread.join()

    def ask(self, server: demo.Demo, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = response.status, response.read()
        connection.close()
        return answer

    def test_answers(self, server: demo.Demo) -> None:
        one = np.full((280, 280), 255, dtype=np.uint8)
        one[40:240, 130:150] = 0
        buffer = io.BytesIO()
        Image.fromarray(one).save(buffer, "PNG")
        status, body = self.ask(server, "POST", "/classify", buffer.getvalue())
        assert status == 200
        answer = json.loads(body)
        assert answer["seen"].startswith("data:image/png;base64,")
        (found,) = answer["networks"]
        assert np.argmax(found["probabilities"]) == 1
        assert (found["name"], found["directory"]) == ("lenet5", "run")

    def test_refuses(self, server: demo.Demo) -> None:
        assert server.server_address[0] == "127.0.0.1"
        assert self.ask(server, "GET", "/")[0] == 200
        assert self.ask(server, "GET", "/../pyproject.toml")[0] == 404
        assert self.ask(server, "POST", "/classify", b"rubbish") == (
            422, b'{"error": "is not a picture in a format that is read (PNG, JPEG, WebP, GIF, BMP, TIFF)"}',
        )  # fmt: skip
        assert self.ask(server, "POST", "/classify")[0] == 413
        assert self.ask(server, "POST", "/elsewhere", b"x")[0] == 404
        assert self.ask(server, "GET", "/", Host="evil.example:80")[0] == 403
        assert self.ask(server, "POST", "/classify", b"x", Host="evil.example")[0] == 403

    @pytest.mark.parametrize("host", ["localhost:9000", "LocalHost", "127.0.0.1:1", "[::1]:9000", "[::1]"])
    def test_behind_a_forwarded_port(self, host: str, server: demo.Demo) -> None:
        assert self.ask(server, "GET", "/", Host=host)[0] == 200

    @pytest.mark.parametrize(
        "host",
        ["", "localhost.evil.example", "evil.example:8000", "localhost:80@evil.example", "127.0.0.1.evil", "::1"],
    )
    def test_other_names_are_refused(self, host: str, server: demo.Demo) -> None:
        assert self.ask(server, "GET", "/", Host=host)[0] == 403

    @pytest.mark.parametrize("origin", ["http://localhost:9000", "http://127.0.0.1", "https://[::1]:1"])
    def test_pages_of_its_own(self, origin: str, server: demo.Demo) -> None:
        assert self.ask(server, "POST", "/classify", b"rubbish", Origin=origin)[0] == 422

    @pytest.mark.parametrize("origin", ["null", "https://evil.example", "http://localhost.evil", "file://", ""])
    def test_pages_of_others_are_refused(self, origin: str, server: demo.Demo) -> None:
        assert self.ask(server, "POST", "/classify", b"rubbish", Origin=origin)[0] == 403

    @pytest.mark.parametrize("length", ["abc", "-1", "1e3", "9" * 30, "+5"])
    def test_a_length_that_is_no_number(self, length: str, server: demo.Demo) -> None:
        request = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
            connection.sendall(request.encode())
            assert connection.recv(4096).startswith(b"HTTP/1.0 400 ")

    def test_a_small_file_of_many_pixels(self, server: demo.Demo) -> None:
        buffer = io.BytesIO()
        Image.new("1", (3000, 3000)).save(buffer, "PNG")
        status, body = self.ask(server, "POST", "/classify", buffer.getvalue())
        assert (status, json.loads(body)) == (422, {"error": "has more than 4 million pixels: 3000x3000"})

    def test_one_picture_at_a_time(self, server: demo.Demo, monkeypatch: pytest.MonkeyPatch) -> None:
        at_work = []
        most = []

        def slow(content: bytes, largest: int) -> None:
            at_work.append(content)
            most.append(len(at_work))
            time.sleep(0.02)
            at_work.remove(content)
            raise ValueError("none")

        monkeypatch.setattr(server_of_demo, "decoded", slow)
        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(self.ask, server, "POST", "/classify", bytes([number])) for number in range(1, 7)]
        assert {each.result()[0] for each in asked} == {422}
        assert most == [1] * 6

    def test_silent_connections(self, server: demo.Demo, monkeypatch: pytest.MonkeyPatch) -> None:
        """They are bounded in number, and end; then others are heard again."""
        monkeypatch.setattr(server_of_demo._Handler, "timeout", 0.3)
        before = threading.active_count()
        silent = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(60)]
        try:
            assert [connection.recv(1) for connection in silent] == [b""] * 60
            assert threading.active_count() - before <= loopback.MAX_CONNECTIONS
        finally:
            for connection in silent:
                connection.close()
        assert self.ask(server, "GET", "/")[0] == 200

    def test_its_end(self, server: demo.Demo, monkeypatch: pytest.MonkeyPatch) -> None:
        """An answer that is being made is sent, a silent connection is closed, and no thread is left, which could abort Python."""
        begun = threading.Event()

        def slow(content: bytes, largest: int) -> None:
            begun.set()
            time.sleep(0.2)
            raise ValueError("late")

        monkeypatch.setattr(server_of_demo, "decoded", slow)
        with (
            socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as silent,
            ThreadPoolExecutor(1) as pool,
        ):
            asked = pool.submit(self.ask, server, "POST", "/classify", b"picture")
            assert begun.wait(30)
            server.shutdown()
            server.server_close()
            assert not [thread.name for thread in threading.enumerate() if "process_request" in thread.name]
            assert asked.result() == (422, b'{"error": "late"}')
            assert silent.recv(1) == b""  # within the 10 seconds of IDLE_TIMEOUT

    def test_the_page_may_do_nothing_else(self, server: demo.Demo) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
        connection.request("GET", "/")
        policy = connection.getresponse().headers["Content-Security-Policy"]
        connection.close()
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "script-src 'unsafe-inline'" not in policy

    def test_a_network_that_cannot_be_loaded_is_reported(
        self, network: Path, composed: Callable[..., dict[str, object]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_run(Path("untrained"), composed("data=mnist5k"))
        assert len(demo.load_networks(["run", "untrained"])) == 1
        assert capsys.readouterr().err == (
            "left out: untrained has no checkpoints/last.pt yet; its status is completed\n"
        )

    def test_nothing_to_show(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as leaving:
            demo.main([str(tmp_path)])
        assert leaving.value.code == 2
        assert capsys.readouterr().err == f"mnist-demo: no run in {tmp_path}; a run directory has a run.json\n"

    def test_used_port(self, server: demo.Demo, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as leaving:
            demo.main(["run", "--port", str(server.server_port)])
        assert leaving.value.code == 2
        assert capsys.readouterr().err.startswith(f"mnist-demo: --port {server.server_port} cannot be used (")
