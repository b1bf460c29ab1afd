"""``mnist-train --help``: it fits a terminal, and says what the configuration files say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.compose import CONF, choices, groups
from mnist_exp.errors import UsageError
from mnist_exp.help import EVERYDAY, help_text, settings_of


def test_the_overview_fits_80_columns_and_40_lines() -> None:
    lines = help_text().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


def test_every_group_and_everyday_setting_is_in_the_overview() -> None:
    listed = [line.split()[0] for line in help_text().splitlines() if line.startswith("  ")]
    assert {*groups(), "hydra/launcher"} <= set(listed)
    assert [word.partition("=")[0] for word in listed if word.partition("=")[0] in EVERYDAY] == list(EVERYDAY)


@pytest.mark.parametrize("group", groups())
def test_every_choice_of_a_group_is_in_its_help(group: str) -> None:
    lines = help_text([group]).splitlines()
    assert [
        choice for choice in choices(group) if not any(line.startswith(f"  {group}={choice}") for line in lines)
    ] == []
    for choice in choices(group):
        lines += help_text([f"{group}/{choice}"]).splitlines()
    assert [line for line in lines if len(line) > 80] == []


def test_shown_settings_are_those_that_hydra_composes(composed: Callable[..., dict[str, object]]) -> None:
    for choice in choices("regularization"):
        tree = composed(f"regularization={choice}")["regularization"]
        for setting in settings_of("regularization", choice, (CONF,)):
            node: object = tree
            for key in setting.key.split(".")[1:]:
                assert isinstance(node, dict)
                node = node[key]
            assert node == yaml.safe_load(setting.value)


def test_a_file_of_the_user_is_shown(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mynet.yaml").write_text("# My network.\n_target_: mynet.MyNet\nwidth: 8  # of each layer\n")
    folders = (tmp_path, CONF)
    assert "mynet" in help_text(folders=folders)
    assert "  model=mynet             My network.\n" in help_text(["model"], folders)
    assert help_text(["model/mynet"], folders).splitlines() == [
        *("model=mynet", "  My network.", "", "  model._target_=mynet.MyNet"),
        "  model.width=8               of each layer",
    ]


@pytest.mark.parametrize(
    ("topic", "line"),
    [
        ("trainer.epochs", "  trainer.epochs=10"),
        ("seed", "  seed=0  initial weights"),
        ("lr", "  optimizer.lr=0.01   (with optimizer=sgd)"),
        ("hydra/sweeper", "  hydra/sweeper=optuna  Search with Optuna"),
        ("launcher", "hydra/launcher: where the jobs of a sweep run: basic, joblib"),
        ("sweep/search", "  optimizer.lr=tag(log,interval(0.001,0.1))"),
        ("model=mlp", "  model.dropout                       as regularization.dropout"),
    ],
)
def test_topics(topic: str, line: str) -> None:
    assert any(shown.startswith(line) for shown in help_text([topic]).splitlines()), help_text([topic])


@pytest.mark.parametrize(
    ("topic", "said"),
    [
        ("modle", "no group and no setting has this name; did you mean model?; groups are data, model, optimizer, "),
        ("model/mpl", "model has no choice mpl; did you mean mlp?; it has lenet5, lenet5_1998, mlp"),
    ],
)
def test_a_mistake_is_one_line(topic: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        help_text([topic])
    assert str(error.value).startswith(f"--help {topic}: {said}")
    assert "\n" not in str(error.value)


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "broken.yaml").write_bytes(b"a: [1\nb: \xff\n")
    assert "model=broken" in help_text(["model"], (tmp_path, CONF))
    with pytest.raises(UsageError, match=r"broken\.yaml, line 2, column 2: .*expected ',' or ']'"):
        help_text(["model/broken"], (tmp_path, CONF))


def test_the_command(mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert mnist_train("seed=3", "--help") == 0
    assert capsys.readouterr().out == help_text()
    assert mnist_train("--help", "modle") == 2
    assert capsys.readouterr().err.startswith("mnist-train: --help modle: ")
    (tmp_path / "myconf" / "data").mkdir(parents=True)
    (tmp_path / "myconf" / "data" / "mine.yaml").write_text("# My data.\n_target_: mine.load\n")
    assert mnist_train("--config-dir", "myconf", "--help", "data") == 0
    assert "  data=mine             My data.\n" in capsys.readouterr().out


def test_it_imports_no_torch() -> None:
    program = "import sys; from mnist_exp.cli import train; sys.argv[1:] = ['--help', 'model']; train.main(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


STRANGE = {
    "deep": ("x: " + "[" * 3000 + "]" * 3000, "own.yaml: it has more than 50 levels"),
    "a section in itself": ("a: &a {b: *a}", None),
    "aliases of aliases": (
        "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 40)),
        None,
    ),
    "based on itself": ("defaults: [own]\nx: 1", None),
    "no such base": ("defaults: [absent]\nx: 1", "absent.yaml: No such file or directory"),
    "bases that are none": ("defaults: [5, null, {1: 2}]\nx: 1", None),
    "a number of bases": ("defaults: 5\nx: 1", None),
    "a list as a key": ("? [a, b]\n: 1\nx: 1", None),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_files_of_a_user(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, refusal = STRANGE[kind]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own.yaml").write_text(content)
    with pytest.raises(SystemExit) if refusal else nullcontext(), exit_status("mnist-train"), printing():
        print(help_text(["model/own"], (tmp_path, CONF)))
    captured = capsys.readouterr()
    if refusal:
        assert captured.err.endswith(f"{refusal}\n")
        assert len(captured.err.splitlines()) == 1
    else:
        assert "\n  model." in captured.out
