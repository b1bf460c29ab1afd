"""Readers of files that somebody else may have written: damaged or hostile content gives the reader's own error or a result,
never another exception, and does not hang. ``FUZZ_EXAMPLES=10000`` tries more, at random, as ``make soak`` does.
"""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import signal
import socket
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from faults.mutations import json_values, mutated_bytes, mutated_trees
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic_runs import write_run

from mnist_exp.data import DataError, idx_folder, png_folder
from mnist_exp.data.photographs import decoded
from mnist_exp.demo import Demo
from mnist_exp.models import MLP
from mnist_exp.reports.collect import compare
from mnist_exp.runs import RunDirectoryError
from mnist_exp.runs.reading import read_config, read_metrics, read_record, read_run
from mnist_exp.runs.sweep import read_sweep
from mnist_exp.training import TrainState, constant, fitting, load_checkpoint, save_checkpoint

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
LONGEST_SECONDS = 60  # of one example; it takes milliseconds

fuzz = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,  # the same examples at every run of the tests
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@contextmanager
def no_hang() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"the reader took more than {LONGEST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read(reader: Callable[[], object], *errors: type[Exception]) -> None:
    """Call a reader, which may raise ``errors``."""
    with no_hang(), suppress(*errors):
        reader()


@pytest.fixture
def run(tmp_path: Path, composed: Callable[..., dict[str, Any]]) -> Path:
    return write_run(tmp_path / "runs" / "mlp-0", composed("data=mnist5k", "model=mlp", "name=mlp"), images=40)


@pytest.mark.parametrize("packed", [False, True])
def test_idx(idx: Callable[..., Path], packed: bool) -> None:
    root = idx(gz=packed)
    originals = {file: file.read_bytes() for file in sorted(root.iterdir())}

    @fuzz
    @given(st.data())
    def check(data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(originals)))
        content = gzip.decompress(originals[file]) if packed else originals[file]
        inside = packed and data.draw(st.booleans())
        changed = data.draw(mutated_bytes(content if inside else originals[file]))
        file.write_bytes(gzip.compress(changed) if inside else changed)
        try:
            read(lambda: idx_folder(root=str(root), download=None), DataError)
        finally:
            file.write_bytes(originals[file])

    check()


@pytest.mark.parametrize("archive", [None, ".tar", ".tar.gz"])
def test_png(png: Callable[..., Path], archive: str | None) -> None:
    root = png(archive=archive)
    originals = {file: file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}

    @fuzz
    @given(st.data())
    def check(data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(originals)))
        changed = data.draw(mutated_bytes(originals[file]))
        file.write_bytes(changed)
        try:
            read(lambda: png_folder(root=str(root)), DataError)
        finally:
            file.write_bytes(originals[file])

    check()


def test_tar_names(tmp_path: Path) -> None:
    pixels = io.BytesIO()
    Image.new("L", (28, 28)).save(pixels, "PNG")

    @fuzz
    @given(
        st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=5),
        st.sampled_from(list(tarfile.SUPPORTED_TYPES)),
    )
    def check(names: list[str], kind: bytes) -> None:
        for split in ("train", "test"):
            with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
                for name in names:
                    info = tarfile.TarInfo(name)
                    info.size, info.type = len(pixels.getvalue()), kind
                    with suppress(ValueError, UnicodeError):
                        tar.addfile(info, io.BytesIO(pixels.getvalue()))
        read(lambda: png_folder(root=str(tmp_path)), DataError)

    check()


def test_config(run: Path) -> None:
    file = run / "config.yaml"
    content = file.read_bytes()
    tree = yaml.safe_load(content)

    @fuzz
    @given(
        st.one_of(
            mutated_bytes(content),
            mutated_trees(tree).map(lambda tree: yaml.dump(tree).encode("utf-8", "surrogatepass")),
        )
    )
    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        read(lambda: read_config(run), RunDirectoryError)

    check()


def test_record(run: Path) -> None:
    file = run / "run.json"
    content = file.read_bytes()

    @fuzz
    @given(st.one_of(mutated_bytes(content), mutated_trees(json.loads(content)).map(encoded)))
    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        read(lambda: read_record(run), RunDirectoryError)

    check()


def test_metrics(run: Path) -> None:
    file = run / "metrics.jsonl"
    content = file.read_bytes()
    rows = [json.loads(line) for line in content.splitlines()]

    @fuzz
    @example(content.replace(b'"epoch": 1', b'"epoch": 1' + b"0" * 400))
    @given(
        st.one_of(
            mutated_bytes(content),
            mutated_trees({"rows": rows}).map(lambda tree: b"\n".join(encoded(row) for row in each(tree.get("rows")))),
        )
    )
    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        read(lambda: read_metrics(run), RunDirectoryError)

    check()


