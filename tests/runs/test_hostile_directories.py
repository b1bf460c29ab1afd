"""No command runs code of a stranger's directory, reads a secret, or reads or writes outside the directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml
from exit_status import status_of
from PIL import Image
from warm_commands import WarmCommands

from mnist_exp.cli import demo, predict, report
from mnist_exp.cli import eval as evaluate
from mnist_exp.config import check_logger
from mnist_exp.runs import RunDirectoryError, read_run
from mnist_exp.runs.files import exists, open_file, refuse_links_for_wandb, write_atomically
from mnist_exp.runs.record import WandbRun
from mnist_exp.trust import instantiate, logger_to_use, run_id_to_use

SECRET = "hunter2"
COMMANDS = ("resume", "eval", "predict", "report", "demo", "teacher")
READ_BY_ALL = ("run.json", "config.yaml", "metrics.jsonl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, warm_commands: WarmCommands) -> Path:
    """An unchanged run."""
    folder = tmp_path_factory.mktemp("finished")
    command = [warm_commands.bin / "mnist-train", "data=mnist5k", "data.limit=320", "trainer.epochs=1"]
    more = ["trainer.threads=1", "trainer.device=cpu", "logger=none", "quiet=true", "hydra.run.dir=run"]
    subprocess.run([*command, *more], cwd=folder, check=True, capture_output=True)
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that a test may change."""
    monkeypatch.setenv("SECRET", SECRET)
    (tmp_path / "outside").mkdir()
    shutil.copytree(finished, "run")
    return Path("run")


