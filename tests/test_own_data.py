"""A user's own images: other sizes, channels and numbers of classes than MNIST's, from training to the report."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from exit_status import status_of
from PIL import Image
from warm_commands import WarmCommands

from mnist_exp import native
from mnist_exp.cli import eval as evaluate
from mnist_exp.cli import predict, report
from mnist_exp.compose import CONF
from mnist_exp.config import Preparation, check
from mnist_exp.data import DataError
from mnist_exp.data.splits import labelled, pixel_statistics, pixels_of, prepare
from mnist_exp.errors import as_typed
from mnist_exp.hashing import config_hash
from mnist_exp.models import MLP, LeNet5, LeNet5_1998, layer_table
from mnist_exp.native.structure import NotCovered, structure
from mnist_exp.reader import trained_model
from mnist_exp.runs import read_run

ROOT = Path(__file__).parent.parent
EXAMPLE, EXTENDING = ROOT / "examples" / "own_data", ROOT / "docs" / "extending.md"
QUICK = ["trainer.epochs=2", "trainer.threads=1", "trainer.device=cpu", "logger=none"]
COLOURS = '''
"""Images 32x32x3 as CIFAR-10's: a class is a pattern of colours, under noise."""

import numpy as np


def colours(train=400, test=200, side=32, classes=10, channels=3, labels=np.int64, pixels=np.uint8):
    patterns = np.random.default_rng(1).integers(40, 216, (classes, side, side, channels))
    random = np.random.default_rng(2)
    parts = []
    for count in (train, test):
        own = np.arange(count) % classes
        noisy = patterns[own] + random.normal(0, 60, (count, side, side, channels))
        parts += [noisy.clip(0, 255).astype(pixels), own.astype(labels)]
    return tuple(part[..., 0] if channels == 1 and part.ndim == 4 else part for part in parts)


class Colours:
    def __init__(self):
        self.train_images, self.train_labels, self.test_images, self.test_labels = colours()


def counted(seed=0):
    with open("calls", "a") as file:
        file.write(f"{seed} ")
    return colours()


def nothing():
    return None