def test_sweep(tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    content = (Path(__file__).parents[1] / "runs/version_0_1/sweep/sweep.json").read_bytes()

    @fuzz
    @given(st.one_of(mutated_bytes(content), mutated_trees(json.loads(content)).map(encoded)))
    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        read(lambda: read_sweep(tmp_path), RunDirectoryError)

    check()


def test_report_of_a_damaged_run_among_others(run: Path, composed: Callable[..., dict[str, Any]]) -> None:
    """One bad directory must not stop the report of the others."""
    for seed in (1, 2):
        write_run(run.with_name(f"mlp-{seed}"), composed("data=mnist5k", "model=mlp", "name=mlp"), seed=seed, images=40)
    originals = {file: file.read_bytes() for file in sorted(run.iterdir())}
    names = ("run.json", "config.yaml", "metrics.jsonl", "predictions.npz")

    @fuzz
    @given(st.data())
    def check(data: st.DataObject) -> None:
        file = run / data.draw(st.sampled_from(names))
        choices = [mutated_bytes(originals[file])]
        if file.suffix == ".json":
            choices.append(mutated_trees(json.loads(originals[file])).map(encoded))
        file.write_bytes(data.draw(st.one_of(choices)))
        try:
            with no_hang():
                comparison = compare(sorted(run.parent.iterdir()))
            counted = [run.path.name for arm in comparison.arms for run in arm.runs.values()]
            assert {"mlp-1", "mlp-2"} <= set(counted)
        finally:
            file.write_bytes(originals[file])

    check()


def small_state() -> TrainState:
    torch.manual_seed(0)
    model = MLP(hidden=[3], image_size=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.zeros(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    return TrainState(model, optimizer, constant(optimizer, epochs=1, steps_per_epoch=1), None, torch.device("cpu"))


def test_checkpoint_bytes(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "last.pt"
    file.parent.mkdir()
    save_checkpoint(file, small_state().state_dict())
    content = file.read_bytes()

    @fuzz
    @given(mutated_bytes(content))
    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        read(lambda: load_checkpoint(file, torch.device("cpu")), RunDirectoryError)

    check()


def test_checkpoint_content(tmp_path: Path) -> None:
    """A whole file with other keys, shapes or types than the run's."""
    file = tmp_path / "checkpoints" / "last.pt"
    file.parent.mkdir()
    tensors = st.sampled_from([torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(0), torch.tensor(1.0)])
    content = small_state().state_dict()

    @fuzz
    @given(mutated_trees({"state": content}, st.one_of(json_values, tensors)))
    def check(changed: Mapping[str, Any]) -> None:
        save_checkpoint(file, changed.get("state"))

        def resume() -> None:
            state = load_checkpoint(file, torch.device("cpu"))
            with fitting(file):
                small_state().load_state_dict(state)

        read(resume, RunDirectoryError)

    check()


def test_predictions_that_decompress_to_too_much(run: Path) -> None:
    with zipfile.ZipFile(run / "predictions.npz", "w") as archive:
        with archive.open("logits.npy", "w") as entry:
            np.lib.format.write_array(entry, np.zeros((3, 10), dtype=np.float32))
        archive.infolist()[0].file_size = 2**30 + 1
    assert any("predictions.npz" in note and "more than 1073741824 bytes" in note for note in compare([run]).notes)


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl"])
def test_texts_that_are_too_large(run: Path, name: str) -> None:
    with (run / name).open("ab") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(RunDirectoryError, match=f"{name} cannot be read: it has more than 67108864 bytes"):
        read_run(run)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_pictures(kind: str) -> None:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)

    @fuzz
    @given(mutated_bytes(buffer.getvalue()))
    def check(changed: bytes) -> None:
        read(lambda: decoded(changed, 10_000_000), ValueError)

    check()


def test_http(capfd: pytest.CaptureFixture[str]) -> None:
    with Demo([], 0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        request = f"POST /classify HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nContent-Length: 5\r\n\r\nhello".encode()

        @fuzz
        @example(b"")
        @given(mutated_bytes(request))
        def check(changed: bytes) -> None:
            with (
                suppress(ConnectionError),
                socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as client,
            ):
                client.sendall(changed)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
            connection.request("GET", "/")
            assert connection.getresponse().status == 200
            connection.close()

        try:
            with no_hang():
                check()
        finally:
            server.shutdown()
    assert "Traceback" not in capfd.readouterr().err


def encoded(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def each(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
