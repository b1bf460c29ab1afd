"""A user's own callbacks: their settings, arguments, metrics and failures."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist_exp.cli import eval as evaluate
from mnist_exp.cli import report
from mnist_exp.config import check
from mnist_exp.hashing import config_hash
from mnist_exp.runs.reading import FIGURES, read_config, read_metrics, read_record
from mnist_exp.training import EpochMetrics

Train = Callable[..., int]

OWN = """
import math
from pathlib import Path
import torch
from mnist_exp.training import Callback

class Metrics(Callback):
    def __init__(self, every=1, name="own"):
        if every < 1:
            raise ValueError(f"every={every} should be at least 1")
        self.every, self.name = every, name
    def epoch_metrics(self, state, dataset):
        torch.rand(3)
        assert dataset.val is None and state.model.training
        return {self.name: torch.tensor(state.epoch / self.every)}

class NotFinite(Callback):
    def epoch_metrics(self, state, dataset):
        return {"own": math.nan, "large": math.inf}

class Asks(Callback):
    def __init__(self, directory, name, parameters, config, sweep, given, run_id=7):
        assert not directory.exists()
        self.told = [directory.name, name, parameters, config["model"]["_target_"], sweep, given, run_id]
        self.file = directory / "told.txt"
    def on_start(self, event):
        self.file.write_text(repr(self.told))

class Fails(Callback):
    def __init__(self, at):
        self.at = at
    def fail(self, at):
        if at == self.at and not Path("mended").exists():
            raise OSError("no such luck")
    def on_start(self, event): self.fail("on_start")
    def on_step(self, event): self.fail("on_step")
    def epoch_metrics(self, state, dataset):
        if state.epoch == 2:
            self.fail("epoch_metrics")
        return {}
    def on_epoch(self, event): self.fail("on_epoch")
    def on_end(self, event): self.fail("on_end")