@pytest.fixture
def command(
    mnist_train: Callable[..., int], small: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str, Path], int]:
    """Runs one of ``COMMANDS`` with a directory; returns the exit status."""

    def start_demo(arguments: list[str]) -> None:
        monkeypatch.setattr(demo.Demo, "serve_forever", lambda server: None)
        demo.main([*arguments, "--port", "0"])

    def give(name: str, path: Path) -> int:
        if name == "resume":
            record = json.loads((path / "run.json").read_text())
            if not (path / "run.json").is_symlink() and isinstance(record, dict):
                (path / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
            return mnist_train(f"resume={path}")
        if name == "teacher":
            teachers = f"regularization.distillation.teachers=[{path}]"
            return mnist_train(*small, "trainer.epochs=1", "quiet=true", teachers, "hydra.run.dir=student")
        if name == "predict":
            picture = np.zeros((60, 60), dtype=np.uint8)
            picture[10:50, 28:33] = 255
            Image.fromarray(picture).save("digit.png")
            return status_of(predict.main, str(path), "digit.png")
        if name == "report":
            return status_of(report.main, str(path), "--output", "report")
        return status_of({"eval": evaluate.main, "demo": start_demo}[name], str(path))

    return give


def contents(path: Path) -> dict[str, Any]:
    """All files in a directory, links as links, without the lock, which a refused command may leave."""
    found: dict[str, Any] = {}
    for item in sorted(path.rglob("*")):
        if item.is_symlink():
            found[str(item)] = os.readlink(item)
        elif item.is_file() and item.name != ".lock":
            found[str(item)] = item.read_bytes()
    return found


def assert_refused(
    name: str, run: Path, file: str, command: Callable[[str, Path], int], capsys: pytest.CaptureFixture[str]
) -> str:
    """One line that names the file, exit status 2, nothing written; returns the line."""
    outside = contents(Path("outside"))
    capsys.readouterr()
    status = command(name, run)
    out, err = capsys.readouterr()
    lines = [line for line in (err + out).splitlines() if line and "networks at" not in line]
    assert status == 2, (out, err)
    assert [line for line in lines if file in line], lines
    assert len(err.splitlines()) == 1, err
    assert SECRET not in out + err
    assert contents(Path("outside")) == outside
    assert not Path("owned").exists()
    return err


def change(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    tree = yaml.safe_load((run / "config.yaml").read_text())
    edit(tree)
    (run / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


CREATE = '${oc.create:{_target_: pathlib.Path.touch, _args_: ["owned"]}}'
NOT_PLAIN: dict[str, Callable[[dict[str, Any]], object]] = {
    "value": lambda tree: tree["data"].update(root="${oc.env:SECRET}"),
    "code": lambda tree: tree["data"].update(root=CREATE),
    "key": lambda tree: tree["model"].update({"${oc.env:SECRET}": 1}),
    "list": lambda tree: tree["model"].update(hidden=[120, {"a": ["x${oc.decode:1}"]}]),
    "escaped": lambda tree: tree["data"].update(root="\\${oc.env:SECRET}"),
    "name": lambda tree: tree.update(name="${oc.env:SECRET}"),
    "missing": lambda tree: tree["data"].update(root="???"),
    "alias": lambda tree: tree["model"].update(a=tree["regularization"]["augmentation"]),
    "date": lambda tree: tree["data"].update(root=__import__("datetime").date(2026, 1, 1)),
    "number as key": lambda tree: tree["model"].update({5: 1}),
    "unused section": lambda tree: tree.update(more={"deep": [["${oc.env:SECRET}"]]}),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_a_configuration_is_plain_data(
    name: str, kind: str, run: Path, command: Callable[[str, Path], int], capsys: pytest.CaptureFixture[str]
) -> None:
    change(run, NOT_PLAIN[kind])
    assert "config.yaml" in assert_refused(name, run, "config.yaml", command, capsys)


@pytest.mark.parametrize("name", COMMANDS)
def test_tags_of_python_are_refused(
    name: str, run: Path, command: Callable[[str, Path], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with (run / "config.yaml").open("a") as file:
        file.write("more: !!python/object/apply:pathlib.Path.touch [owned]\n")
    assert_refused(name, run, "config.yaml", command, capsys)


def test_a_file_of_the_strangers_is_not_imported(
    run: Path, command: Callable[[str, Path], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """torch.hub loads code from a folder, so no target may name it."""
    Path("hub").mkdir()
    Path("hub/hubconf.py").write_text("def go(): open('owned', 'w').close()\n")
    root = "${oc.create:{_target_:torch.hub.load,repo_or_dir:hub,model:go,source:local}}"
    change(run, lambda tree: tree["data"].update(root=root))
    assert_refused("eval", run, "config.yaml", command, capsys)
    for section, edit in {
        "model": {"_target_": "torch.hub.load", "repo_or_dir": "hub", "model": "go", "source": "local"},
        "optimizer": {"_target_": "mnist_exp.experiment.torch.hub.load", "_partial_": True, "lr": 0.1},
    }.items():
        tree = yaml.safe_load((run / "config.yaml").read_text())
        tree["data"]["root"] = None
        (run / "config.yaml").write_text(yaml.safe_dump({**tree, section: edit}))
        for name in ("eval", "predict", "teacher"):
            capsys.readouterr()
            assert command(name, run) == 2
            assert "_target_" in capsys.readouterr().err
            assert not Path("owned").exists()


TARGETS: dict[str, tuple[str, Any, str]] = {
    "module of another package": (
        "model",
        {"_target_": "mnist_exp.experiment.torch.fx.GraphModule", "root": {}, "graph": None},
        "is not allowed there: it is torch.fx",
    ),
    "function": ("model", {"_target_": "torch.nn.functional.relu"}, "is not allowed there: it is no Module"),
    "network that is not made": ("model", {"_target_": "torch.nn.ReLU", "_partial_": True}, "must be false"),
    "part of an optimizer": (
        "optimizer",
        {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "x": [{"_target_": "torch.optim.SGD"}]},
        "only the model has parts",
    ),
    "search that makes a database": (
        "logger",
        {"_target_": "mnist_exp.pruning.OptunaPruning", "search": {"storage": "sqlite:///outside/x.db"}},
        "is not allowed there: of our loggers, only mnist_exp.loggers.wandb.WandbLogger",
    ),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_have_the_type_of_their_section(
    kind: str, run: Path, command: Callable[[str, Path], int], capsys: pytest.CaptureFixture[str]
) -> None:
    section, content, said = TARGETS[kind]
    change(run, lambda tree: tree.update({section: content}))
    assert said in assert_refused("eval", run, said, command, capsys)


def put_link(run: Path, name: str) -> None:
    """A link in place of a file, to a copy of it, so that following it would work."""
    target = Path("outside") / name.replace("/", "-")
    if (run / name).is_dir() or (run / name).exists():
        shutil.move(run / name, target)
    else:
        target.write_text("mine\n")
    (run / name).symlink_to(target.absolute())


def put_pipe(run: Path, name: str) -> None:
    if (run / name).is_dir():
        shutil.rmtree(run / name)
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)


REFUSED = {
    "resume": [
        *READ_BY_ALL, "checkpoints", "checkpoints/last.pt", "checkpoints/best.pt", "train.log", "output.log", "wandb",
        ".lock", ".hydra", ".hydra/config.yaml", "predictions.npz", "overrides.yaml", "worst_digits.png", "anything",
    ],
    "eval": [*READ_BY_ALL, "checkpoints", "checkpoints/last.pt", "evaluation.json", "worst_digits.png"],
    "predict": [*READ_BY_ALL, "checkpoints", "checkpoints/last.pt"],
    "demo": [*READ_BY_ALL, "checkpoints", "checkpoints/last.pt"],
    "teacher": [*READ_BY_ALL, "checkpoints", "checkpoints/last.pt"],
    "report": [*READ_BY_ALL],
}  # fmt: skip


@pytest.mark.parametrize("put", [put_link, put_pipe], ids=["link", "pipe"])
@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in REFUSED.items() for file in files])
def test_links_and_pipes_are_refused(
    name: str,
    file: str,
    put: Callable[[Path, str], None],
    run: Path,
    command: Callable[[str, Path], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name == "resume":
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
        if file == "run.json" and put is put_pipe:
            pytest.skip("the fixture reads it")
    put(run, file)
    before = contents(run)
    assert_refused(name, run, file, command, capsys)
    if name != "resume" or (run / "run.json").is_symlink():
        assert contents(run) == before


@pytest.mark.parametrize("file", ["predictions.npz", "overrides.yaml"])
def test_a_report_names_the_links_that_it_did_not_follow(
    file: str, run: Path, command: Callable[[str, Path], int], capsys: pytest.CaptureFixture[str]
) -> None:
    (run / file).unlink()
    secret = Path("outside/secret")
    secret.write_text(f"- {SECRET}\n")
    (run / file).symlink_to(secret.absolute())
    assert command("report", run) == 0
    assert SECRET not in Path("report/report.html").read_text() + capsys.readouterr().out
    assert secret.read_text() == f"- {SECRET}\n"


def test_a_lock_that_is_a_link_is_not_opened(
    run: Path, command: Callable[[str, Path], int], capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
    put_link(run, ".lock")
    assert_refused("report", run, ".lock", command, capsys)


def test_a_report_is_not_written_through_links(
    run: Path, command: Callable[[str, Path], int], capsys: pytest.CaptureFixture[str]
) -> None:
    for file in ("report.html", "report.md", "results.csv", "figures"):
        shutil.rmtree("report", ignore_errors=True)
        Path("report").mkdir()
        Path("outside/mine.svg").write_text("mine")
        if file == "figures":
            Path("report/figures").symlink_to(Path("outside").absolute())
        else:
            put_link(Path("report"), file)
        before = contents(Path("report"))
        assert_refused("report", run, file, command, capsys)
        assert contents(Path("report")) == before


def test_the_directory_itself_may_be_a_link(run: Path, command: Callable[[str, Path], int]) -> None:
    Path("linked").symlink_to(run)
    assert command("eval", Path("linked")) == 0
    assert (run / "worst_digits.png").is_file()


@pytest.mark.parametrize("name", ["train.log", ".hydra", "checkpoints", ".lock"])
def test_a_new_run_does_not_start_in_a_directory_with_links(
    name: str, mnist_train: Callable[..., int], small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("trap").mkdir()
    Path("outside").mkdir()
    (Path("trap") / name).symlink_to(Path("outside").absolute())
    assert mnist_train(*small, "hydra.run.dir=trap") == 2
    assert f"trap/{name} is a link" in capsys.readouterr().err
    assert not list(Path("outside").iterdir())


def test_a_literal_interpolation_of_the_users_is_refused_at_the_start(
    mnist_train: Callable[..., int], small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A value that could not be read back is not stored."""
    arguments = [word for word in small if word != "data=mnist5k"]
    assert mnist_train(*arguments, "data=idx", r"data.root='\${x}'", "hydra.run.dir=new") == 2
    assert capsys.readouterr().err == (
        "mnist-train: data.root holds an interpolation (${); a stored configuration holds values only\n"
    )
    assert not Path("new").exists()


class TestFiles:
    """``open_file``, ``exists`` and ``write_atomically``."""

    def test_regular_files_are_read_and_written(self, tmp_path: Path) -> None:
        write_atomically(tmp_path / "a", b"1")
        assert exists(tmp_path / "a")
        with open_file(tmp_path / "a") as file:
            assert file.read() == b"1"
        assert not exists(tmp_path / "b")
        assert not exists(tmp_path / "folder" / "b", below=tmp_path)

    @pytest.mark.parametrize("put", [put_link, put_pipe], ids=["link", "pipe"])
    @pytest.mark.parametrize("use", [
        exists, open_file, lambda path: open_file(path, "a"), lambda path: write_atomically(path, b"x"),
    ], ids=["exists", "read", "append", "replace"])  # fmt: skip
    def test_others_are_refused(
        self, put: Callable[[Path, str], None], use: Callable[[Path], object], tmp_path: Path
    ) -> None:
        Path("outside").mkdir()
        put(tmp_path, "file")
        with pytest.raises(RunDirectoryError, match=r"file is (a link|no regular file)"):
            use(tmp_path / "file")
        assert {path.name for path in tmp_path.iterdir()} == {"file", "outside"}

    @pytest.mark.parametrize("has_dir_fd", [True, False])
    def test_no_folder_between_may_be_a_link(
        self, has_dir_fd: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mnist_exp.runs.files.HAS_DIR_FD", has_dir_fd)
        Path("outside").mkdir()
        Path("outside/file").write_text("mine")
        (tmp_path / "folder").symlink_to("outside")
        for use in (exists, open_file, lambda path, below: write_atomically(path, b"x", below=below)):
            with pytest.raises(RunDirectoryError, match="folder is a link"):
                use(tmp_path / "folder" / "file", below=tmp_path)
        assert Path("outside/file").read_text() == "mine"
        assert [path.name for path in Path("outside").iterdir()] == ["file"]

    def test_systems_without_flags_against_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mnist_exp.runs.files.HAS_DIR_FD", False)
        monkeypatch.setattr("mnist_exp.runs.files.NO_LINK", 0)
        write_atomically(tmp_path / "a", b"1")
        (tmp_path / "b").symlink_to("a")
        for path in ("b",):
            with pytest.raises(RunDirectoryError, match="b is a link"):
                open_file(tmp_path / path, "w")
        assert (tmp_path / "a").read_bytes() == b"1"


class TestLogger:
    """The present user decides where a run is sent."""

    PRESENT: ClassVar[dict[str, Any]] = {"_target_": "mnist_exp.loggers.wandb.WandbLogger", "_partial_": True, "project": "mnist-exp",
               "entity": None, "mode": "auto", "tags": [], "upload_files": False}  # fmt: skip
    STRANGERS: ClassVar[dict[str, Any]] = {
        **PRESENT,
        "project": "theirs",
        "entity": "them",
        "mode": "online",
        "tags": ["x"],
        "upload_files": True,
    }

    def test_no_settings_of_a_stranger_are_used(self) -> None:
        section, lost = logger_to_use(check_logger(self.STRANGERS), check_logger(self.PRESENT), ())
        assert section == check_logger(self.PRESENT)
        assert lost == [
            *("logger.project=theirs", "logger.entity=them", "logger.mode=online", "logger.tags=[x]"),
            "logger.upload_files=true",
        ]

    @pytest.mark.parametrize("stored", [None, {}])
    def test_a_run_without_uploads_stays_so(self, stored: Any) -> None:
        stored, present = check_logger(stored), check_logger(self.PRESENT)
        assert logger_to_use(stored, present, ()) == (None, [])
        assert logger_to_use(stored, present, {"logger"}) == (present, [])

    def test_offline_stays_offline_unless_a_mode_is_typed(self) -> None:
        stored, present = check_logger({**self.PRESENT, "mode": "offline"}), check_logger(self.PRESENT)
        for typed, mode in ((set[str](), "offline"), ({"logger.mode"}, "auto")):
            used, _ = logger_to_use(stored, present, typed)
            assert used is not None
            assert used.plain()["mode"] == mode

    @pytest.mark.parametrize(
        ("recorded", "entity", "expected"),
        [
            ({"id": "abc", "project": "mnist-exp", "entity": "me"}, None, "abc"),
            ({"id": "abc", "project": "mnist-exp", "entity": "me"}, "me", "abc"),
            ({"id": "abc", "project": "mnist-exp", "entity": "them"}, "me", None),
            ({"id": "abc", "project": "theirs", "entity": None}, None, None),
            ({"id": "../abc", "project": "mnist-exp"}, None, None),
            (None, None, None),
        ],
    )
    def test_the_run_is_continued_in_the_same_place_only(
        self, recorded: Any, entity: str | None, expected: Any
    ) -> None:
        assert (
            run_id_to_use(
                recorded and WandbRun.model_validate(recorded),
                check_logger({**self.PRESENT, "project": "mnist-exp", "entity": entity}),
            )
            == expected
        )

    def test_a_resumed_run_uses_the_logger_of_the_command(
        self, run: Path, mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        change(run, lambda tree: tree.update(logger={**self.STRANGERS, "mode": "offline", "group": None}))
        record = json.loads((run / "run.json").read_text())
        record.update(status="interrupted", wandb={"id": "theirs", "project": "theirs", "entity": "them"})
        (run / "run.json").write_text(json.dumps(record))
        assert mnist_train(f"resume={run}", "logger.tags=[y]") == 0
        assert capsys.readouterr().err == (
            "mnist-train: the logger settings of run are not used again; if you want the same, type mnist-train "
            "resume=run 'logger.tags=[y]' logger.project=theirs logger.entity=them logger.upload_files=true\n"
        )
        recorded = read_run(run).record.wandb
        assert recorded is not None
        assert (recorded.project, recorded.entity, recorded.mode) == ("mnist-exp", None, "offline")
        assert recorded.id != "theirs"

    @pytest.mark.parametrize("kind", ["settings", "link", "folder"])
    def test_links_and_settings_for_wandb_are_refused(self, kind: str, tmp_path: Path) -> None:
        (tmp_path / "wandb" / "offline-run-1-a" / "files").mkdir(parents=True)
        (tmp_path / "wandb" / "latest-run").symlink_to("offline-run-1-a")
        refuse_links_for_wandb(tmp_path)
        if kind == "settings":
            (tmp_path / "wandb" / "settings").write_text("[default]\nbase_url = http://elsewhere\n")
        elif kind == "link":
            (tmp_path / "wandb" / "offline-run-1-a" / "files" / "key").symlink_to("/etc/passwd")
        else:
            (tmp_path / "wandb" / "offline-run-2-a").symlink_to("/tmp")
        with pytest.raises(RunDirectoryError, match=r"settings would change where W&B|is a link"):
            refuse_links_for_wandb(tmp_path)


def test_instantiate_builds_objects_from_plain_data() -> None:
    import torch

    tree = {
        "_target_": "torch.nn.Sequential",
        "_args_": [{"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}],
    }
    assert isinstance(instantiate(tree)[0], torch.nn.Linear)
    assert instantiate({"a": ["${oc.env:SECRET}"]}) == {"a": ["${oc.env:SECRET}"]}
    factory = instantiate({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})
    assert factory([torch.zeros(1, requires_grad=True)]).defaults["lr"] == 0.5
