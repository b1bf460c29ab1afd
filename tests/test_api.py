"""train, load_run, load_runs and load_model: the same as the commands, and nothing else of the process changed."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from warm_commands import WarmCommands

import mnist_exp
from mnist_exp.compose import CONF
from mnist_exp.reader import Classifier
from mnist_exp.runs import find_runs, read_run
from mnist_exp.signals import StopRequest

TIMES = {"train_seconds", "eval_seconds", "images_per_second"}


def curves(run: mnist_exp.Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in run.metrics]


def same_weights(first: Path, second: Path) -> bool:
    one, two = (torch.load(path / "checkpoints" / "last.pt", weights_only=True)["model"] for path in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_importing_the_package_imports_neither_torch_nor_hydra() -> None:
    code = (
        "import sys, mnist_exp; assert 'train' in dir(mnist_exp)\n"
        "print([name for name in ('torch', 'hydra', 'omegaconf', 'pydantic', 'numpy') if name in sys.modules])\n"
        "mnist_exp.UsageError\n"
        "print([name for name in ('torch', 'hydra') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"
    assert all(hasattr(mnist_exp, name) for name in mnist_exp.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        mnist_exp.trian  # noqa: B018


def test_train_is_mnist_train(
    small: list[str], mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*small, "model=mlp", "model.hidden=[16]", "regularization=dropout", "seed=3"]
    assert mnist_train(*words, "hydra.run.dir=command") == 0
    said = capsys.readouterr()
    runs = [mnist_exp.train(*words, directory=name) for name in ("first", Path("second"))]
    again = capsys.readouterr()
    command = read_run("command")
    for run in runs:
        assert curves(run) == curves(command)
        assert same_weights(run.path, command.path)
        assert (run.config, run.status) == (command.config, "completed")
        assert run.record.config_hash == command.record.config_hash
        assert run.record.command == command.record.command.replace("=command", f"={run.path}")
        files = [
            {path.relative_to(folder).as_posix() for path in folder.rglob("*")} for folder in (run.path, command.path)
        ]
        assert files[0] == files[1]
    lines = [text.count("\n") for text in (again.out, said.out, again.err, said.err)]
    assert lines == [2 * said.out.count("\n"), said.out.count("\n"), 0, 0]


def test_quiet_prints_the_result_only(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    mnist_exp.train(*small, "quiet=true", directory="run")
    said = capsys.readouterr()
    assert (said.out.count("\n"), said.err) == (1, "")


def test_a_directory_of_any_name(small: list[str]) -> None:
    run = mnist_exp.train(*small, "quiet=true", directory='a, "b"/lr=0.1')
    assert run.path == Path('a, "b"/lr=0.1')
    with pytest.raises(mnist_exp.UsageError, match="holds a completed run; there is nothing to resume"):
        mnist_exp.train(f"resume={run.path}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.epoch=3"], "trainer.epoch is not a key; did you mean trainer.epochs?"),
        (["model=lenet"], "model=lenet is not a choice"),
        (["optimizer.lr=-1"], "optimizer.lr=-1 should be greater than 0"),
        (["data=mnist5k", "model.channels=[0,1]"], "model.channels.0=0 should be"),
        (["seed=0,1"], "seed=0,1 names several values"),
        (["--multirun"], "--multirun: train() takes settings of one run only"),
        (["hydra.mode=MULTIRUN", "seed=0"], "hydra.mode=MULTIRUN: train() takes settings of one run only"),
        (["sweep.resume=DIR"], "sweep.resume=DIR goes with -m"),
        (["optimizer.lr=(("], "optimizer.lr=(( is not valid"),
        (["resume=nowhere"], "nowhere is not a directory"),
    ],
)
def test_a_mistake_is_a_usage_error_and_leaves_nothing(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(mnist_exp.UsageError) as raised:
        mnist_exp.train(*words)
    assert str(raised.value).startswith(message)
    assert list(Path.cwd().iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_a_missing_config_dir() -> None:
    with pytest.raises(mnist_exp.UsageError, match=r"--config-dir .*missing: there is no such folder"):
        mnist_exp.train("data=mnist5k", config_dir="missing")


def test_a_diverged_run_is_a_run_failed(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(mnist_exp.RunFailed, match="run diverged: the training loss or a weight is not finite"):
        mnist_exp.train(*small, "optimizer.lr=1e30", directory="run")
    assert mnist_exp.load_run("run").status == "diverged"
    assert capsys.readouterr().err == ""


def test_a_failure_of_ours_is_a_run_failed_with_its_cause(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_exp.experiment.fit", lambda *arguments, **options: 1 / 0)
    with pytest.raises(mnist_exp.RunFailed, match="ZeroDivisionError") as raised:
        mnist_exp.train(*small, directory="run")
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_an_interruption_is_a_keyboard_interrupt_and_the_run_can_be_resumed(
    small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mnist_exp.train(*small, directory="whole")
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "__call__", lambda request: setattr(request, "signal", 15) is None)
        with pytest.raises(KeyboardInterrupt, match="to continue it: mnist-train resume=run") as raised:
            mnist_exp.train(*small, directory="run")
    assert isinstance(raised.value, mnist_exp.RunInterrupted)
    assert raised.value.signal == signal.SIGTERM
    assert mnist_exp.load_run("run").status == "interrupted"
    run = mnist_exp.train("resume=run")
    assert run.path == Path("run")
    assert curves(run) == curves(whole)
    assert same_weights(run.path, whole.path)


def test_ctrl_c_in_a_script(small: list[str], warm_commands: WarmCommands) -> None:
    Path("script.py").write_text(
        "import mnist_exp\n"
        "try:\n"
        f"    mnist_exp.train(*{small!r}, 'trainer.epochs=100000', directory='run')\n"
        "except KeyboardInterrupt as stopped:\n"
        "    print('stopped:', stopped, mnist_exp.load_run('run').status)\n"
    )
    command = [warm_commands.bin / "python", "script.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "1/100000 " not in (line := process.stdout.readline()):
            assert line, process.communicate()
        process.send_signal(signal.SIGINT)
        said = process.communicate()[0]
    assert process.returncode == 0
    assert "stopped: run is interrupted; to continue it: mnist-train resume=run interrupted\n" in said


def test_hydras_state_and_the_process_are_left_as_found(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    environment, folder = dict(os.environ), Path.cwd()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        HydraConfig.instance().set_config(compose("train", return_hydra_config=True))
        before = HydraConfig.get()
        run = mnist_exp.train(*small, "quiet=true")
        with pytest.raises(mnist_exp.UsageError):
            mnist_exp.train("trainer.epoch=3")
        assert HydraConfig.get() is before
        assert compose("train", overrides=["seed=5"]).seed == 5
    HydraConfig.instance().cfg = None
    assert (dict(os.environ), Path.cwd()) == (environment, folder)
    assert handlers == {number: signal.getsignal(number) for number in handlers}
    assert "kernel" not in (run.path / "run.json").read_text()
    assert run.path.parts[0] == "outputs"


def test_outside_the_main_thread(small: list[str]) -> None:
    runs: list[mnist_exp.Run] = []
    thread = threading.Thread(target=lambda: runs.append(mnist_exp.train(*small, "quiet=true", directory="run")))
    thread.start()
    thread.join()
    assert [run.status for run in runs] == ["completed"]


@pytest.fixture
def runs(trained: Callable[..., Path], small: list[str]) -> Path:
    """Two completed runs in a folder, and one that waits for its first epoch."""
    for name, words in (("runs/lenet5-0", ["seed=0"]), ("runs/mlp-1", ["model=mlp", "model.hidden=[16]", "seed=1"])):
        trained(name, *small, *words)
    shutil.copytree("runs/mlp-1", "runs/new")
    record = json.loads(Path("runs/new/run.json").read_text())
    Path("runs/new/run.json").write_text(json.dumps({**record, "status": "waiting", "final": None}))
    Path("runs/new/metrics.jsonl").unlink()
    return Path("runs")


def test_load_runs(runs: Path) -> None:
    rows = mnist_exp.load_runs(runs)
    assert [row["directory"] for row in rows] == ["runs/lenet5-0", "runs/mlp-1", "runs/new"]
    assert [row["status"] for row in rows] == ["completed", "completed", "waiting"]
    assert [row["model.hidden"] for row in rows] == ["[120,84]", "[16]", "[16]"]
    assert [row["seed"] for row in rows] == [0, 1, 1]
    assert len({tuple(row) for row in rows}) == 1  # the same keys, in the same order
    final = mnist_exp.load_run("runs/mlp-1").record.final
    assert {key: rows[1][key] for key in final} == final
    assert rows[1]["parameters"] == 784 * 16 + 16 + 16 * 10 + 10
    assert rows[1]["seconds"] > 0
    assert rows[2]["test_accuracy"] is None
    assert all(value is None or isinstance(value, str | int | float) for row in rows for value in row.values())
    with pytest.raises(mnist_exp.UsageError, match="nowhere does not exist"):
        mnist_exp.load_runs("nowhere")


def test_load_runs_takes_patterns(runs: Path) -> None:
    assert [row["directory"] for row in mnist_exp.load_runs("runs/mlp*", "runs/lenet5-0")] == [
        "runs/mlp-1",
        "runs/lenet5-0",
    ]


def test_pandas_takes_the_records_as_they_are(runs: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(mnist_exp.load_runs("runs"))
    assert frame.groupby("model.hidden")["test_accuracy"].count().to_dict() == {"[120,84]": 1, "[16]": 1}


def test_load_model(runs: Path) -> None:
    state = torch.get_rng_state()
    model = mnist_exp.load_model("runs/mlp-1")
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    calls = []
    next(iter(model.children())).register_forward_hook(lambda *arguments: calls.append(1))
    assert torch.equal(copy.deepcopy(model)(torch.ones(1, 1, 28, 28)), model(torch.ones(1, 1, 28, 28)))
    assert calls  # PyTorch computes it, not the kernels, which call no hooks
    saved = torch.load("runs/mlp-1/checkpoints/last.pt", weights_only=True)["model"]
    assert all(torch.equal(saved[name], weight) for name, weight in model.state_dict().items())


def test_a_network_of_ones_own_needs_trust(small: list[str]) -> None:
    Path("ownnet.py").write_text(
        "import torch\n\nclass Net(torch.nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(torch.nn.Flatten(), torch.nn.Linear(784, 10))\n"
    )
    Path("conf/model").mkdir(parents=True)
    Path("conf/model/own.yaml").write_text("_target_: ownnet.Net\n")
    run = mnist_exp.train(*small, "quiet=true", "model=own", directory="run", config_dir="conf")
    assert "--config-dir conf" in run.record.command
    for wrong in ((), "own", ["own"]):  # a part of the name is not the name
        with pytest.raises(mnist_exp.UsageError, match=r"ownnet\.Net is not allowed"):
            mnist_exp.load_model("run", trust=wrong)
    for right in ("ownnet", ["ownnet"], {"ownnet"}):
        assert type(mnist_exp.load_model("run", trust=right)).__name__ == "Net"
    with pytest.raises(mnist_exp.UsageError, match=r"ownnet\.Net is not allowed"):
        mnist_exp.train("resume=run", "trainer.epochs=3")
    assert mnist_exp.load_run("run").status == "completed"
    assert len(mnist_exp.train("resume=run", "trainer.epochs=3", "quiet=true", trust="ownnet").metrics) == 3
    sys.modules.pop("ownnet")


def test_paths_may_be_strings(runs: Path) -> None:
    assert read_run("runs/mlp-1") == read_run(runs / "mlp-1")
    assert list(find_runs("runs")) == list(find_runs(runs))
    assert Classifier("runs/mlp-1").path == runs / "mlp-1"