class NoCallback: ...
"""


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "own_hooks.py").write_text(OWN)
    yield
    sys.modules.pop("own_hooks", None)


def naming(target: str, name: str = "mine", /, **arguments: object) -> str:
    """The override that names a callback of the module."""
    more = "".join(f", {key}: {value}" for key, value in arguments.items())
    return f"+callbacks.{name}={{_target_: own_hooks.{target}{more}}}"


def column(path: Path, name: str) -> list[Any]:
    return [row[name] for row in read_metrics(path)]


def test_figures_of_a_line_are_the_fields_of_the_event() -> None:
    assert {*FIGURES, "extra"} == set(EpochMetrics.__dataclass_fields__)


def test_named_on_the_command_line_and_in_an_own_folder(
    tmp_path: Path, small: list[str], mnist_train_process: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder = tmp_path / "conf" / "callbacks"
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_text("a: {_target_: own_hooks.Metrics, name: a}\n")
    (folder / "b.yaml").write_text("b: {_target_: own_hooks.Metrics, name: b}\n")
    for name, command, metrics in (
        ("short", ["+callbacks.mine._target_=own_hooks.Metrics"], {"own": [1, 2]}),
        ("long", ["+callbacks.mine={_target_: own_hooks.Metrics, every: 2}"], {"own": [0.5, 1]}),
        ("file", ["--config-dir", "conf", "callbacks=[a,b]"], {"a": [1, 2], "b": [1, 2]}),
    ):
        done = mnist_train_process(*command, *small, f"hydra.run.dir={name}")
        assert (done.returncode, done.stderr) == (0, "")
        for metric, values in metrics.items():
            assert column(tmp_path / name, metric) == values
            assert read_record(tmp_path / name).final[metric] == values[-1]


def test_random_numbers_drawn_for_a_metric_change_no_weights(
    tmp_path: Path, mnist_train: Train, small: list[str]
) -> None:
    small = [*small, "regularization=dropout"]
    assert mnist_train(*small, "hydra.run.dir=plain") == 0
    assert mnist_train(*small, naming("Metrics"), "hydra.run.dir=own") == 0
    for figure in ("train_loss", "test_loss"):
        assert column(tmp_path / "own", figure) == column(tmp_path / "plain", figure)


def test_what_is_not_finite_is_null(
    tmp_path: Path, mnist_train: Train, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train(*small, naming("NotFinite"), "hydra.run.dir=run") == 0
    assert column(tmp_path / "run", "own") == column(tmp_path / "run", "large") == [None, None]
    assert "NaN" not in (tmp_path / "run" / "run.json").read_text()
    report.main(["run"])


def test_a_constructor_gets_its_arguments(tmp_path: Path, mnist_train: Train, small: list[str]) -> None:
    assert mnist_train(*small, naming("Asks", given=3), "name=abc", "hydra.run.dir=run") == 0
    told = (tmp_path / "run" / "told.txt").read_text()
    assert told == "['run', 'abc-0', 61706, 'mnist_exp.models.LeNet5', None, 3, 7]"


REFUSED = [
    ("{_target_: own_hooks.Metrics, evry: 2}", "callbacks.mine: Metrics.__init__() got an unexpected keyword argument 'evry'"),
    ("{_target_: own_hooks.Metrics, every: 0}", "callbacks.mine.every=0 should be at least 1"),
    ("{_target_: own_hooks.Asks}", "callbacks.mine: Asks.__init__() missing 1 required positional argument: 'given'"),
    ("{_target_: own_hooks.NoCallback}",
     "callbacks.mine._target_=own_hooks.NoCallback is no mnist_exp.training.Callback but a NoCallback"),
    ("{_target_: no_such_module.A}", "callbacks.mine._target_=no_such_module.A does not exist: ModuleNotFoundError: No module "
     "named 'no_such_module'"),
    ("own_hooks.Metrics", "callbacks.mine=own_hooks.Metrics should be a section with a _target_; type "
     "+callbacks.mine._target_=my_module.MyCallback"),
    ("{every: 2}", "callbacks.mine._target_ is missing"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "message", "sweep"), [*((*case, []) for case in REFUSED), *((*case, ["-m"]) for case in REFUSED[:2])]
)
def test_what_is_refused_is_a_line_and_leaves_nothing(
    value: str,
    message: str,
    sweep: list[str],
    tmp_path: Path,
    mnist_train: Train,
    small: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert mnist_train(*sweep, *small, f"+callbacks.mine={value}") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mnist-train: ")]
    assert lines == [f"mnist-train: {message}"]
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["own_hooks.py"]


def test_an_unknown_choice(mnist_train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert mnist_train("callbacks=nope") == 2
    message = "callbacks=nope does not exist: no folder of configuration files has callbacks/nope.yaml"
    assert capsys.readouterr().err == f"mnist-train: {message}\n"


@pytest.mark.parametrize("at", ["on_start", "on_step", "epoch_metrics", "on_epoch", "on_end"])
def test_what_a_callback_raises_fails_the_run(
    at: str, tmp_path: Path, mnist_train: Train, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train(*small, naming("Fails", at=at), "hydra.run.dir=run") == 1
    message = "mnist-train: run failed: OSError: no such luck; see train.log there\n"
    assert capsys.readouterr().err == message
    record = read_record(tmp_path / "run")
    assert (record.status, record.error) == ("failed", "OSError: no such luck")
    log = (tmp_path / "run" / "train.log").read_text()
    assert "Traceback" in log
    assert "own_hooks.py" in log


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([naming("Metrics", name="x")], None),
        ([naming("Metrics", "a", name="test_loss")], "'test_loss' is a metric of the run itself; choose another name"),
        ([naming("Metrics", "a", name="train/loss")], "'train/loss' is a metric of the run itself; choose another name"),
        ([naming("Metrics", "a", name="seconds")], "'seconds' is a metric of the run itself; choose another name"),
        ([naming("Metrics", "a"), naming("Metrics", "b")], "'own' is a metric of another callback; choose another name"),
        ([naming("Metrics", "a", name="'a b'")], "'a b' is no name of a metric: letters, digits and _ . / - only, a letter "
         "first"),
    ],
)  # fmt: skip
def test_names_of_metrics(
    callbacks: list[str], message: str | None, tmp_path: Path, mnist_train: Train, small: list[str]
) -> None:
    status = mnist_train(*small, "trainer.epochs=1", *callbacks, "hydra.run.dir=run")
    assert status == (1 if message else 0)
    expected = f"ValueError: Metrics.epoch_metrics: {message}" if message else None
    assert read_record(tmp_path / "run").error == expected


def test_the_hash_counts_callbacks_and_no_loggers(composed: Callable[..., dict[str, Any]]) -> None:
    plain = composed("logger=none")
    before = {key: value for key, value in plain.items() if key != "callbacks"}  # of earlier versions
    assert plain["callbacks"] == {}
    hashed = config_hash(check(plain))
    assert hashed == config_hash(check(before)) == config_hash(check(composed("logger=[wandb,tensorboard]")))
    assert config_hash(check(composed(naming("Metrics")))) != hashed


def test_a_run_is_continued_with_trusted_callbacks_only(
    tmp_path: Path, mnist_train: Train, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks = [naming("Fails", "a", at="epoch_metrics"), naming("Metrics", "b")]
    assert mnist_train(*small, *callbacks, "hydra.run.dir=run") == 1
    (tmp_path / "mended").touch()
    capsys.readouterr()
    assert mnist_train("resume=run") == 2
    assert "add: --trust own_hooks" in capsys.readouterr().err
    assert len(read_metrics(tmp_path / "run")) == 1
    assert mnist_train("resume=run", "--trust", "own_hooks") == 0
    assert column(tmp_path / "run", "own") == [1, 2]
    capsys.readouterr()
    sys.modules.pop("own_hooks")
    (tmp_path / "own_hooks.py").unlink()  # evaluating needs no callback
    evaluate.main(["run"])
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    "section",
    [
        {"_target_": "mnist_exp.loggers.wandb.WandbLogger", "project": "theirs"},
        {"_target_": "mnist_exp.loggers.tensorboard.TensorBoardLogger", "directory": "/tmp"},
        {"_target_": "mnist_exp.loggers.console.Console", "directory": "/tmp"},
        {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1},
        {"_target_": "os.system", "command": "touch stolen"},
    ],
)
def test_a_directory_names_no_callback_by_itself(
    section: dict[str, Any],
    tmp_path: Path,
    trained: Callable[..., Path],
    mnist_train: Train,
    small: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = trained("run", *small)
    tree = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump({**tree, "callbacks": {"x": section}}))
    record = json.loads((path / "run.json").read_text())
    record["config_hash"] = config_hash(read_config(path))  # whoever made the directory knows how
    (path / "run.json").write_text(json.dumps(record))
    assert mnist_train("resume=run", "trainer.epochs=3") == 2
    assert f"callbacks.x._target_={section['_target_']} is not allowed" in capsys.readouterr().err
    assert len(read_metrics(path)) == 2


def test_a_sweep_and_its_report(
    tmp_path: Path, mnist_train: Train, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    swept = [
        *small,
        "trainer.epochs=1",
        naming("Metrics"),
        "+callbacks.mine.every=1,2",
        "seed=0,1",
        "hydra.sweep.dir=sweep",
    ]
    assert mnist_train("-m", *swept) == 0
    report.main(["sweep", "--output", "report"])
    with (tmp_path / "report" / "results.csv").open() as file:
        assert sorted(row["own"] for row in csv.DictReader(file)) == ["0.5", "0.5", "1.0", "1.0"]
    text = (tmp_path / "report" / "report.md").read_text()
    assert " own " in next(line for line in text.splitlines() if line.startswith("| arm | n |"))
    assert "0.5 ± 0" in text
    capsys.readouterr()
    assert mnist_train("-m", "sweep.resume=sweep") == 2  # callbacks are code, which no directory decides
    assert "own_hooks.Metrics" in capsys.readouterr().err


def test_the_example_and_the_document(
    tmp_path: Path, small: list[str], mnist_train_process: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    root = Path(__file__).parent.parent
    example = root / "examples" / "own_callback"
    section = (root / "docs" / "extending.md").read_text().partition("## Own callbacks and metrics\n")[2]
    shown = {kind: section.partition(f"```{kind}\n")[2].partition("```")[0] for kind in ("python", "yaml")}
    file = example / "conf" / "callbacks" / "norm.yaml"
    assert yaml.safe_load(shown["yaml"]) == yaml.safe_load(file.read_text())
    for name, module, command in (
        ("target", shown["python"], ["+callbacks.norm._target_=weight_norm.WeightNorm"]),
        ("file", (example / "weight_norm.py").read_text(), ["--config-dir", str(example / "conf"), "callbacks=norm"]),
    ):
        (tmp_path / "weight_norm.py").write_text(module)
        done = mnist_train_process(*command, *small, f"hydra.run.dir={name}")
        assert (done.returncode, done.stderr) == (0, "")
    norms = column(tmp_path / "target", "weight_norm")
    assert len(norms) == 2
    assert column(tmp_path / "file", "weight_norm") == norms
