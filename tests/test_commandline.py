"""Commands as they are typed: flags and overrides in any order, one line for a mistake, advice that works as printed."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

from mnist_exp.cli import demo, predict, report
from mnist_exp.cli import eval as evaluate
from mnist_exp.cli.train_arguments import read_arguments
from mnist_exp.errors import typed, unquoted

BIN = Path(sys.executable).parent
SHELLS = [shell for shell in ("bash", "zsh") if shutil.which(shell)]


@pytest.fixture
def type_in_bash(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a command line in an empty folder, in its own process, with the installed commands."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}

    def run(line: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-c", line]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    return run


FRESH = [
    ("mnist-train '~scheduler'", "mnist-train: ~scheduler: a run needs a scheduler; choose from constant, cosine, one_cycle, step"),
    ("mnist-train -m seed=0,1 '~data.root'", "mnist-train: data.root is missing (job seed=0)"),
    ("mnist-train --seed 3", "mnist-train: --seed is not an option of mnist-train; type seed=3"),
    ("mnist-train model=mlp -m sweep=mlp_width,mlp_depth",
     "mnist-train: hydra.sweeper.params differs from job to job: a sweep of sweeps is not possible; give a command for each "
     "(job model.hidden=[8,8] seed=0 sweep=mlp_depth)"),
    ("mnist-train -m lr=0.1,0.2", "mnist-train: lr is not a key; did you mean optimizer.lr? (job lr=0.1)"),
    ("mnist-train logger.mode=Offline", "mnist-train: logger.mode=Offline should be auto, online, offline or disabled"),
    ("mnist-train hydra.run.dir=r/lr=0.1",
     "mnist-train: hydra.run.dir=r/lr=0.1 is not valid: = ( ) { } and the like need quotes; type "
     "'hydra.run.dir=\"r/lr=0.1\"'"),
    ("mnist-train -m 'seed=range(0)'", "mnist-train: seed=range(0) has no values, so this sweep has no jobs"),
    ("mnist-train model._target_=my_module.Nope",
     "mnist-train: model._target_=my_module.Nope does not exist: ModuleNotFoundError: No module named 'my_module'"),
    ("mnist-train -m seed=0,1 hydra.launcher._target_=my_module.Nope",
     "mnist-train: hydra.launcher._target_=my_module.Nope cannot be used: Invalid plugin 'my_module.Nope': not the "
     "hydra_plugins package"),
    ("mnist-train -m seed=0,1 +hydra.launcher.n_jobs=abc hydra.launcher._target_=hydra_plugins.x.Y",
     "mnist-train: hydra.launcher.n_jobs=abc should be a number"),
    ("mnist-train -m hydra/launcher=joblib hydra.launcher.n_jobs=abc seed=0,1",
     "mnist-train: hydra.launcher.n_jobs=abc is not possible: Value 'abc' of type 'str' could not be converted to Integer"),
    ("mnist-train --config-dir nowhere model=mlp", "mnist-train: --config-dir {here}/nowhere: there is no such folder"),
    ("mnist-eval", "mnist-eval: DIR (run directory) is missing; type mnist-eval DIR"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), FRESH, ids=[line for line, _ in FRESH])
def test_mistake_in_a_fresh_process(
    line: str, message: str, type_in_bash: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = type_in_bash(line)
    assert done.stderr == message.format(here=tmp_path) + "\n" if "{here}" in message else message + "\n"
    assert (done.returncode, done.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == [], "nothing was created"


FLAGS = [
    (["--epochs", "3"], "--epochs is not an option of mnist-train; type trainer.epochs=3"),
    (["model=mlp", "--optimizer.lr=0.1"], "--optimizer.lr=0.1 is not an option of mnist-train; type optimizer.lr=0.1"),
    (["--batch-size", "32", "seed=3"], "--batch-size is not an option of mnist-train; type trainer.batch_size=32"),
    (["--resume", "a=b/run"], "--resume is not an option of mnist-train; type 'resume=\"a=b/run\"'"),
    (["--model.hidden", "[64,64]"], "--model.hidden is not an option of mnist-train; type 'model.hidden=[64,64]'"),
    (["--quiet", "seed=3"], "--quiet is not an option of mnist-train; type quiet=true"),
    (["--model", "mlp"], "--model is not an option of mnist-train; type model=mlp"),
    (["--multi-run", "seed=0,1"], "--multi-run is not an option of mnist-train; did you mean --multirun?"),
    (["--zzz"], "--zzz is not an option of mnist-train; settings are typed KEY=VALUE, and mnist-train --cfg job lists them"),
    (["seed=3", "--cfg"], "argument --cfg/-c: expected one argument"),
    (["--cfg", "job", "--info"], "--cfg and --info contradict each other; leave one out"),
    (["--run", "-m"], "--run and --multirun contradict each other; leave one out"),
    (["-m", "hydra.mode=RUN"], "hydra.mode=RUN and --multirun contradict each other; leave one out"),
    (["--resolve"], "--resolve needs --cfg: mnist-train --cfg job --resolve"),
    (["--experimental-rerun", "x"], "--experimental-rerun is not supported; to continue a run, type resume=DIR"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), FLAGS, ids=[" ".join(arguments) for arguments, _ in FLAGS])
def test_unknown_flag(
    arguments: list[str], message: str, mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train(*arguments) == 2
    assert capsys.readouterr().err == f"mnist-train: {message}\n"


@pytest.mark.parametrize("line", ["model=mlp -m seed=0,1", "-m model=mlp seed=0,1", "model=mlp seed=0,1 --multirun"])
def test_flags_may_be_anywhere(line: str) -> None:
    options = read_arguments(line.split())
    assert (options.multirun, options.overrides) == (True, ["model=mlp", "seed=0,1"])


def test_info_takes_no_override_for_its_value() -> None:
    assert read_arguments(["--info", "model=mlp"]).info == "all"
    assert read_arguments(["-i", "model=mlp"]).overrides == ["model=mlp"]
    assert read_arguments(["--info", "defaults", "model=mlp"]).info == "defaults"


def test_the_printed_configuration_of_a_sweep_is_what_its_jobs_share(
    mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert mnist_train("model=mlp", "-m", "seed=0,1", "--cfg", "job") == 0
    out = capsys.readouterr().out
    assert out.startswith("# jobs differ in: seed=0,1\nseed: 0\n")
    assert "_target_: mnist_exp.models.MLP" in out
    assert mnist_train("-m", "seed=0,1", "--cfg", "hydra") == 0
    assert "mode: MULTIRUN" in capsys.readouterr().out
    assert mnist_train("--hydra-help", "-m", "seed=0,1") == 0
    assert "== Flags ==" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_information_on_a_sweep(type_in_bash: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    done = type_in_bash("mnist-train -m seed=0,1 --info defaults")  # prints through the root logger
    assert (done.returncode, done.stderr) == (0, "")
    assert "model/lenet5" in done.stdout


OTHERS = [
    (predict.main, [], "mnist-predict: DIR (run directory of the network) and image (PNG, JPEG, WebP, GIF, BMP or TIFF files, or folders of them) "
     "is missing; type mnist-predict DIR image.png"),
    (report.main, [], "mnist-report: DIR (run directories, folders of them, or patterns) is missing; type mnist-report DIR"),
    (demo.main, ["--port", "x", "DIR"], "mnist-demo: argument --port: invalid int value: 'x'"),
    (evaluate.main, ["--jsno", "DIR"], "mnist-eval: --jsno is not an option of mnist-eval; did you mean --json?"),
    (evaluate.main, ["DIR", "--data", "mnist5k"], "mnist-eval: --data is not an option of mnist-eval; type data=mnist5k"),
    (evaluate.main, ["data=mnist5k", "--json", "DIR", "data.limit=3"], "mnist-eval: DIR is not a directory"),
    (evaluate.main, ["data=mnist5k"], "mnist-eval: DIR (run directory) is missing; type mnist-eval DIR"),
]  # fmt: skip


@pytest.mark.parametrize(("main", "arguments", "message"), OTHERS)
def test_other_commands_take_flags_anywhere_and_answer_in_a_line(
    main: Callable[[list[str]], None], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    assert capsys.readouterr().err == f"{message}\n"


VALUES = [
    "r/lr=0.1",
    "/d/mnist (1)",
    'a"b',
    "a\\",
    'a\\"b',
    "null",
    "a b",
    "x,y",
    "it's",
    "~x",
    "",
    "é",
    "a{b}",
    "$HOME",
]


@pytest.mark.parametrize("value", VALUES)
def test_value_is_quoted_for_shell_and_hydra(value: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (word,) = shlex.split(typed("key", value))
    assert OverridesParser.create().parse_override(word).value() == value
    assert unquoted(word.removeprefix("key=")) == value
    for shell in SHELLS:
        said = subprocess.run(
            [shell, "-c", f"printf %s {typed('key', value)}"], capture_output=True, text=True, check=True
        )
        assert said.stdout == word, shell


ADVICE = [
    ["hydra.run.dir=r/lr=0.1"],
    ["data.root=/d/mnist (1)"],
    ["data.root=/it's, here"],
    ["model.hidden=64,64", "model=mlp"],
    ["seed=range(3)"],
    ["model.channels=6"],
    ["logger.tags=my tag"],
    ["logger.tags=a"],
    ["logger.tags=null"],
    ["--model.channels", "[6,16]"],
    ["--name", "a=b"],
    ["+seed=3"],
    ["+name=a b"],
    ["++model=mlp"],
    ["trainer.selection=best"],
    ["regularization.early_stopping=3"],
]


@pytest.mark.parametrize("arguments", ADVICE, ids=[" ".join(arguments) for arguments in ADVICE])
def test_advice_works_as_printed(
    arguments: list[str],
    mnist_train: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    type_in_bash: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    """Every suggested command is run in bash; zsh parses it in the same way."""
    assert mnist_train(*arguments) == 2
    message = capsys.readouterr().err.rstrip("\n")
    found = re.findall(
        r"(?:type|as|list:|hold some out:|with mnist-train) ((?:-m )?(?:'[^']*'|\"[^\"]*\"|[^ ,'\"])*(?:'[^']*')?)",
        message,
    )
    assert found, message
    for advice in found:
        assert "KEY" not in advice
        for shell in SHELLS:
            said = subprocess.run([shell, "-c", f"printf '%s\\n' {advice}"], capture_output=True, text=True, check=True)
            assert said.stdout.splitlines() == shlex.split(advice), shell
        others = "" if arguments[0].startswith("--") else " ".join(shlex.quote(argument) for argument in arguments[1:])
        done = type_in_bash(f"mnist-train {advice} {others} --cfg job")
        assert (done.returncode, done.stderr) == (0, ""), advice


def test_swept_choices_may_have_keys_that_the_default_lacks(
    mnist_train: Callable[..., int],
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mnist_exp.runs.sweep import read_sweep
    from mnist_exp.sweeps import launching

    monkeypatch.setattr(launching, "_run", lambda *arguments: None)
    sweep = ["-m", *small, "seed=0,1", "hydra.sweep.dir=sweep"]
    assert mnist_train(*sweep, "optimizer=adam,adamw", "optimizer.betas=[0.9,0.99]") == 0
    jobs = read_sweep(Path("sweep")).jobs
    assert [list(job.overrides) for job in jobs] == [
        [f"seed={seed}", f"optimizer={name}"] for seed in (0, 1) for name in ("adam", "adamw")
    ]
    capsys.readouterr()
    for models, job in (("mlp,lenet5", " (job seed=0 model=lenet5)"), ("lenet5,mlp", "")):
        assert mnist_train(*sweep, f"model={models}", "model.depth=3") == 2
        assert (
            capsys.readouterr().err
            == f"mnist-train: model.depth is not a key; model.depth is a key of model=mlp only{job}\n"
        )


def test_nothing_of_hydra_is_left_for_the_next_run(mnist_train: Callable[..., int], small: list[str]) -> None:
    environment, root = os.environ.get("HYDRA_FULL_ERROR"), logging.getLogger()
    logs = (list(root.handlers), root.level)
    habits = ["hydra/job_logging=default", "hydra/hydra_logging=default", "hydra.job.chdir=true"]
    assert mnist_train("-m", *small, "trainer.epochs=1", "data.limit=64", "seed=0", *habits) == 0
    assert not HydraConfig.initialized()
    assert (list(root.handlers), root.level) == logs
    assert os.environ.get("HYDRA_FULL_ERROR") == environment
    assert mnist_train("seed=x") == 2
    assert os.environ.get("HYDRA_FULL_ERROR") == environment


NOT_YAML = {
    "open brace": ("a: {b", "{file}, line 2, column 1: while parsing a flow mapping expected ',' or '}}', but got '<stream end>'"),
    "tab": ("a:\n\tb: 1", "{file}, line 2, column 1: while scanning for the next token found character '\\t' that cannot start any token"),
    "twice": ("a: 1\na: 2", "{file}, line 2, column 1: while constructing a mapping found duplicate key a"),
    "list": ("- a", "model=[a] should be a section of keys; choose a whole one with model=CHOICE"),
    "circle": ("defaults: [x]", "the defaults of configuration files name each other in a circle; check the one that was added last"),
    "no list": ("defaults: mlp", "{file}: defaults should be a list"),
    "no file": ("defaults: [nothing]", "{file}: defaults name model/nothing, and there is no such file"),
    "latin-1": ("a: \xff", "{file}: byte 4 is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_YAML)
@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"], ["-m", "model=mlp,x"]], ids=["run", "sweep", "job"])
def test_file_that_cannot_be_composed(
    kind: str, sweep: list[str], mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content, message = NOT_YAML[kind]
    file = tmp_path / "mine" / "model" / "x.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(content + "\n", encoding="latin-1")
    model = [] if "model=mlp,x" in sweep else ["model=x"]
    assert mnist_train("--config-dir", "mine", *model, *sweep) == 2
    job = " (job model=x)" if not model else " (job seed=0)" if sweep and kind == "list" else ""
    assert capsys.readouterr().err == f"mnist-train: {message.format(file=file)}{job}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that opens and cannot be read")
def test_file_that_the_system_does_not_read(
    mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine" / "model" / "x.yaml"
    file.parent.mkdir(parents=True)
    file.symlink_to("/proc/self/mem")
    assert mnist_train("--config-dir", "mine", "model=x") == 2
    assert capsys.readouterr().err == f"mnist-train: {file}: Input/output error\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("defaults: [{override /model: mlpp}]", "{file}: model=mlpp is not a choice; choose from lenet5, lenet5_1998, mlp; did you mean mlp?"),
        ("defaults: [{override /modle: mlp}]", "{file}: modle is not a key; did you mean model?"),
        ("defaults: [{override /model: null}]", "model is missing; a run needs one, choose from lenet5, lenet5_1998, mlp"),
        ("model: mlp", "model=mlp should be a section of keys; choose a whole one with model=CHOICE"),
        ("optimizer: [1]", "{file}: Cannot merge DictConfig with ListConfig"),
        ("trainer: {{epoch: 3}}", "trainer.epoch is not a key; did you mean trainer.epochs?"),
    ],
)  # fmt: skip
def test_preset_that_names_a_missing_choice(
    content: str, message: str, mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine" / "experiment" / "x.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\n" + content.replace("{{", "{").replace("}}", "}") + "\n")
    assert mnist_train("--config-dir", "mine", "experiment=x") == 2
    assert capsys.readouterr().err == f"mnist-train: {message.format(file=file)}\n"


@pytest.mark.parametrize(
    "empty",
    [["logger=null"], ["~logger"], ["logger=null", "experiment=null", "sweep=null"], ["experiment=x"]],
    ids=" ".join,
)
def test_group_that_may_be_empty(
    empty: list[str],
    mnist_train: Callable[..., int],
    small: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    preset = "# @package _global_\ndefaults: [{override /logger: null}]\n"
    (tmp_path / "mine" / "experiment" / "x.yaml").write_text(preset)
    settings = [*(word for word in small if word != "logger=none"), "trainer.epochs=1", "data.limit=64", *empty]
    assert mnist_train("--config-dir", "mine", *settings, "hydra.run.dir=run") == 0
    assert mnist_train("--config-dir", "mine", "-m", *settings, "seed=0", "hydra.sweep.dir=sweep") == 0
    assert capsys.readouterr().err == ""


def test_group_that_may_be_empty_among_the_choices_of_a_sweep(
    mnist_train: Callable[..., int], small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnist_exp.runs.sweep import read_sweep
    from mnist_exp.sweeps import launching

    monkeypatch.setattr(launching, "_run", lambda *arguments: None)
    assert mnist_train("-m", *small, "experiment=null,record/lenet5", "hydra.sweep.dir=sweep") == 0
    assert [list(job.overrides) for job in read_sweep(Path("sweep")).jobs] == [
        ["experiment=null"],
        ["experiment=record/lenet5"],
    ]


def test_hydras_own_logging_and_chdir(
    type_in_bash: Callable[[str], subprocess.CompletedProcess[str]], small: list[str], tmp_path: Path
) -> None:
    """Its log beside ours, and the run directory as the working directory."""
    habits = ["hydra/job_logging=default", "hydra.job.chdir=true"]
    settings = shlex.join([*small, "trainer.epochs=1", "data.limit=64", *habits])
    done = type_in_bash(
        f"mnist-train {settings} hydra.run.dir=run && mnist-train -m {settings} seed=0 hydra.sweep.dir=sweep"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"| {tmp_path / 'run'}\n" in done.stdout, "not a dot"
    assert "compare: mnist-report sweep\n" in done.stdout
    for run in (tmp_path / "run", tmp_path / "sweep" / "lenet5"):
        for log in ("train.log", "mnist-train.log"):
            assert "Epoch [1/1]" in (run / log).read_text()


def test_without_arguments_the_defaults_are_trained() -> None:
    assert read_arguments([]).overrides == []