'''
COLOUR_DATA = "_target_: own_colours.colours\nchannels: 3\n"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A module with a data set beside the command, and its configuration."""
    (tmp_path / "own_colours.py").write_text(COLOURS)
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "colours.yaml").write_text(COLOUR_DATA)
    monkeypatch.delitem(sys.modules, "own_colours", raising=False)
    return ["--config-dir", "mine", "data=colours", *QUICK]


@pytest.mark.parametrize(
    "model", [["model=lenet5", "regularization=full", "regularization.mixup=0.2"], ["model=mlp", "model.hidden=[32]"]]
)
def test_colour_images(
    model: list[str],
    own: list[str],
    mnist_train: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert (
        mnist_train(*own, *model, "optimizer=adam", "trainer.epochs=3", "data.val_size=100", "hydra.run.dir=run") == 0
    )
    run = read_run(tmp_path / "run")
    mean, std = run.record.preparation.mean, run.record.preparation.std
    assert run.record.preparation.image_size == 32
    assert len(mean) == len(std) == 3
    assert run.record.backend == ("torch" if model[0] == "model=lenet5" else "native")
    if model[0] == "model=mlp":
        assert run.record.parameters == (3 * 32 * 32 + 1) * 32 + 33 * 10
        assert run.record.final["test_accuracy"] > 0.5, "it learns"
    with np.load(tmp_path / "run" / "predictions.npz") as arrays:
        images, worst = arrays["worst_images"], arrays["worst"]
    assert images.shape[1:] == (32, 32, 3)
    import own_colours  # type: ignore[import-not-found]

    np.testing.assert_array_equal(images, own_colours.colours()[2][worst], "the very pixels")
    capsys.readouterr()

    assert status_of(evaluate.main, "run", "--json") == 2
    assert "--trust own_colours" in capsys.readouterr().err
    assert status_of(evaluate.main, "run", "--trust", "own_colours", "--json") == 0
    assert json.loads(capsys.readouterr().out)["matches_record"] is True
    with Image.open(tmp_path / "run" / "worst_digits.png") as picture:
        assert np.ptp(np.asarray(picture, dtype=int), axis=2).max() > 60, "in colour"

    for override in ("data.channels=1", "data.num_classes=26"):
        assert status_of(evaluate.main, "run", "--trust", "own_colours", override) == 2
        trained_with = 3 if "channels" in override else 10
        assert (
            capsys.readouterr().err
            == f"mnist-eval: {override}: the network was trained with {trained_with}; leave it out\n"
        )
    assert status_of(evaluate.main, "run", "--trust", "own_colours", "data=mnist5k", "data.image_size=32") == 2
    assert "data.channels=3, and the training images have 1" in capsys.readouterr().err

    again = ["resume=run", "trainer.epochs=4"]
    assert mnist_train(*again) == 2
    assert "--trust own_colours" in capsys.readouterr().err
    assert mnist_train("--trust", "own_colours", *again) == 0
    assert len(read_run(tmp_path / "run").metrics) == 4

    capsys.readouterr()
    assert status_of(predict.main, "run", "run/worst_digits.png", "--trust", "own_colours") == 2
    line = "has 10 classes of colour images; pictures are classified with networks for grey images in 10 classes only"
    assert capsys.readouterr().err == f"mnist-predict: run {line}\n"


def test_data_are_read_once_for_a_run_and_once_to_check_a_sweep(
    own: list[str], tmp_path: Path, mnist_train_process: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Reading may take long, and here only the data know how large the images are."""
    counted = [*own, "data._target_=own_colours.counted", "model=mlp", "model.hidden=[4]", "trainer.epochs=1"]
    assert mnist_train_process(*counted).returncode == 0
    assert (tmp_path / "calls").read_text() == "0 "
    (tmp_path / "calls").unlink()
    done = mnist_train_process("-m", *counted, "+data.seed=5,6", "seed=0,1", "hydra.sweep.dir=sweep")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "calls").read_text().split() == ["5", "6", "5", "5", "6", "6"]


def test_a_class_with_four_attributes(own: list[str], mnist_train: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "mine" / "data" / "colours.yaml").write_text("_target_: own_colours.Colours\nchannels: 3\n")
    assert mnist_train(*own, "model=mlp", "trainer.epochs=1", "data.limit=100", "hydra.run.dir=run") == 0


def test_evaluation_uses_the_size_and_normalisation_of_the_run(
    own: list[str], mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine" / "data" / "colours.yaml").write_text("_target_: own_colours.colours\nchannels: 1\nside: 28\n")
    (tmp_path / "own_colours.py").write_text(COLOURS.replace("channels=3", "depth=1").replace("channels", "depth"))
    sys.modules.pop("own_colours", None)
    assert mnist_train(*own, "model=mlp", "hydra.run.dir=run") == 0
    capsys.readouterr()
    assert status_of(evaluate.main, "run", "data=mnist5k", "--trust", "own_colours", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["same_data"]) == (1000, False)
    assert status_of(evaluate.main, "run", "data.image_size=14", "--trust", "own_colours") == 2
    assert "the network takes images of 28 pixels" in capsys.readouterr().err


MISTAKES = [
    (["data.channels=1"], "data.channels=1, and the training images have 3; type data.channels=3"),
    (["data.num_classes=5"],
     "data._target_=own_colours.colours: train_labels hold 5 at index 5; with data.num_classes=5 they are 0 to 4"),
    (["+data.labels=float"], "data._target_=own_colours.colours: train_labels are float64 of the shape (400,); labels are "
     "integers of the shape (N,)"),
    (["+data.pixels=float"], "data._target_=own_colours.colours: train_images are float64; images are uint8, from 0 to 255"),
    (["data._target_=own_colours.nothing"], "data._target_=own_colours.nothing: returned something else than four arrays: "
     "train_images, train_labels, test_images, test_labels"),
    (["data._target_=own_colours.missing"], "data._target_=own_colours.missing does not exist: "),
    (["+data.colour=red"], "data: colours() got an unexpected keyword argument 'colour'"),
    (["data.mean=[0.1,0.2]"], "data.mean=[0.1,0.2] has 2 values and data.channels=3: give one number, or one for each channel"),
    (["data.image_size=0"], "data.image_size=0 should be greater than or equal to 1"),
    (["data.channels=2"], "data.channels=2 should be 1 or 3"),
    (["data.val_size=400"], "data.val_size=400 is not in 0..399: there are 400 training images"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=[" ".join(overrides) for overrides, _ in MISTAKES])
def test_mistakes_get_one_line_and_leave_nothing(
    overrides: list[str],
    message: str,
    own: list[str],
    mnist_train: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    assert mnist_train(*own, *overrides) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mnist-train: {message}")
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == before


def test_the_network_of_1998_takes_grey_digits_only(
    own: list[str], mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train(*own, "model=lenet5_1998") == 2
    assert capsys.readouterr().err == "mnist-train: data.channels=3 should be 1\n"
    for wrong in ({"in_channels": 3}, {"num_classes": 26}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LeNet5_1998(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("_target_: torch.nn.Sequential\n_args_: [{_target_: torch.nn.Flatten}, {_target_: torch.nn.Linear, in_features: 3072, "
         "out_features: 7}]\n", "model._target_=torch.nn.Sequential has 7 outputs, and data.num_classes=10"),
        ("_target_: torch.nn.Sequential\n_args_: [{_target_: torch.nn.Flatten}, {_target_: torch.nn.Linear, in_features: 784, "
         "out_features: 10}]\n", "model._target_=torch.nn.Sequential does not accept images of 3x32x32: "),
    ],
)  # fmt: skip
def test_a_network_that_does_not_fit_the_data(
    model: str,
    message: str,
    own: list[str],
    mnist_train: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "mine" / "model").mkdir()
    (tmp_path / "mine" / "model" / "x.yaml").write_text(model)
    assert mnist_train(*own, "model=x") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mnist-train: {message}")


def test_outputs_are_those_of_the_network_not_of_its_last_layer(
    own: list[str], mnist_train: Callable[..., int], tmp_path: Path
) -> None:
    (tmp_path / "own_colours.py").write_text(
        COLOURS
        + """
import torch

class Averaged(torch.nn.Module):
    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.maps = torch.nn.Conv2d(in_channels, num_classes, 3)

    def forward(self, images):
        return self.maps(images).mean(dim=(2, 3))
"""
    )
    (tmp_path / "mine" / "model").mkdir()
    (tmp_path / "mine" / "model" / "x.yaml").write_text("_target_: own_colours.Averaged\n")
    assert mnist_train(*own, "model=x", "trainer.epochs=1", "hydra.run.dir=run") == 0
    assert read_run(tmp_path / "run").record.parameters == 3 * 9 * 10 + 10


@pytest.mark.slow
def test_example_in_fresh_processes(tmp_path: Path, warm_commands: WarmCommands) -> None:
    """Trained, resumed, evaluated, swept and reported: 26 classes of images with 24 pixels a side."""
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)

    def run(command: str, *arguments: str) -> str:
        done = subprocess.run(
            [warm_commands.bin / command, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    own = ["--config-dir", "conf", "data=letters"]
    run("mnist-train", *own, "trainer.epochs=3", "optimizer=adam", *QUICK[1:], "hydra.run.dir=run")
    record = read_run(tmp_path / "run").record
    assert record.status == "completed"
    assert record.preparation.image_size == 24
    tables = run("mnist-eval", "run", "--trust", "letters")
    assert "Classes; the confusion matrix is in evaluation.json" in tables
    assert len(json.loads((tmp_path / "run" / "evaluation.json").read_text())["confusion"]) == 26

    sweep = [*own, "model=lenet5,mlp", "seed=0,1", *QUICK, "hydra.sweep.dir=sweep"]
    run("mnist-train", "-m", *sweep)
    run("mnist-train", "-m", *sweep)
    runs = [read_run(path.parent) for path in sorted((tmp_path / "sweep").glob("*/run.json"))]
    assert [run.record.status for run in runs] == ["completed"] * 4
    run("mnist-report", "sweep", "--output", "report")
    page = next((tmp_path / "report").glob("*.html")).read_text()
    assert '"label": 25' in page or '"label":25' in page


def test_report_of_colour_images(
    own: list[str], mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for seed in (0, 1):
        assert mnist_train(*own, "model=mlp", f"seed={seed}", "trainer.epochs=1", f"hydra.run.dir=run{seed}") == 0
    assert status_of(report.main, "run0", "run1", "--output", "report") == 0
    assert "data:image/png;base64," in next((tmp_path / "report").glob("*.html")).read_text()
    capsys.readouterr()


@pytest.mark.parametrize("options", [{"num_classes": 26}, {"in_channels": 3, "num_classes": 26}, {"in_channels": 3}])
def test_kernels_compute_other_channels_and_classes_or_decline(options: dict[str, int]) -> None:
    channels = options.get("in_channels", 1)
    images = torch.randn(70, channels, 20, 20, generator=torch.Generator().manual_seed(0))
    for kind in (LeNet5, MLP):
        model = kind(image_size=20, **options)
        expected = model(images)
        assert layer_table(model, 20, channels)[-1].output_shape == (options.get("num_classes", 10),)
        if kind is LeNet5 and channels == 3:
            with pytest.raises(NotCovered, match="these have 3 channels"):
                structure(model)
            continue
        expected.square().mean().backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        try:
            native.attach(model)
        except native.NativeUnavailable:
            pytest.skip("no compiler")
        logits = model(images)
        logits.square().mean().backward()
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def arrays(channels: int = 1, side: int = 8, count: int = 20, classes: int = 4) -> list[Any]:
    random = np.random.default_rng(0)
    shape = (count, side, side) if channels == 1 else (count, side, side, channels)
    return [random.integers(0, 256, shape, dtype=np.uint8), np.arange(count) % classes] * 2


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_of_the_images_that_are_trained_on(channels: int) -> None:
    stored = arrays(channels)
    stored[0] = stored[0].copy()
    stored[0][:4] = 255
    data = prepare(
        *labelled(stored, 4), channels=channels, num_classes=4, mean=None, std=None, image_size=None, val_size=8
    )
    pixels = data.train.images
    assert pixels.shape == (12, channels, 8, 8)
    torch.testing.assert_close(pixels.mean(dim=(0, 2, 3)), torch.zeros(channels), rtol=0, atol=1e-5)
    torch.testing.assert_close(pixels.std(dim=(0, 2, 3), correction=0), torch.ones(channels), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(pixels_of(data.test.images, data.mean, data.std), stored[2])
    black = (0 - np.array(data.mean)) / np.array(data.std)
    np.testing.assert_allclose(np.ravel(np.asarray(data.background)), np.ravel(black), rtol=1e-5)


def test_images_of_one_colour_are_not_divided_by_zero() -> None:
    assert pixel_statistics(np.full((2, 3, 3), 255, np.uint8)) == (1.0, 1.0)


def test_images_are_resized_if_a_size_is_set() -> None:
    data = prepare(*labelled(arrays(3), 4), channels=3, num_classes=4, image_size=12, mean=0.0, std=1.0)
    assert data.train.images.shape == (20, 3, 12, 12)
    assert data.test.images.shape == (20, 3, 12, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: [*a[:2], a[2][:, :6, :6], a[3]],
            "training and test images have different sizes: 8x8 and 6x6 pixels",
        ),
        (lambda a: [a[0][:, :6], *a[1:]], "the training images have 6x8 pixels; only square ones can be used"),
        (lambda a: [*a[:3], a[3][:-1]], "there are 20 test images and 19 labels of them"),
        (lambda a: [a[0][:0], a[1][:0], *a[2:]], "there are 0 training images and 0 labels of them"),
        (lambda a: [a[0][0], *a[1:]], r"train_images have the shape \(8, 8\); it should be"),
        (
            lambda a: [a[0], a[1] - 1, *a[2:]],
            "train_labels hold -1 at index 0; with data.num_classes=4 they are 0 to 3",
        ),
        (lambda a: a[:3], "returned something else than four arrays"),
    ],
)
def test_arrays_that_are_refused(change: Callable[[list[Any]], list[Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(*labelled(change(arrays()), 4), num_classes=4)


def test_more_than_256_classes() -> None:
    stored = arrays(count=600, classes=300)
    data = prepare(*labelled(stored, 300), num_classes=300)
    assert data.train.labels.max() == 299


def test_new_keys_do_not_change_the_hash_of_earlier_configurations(composed: Callable[..., dict[str, Any]]) -> None:
    """The values are those of the second version of the hash, whatever keys with a default came later."""
    assert config_hash(check(composed("name=x"))) == "f6f726256a57"
    assert config_hash(check(composed("data=mnist5k", "name=x"))) == "acf89310055d"
    assert config_hash(check(composed("data=fashion_mnist", "data.val_size=50", "name=x"))) == "9906cc185ca1"
    for different in (["data.channels=3"], ["data.num_classes=26"], ["data.mean=null"]):
        assert config_hash(check(composed(*different))) != config_hash(check(composed())), different


def test_the_folder_of_own_data_counts_whatever_its_arguments(composed: Callable[..., dict[str, Any]]) -> None:
    tree = composed()
    own = {**tree["data"], "_target_": "mine.data", "download": True}
    first, second = ({**tree, "data": {**own, "root": root}} for root in ("/a", "/b"))
    assert check(first).data.target == "mine.data"
    assert config_hash(check(first)) != config_hash(check(second))


def test_a_trained_network_of_own_data_is_read_back(
    own: list[str], mnist_train: Callable[..., int], tmp_path: Path
) -> None:
    assert mnist_train(*own, "model=lenet5", "trainer.epochs=1", "hydra.run.dir=run") == 0
    model, _ = trained_model(read_run(tmp_path / "run"), torch.device("cpu"), ["own_colours"])
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    taught = ["regularization.distillation.teachers=[run]", "model=mlp", "trainer.epochs=1"]
    assert mnist_train(*own, *taught, "hydra.run.dir=pupil") == 0
    assert mnist_train(*own, "model=lenet5", "trainer.epochs=1", "init_from=run", "hydra.run.dir=further") == 0


def test_documented_data_set(mnist_train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = EXTENDING.read_text().partition("## Own data\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)
    monkeypatch.delitem(sys.modules, "bars", raising=False)
    for kind in ("python", "yaml"):
        (content,) = (text for fence, text in blocks if fence == kind)
        file = tmp_path / content.split()[1]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    lines = [line for fence, text in blocks if fence == "text" for line in text.splitlines()]
    assert len(lines) == 3
    quick = ["trainer.epochs=1", "trainer.threads=1", "trainer.device=cpu", "logger=none"]
    for line in lines[:2]:
        command, *arguments = shlex.split(line)
        assert command == "mnist-train"
        assert mnist_train(*arguments, *quick) == 0
    assert mnist_train(*shlex.split(lines[2])[1:-1], "seed=0", *quick, "hydra.sweep.dir=sweep") == 0


def test_documented_defaults_are_those_of_the_configuration() -> None:
    defaults = yaml.safe_load((CONF / "data" / "common" / "preparation.yaml").read_text())
    assert defaults.keys() == Preparation.model_fields.keys()
    for key in ("channels", "num_classes", "image_size", "mean"):
        assert re.search(rf"^\| `{key}`.*? \| {as_typed(defaults[key])} \|", EXTENDING.read_text(), flags=re.MULTILINE)
