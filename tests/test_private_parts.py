"""Private parts of other libraries: each exists, and works as our code needs.

A failure here means that a pinned version was raised and the named module has to be looked at.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from hydra import compose, initialize_config_dir, version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf, base
from process_state import restored
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from wandb.proto import wandb_internal_pb2
from warm_commands import WarmCommands

from mnist_exp.compose import (
    BASIC_LAUNCHER,
    BASIC_SWEEPER,
    CONF,
    composing_code,
    directory_part_of,
    empty_callbacks,
    hydra_flags,
    interpolations_parsed_once,
    root_of,
    run_hydra_app,
)
from mnist_exp.loggers import wandb_private
from mnist_exp.sweeps.slurm import disable_sacct
from mnist_exp.torch_private import has_hooks

ROOT = Path(__file__).parents[1]
WITHOUT_DYNAMO = """
import copy, sys
import mnist_exp, torch
from mnist_exp.models import MLP
from mnist_exp.models.table import layer_table
from mnist_exp.training import MuonWithAdamW
from mnist_exp.torch_private import defer_dynamo, has_hooks

kinds = [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, MuonWithAdamW]
seen = []

def train(kind):
    torch.manual_seed(0)
    model = MLP(hidden=[4], image_size=2)
    optimizer = kind(model.parameters(), lr=0.1)
    if kind is torch.optim.SGD:
        optimizer.register_step_post_hook(lambda *arguments: seen.append(kind))
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 1, 2, 2)).square().sum().backward()
        optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return [parameter.detach().clone() for parameter in model.parameters()]

defer_dynamo()
rows = layer_table(MLP(hidden=[4], image_size=2), 2)
plain = [train(kind) for kind in kinds]
mnist_exp.train(*sys.argv[1:])
assert not {"torch._dynamo", "triton"} & set(sys.modules)
import torch._dynamo
assert layer_table(MLP(hidden=[4], image_size=2), 2) == rows
assert sum(row.macs for row in rows) == 2 * 2 * 4 + 4 * 10
for kind, expected in zip(kinds, plain):
    assert all(map(torch.equal, train(kind), expected))
assert len(seen) == 6
disabled = [vars(f.__wrapped__)["__dynamo_disable"] for f in (torch.optim.Optimizer.zero_grad, torch.optim.Optimizer.add_param_group)]
assert all(f.__module__.startswith("torch._dynamo") for f in disabled), disabled
print("as PyTorch makes it")
"""
# The one module for each library. Anything whose path has a part that begins with an underscore is private, and so are the
# parts of wandb that its documentation does not name.
PRIVATE_IMPORTS = {"mnist_exp/compose.py": "hydra._internal", "mnist_exp/loggers/wandb_private.py": "wandb."}
PUBLIC_WANDB = {"wandb", "wandb_workspaces.reports.v2"}


def imported(file: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            private = [
                alias.name for alias in node.names if alias.name.startswith("_") and not alias.name.startswith("__")
            ]
            found |= {node.module, *(f"{node.module}.{name}" for name in private)}
    return found


def is_private(module: str) -> bool:
    if module.partition(".")[0] in {"mnist_exp", "__future__"}:
        return False
    if module.startswith("wandb"):
        return module not in PUBLIC_WANDB
    return any(part.startswith("_") for part in module.split("."))


def test_private_modules_are_imported_in_one_place_for_each_library() -> None:
    found = {}
    for folder in ("mnist_exp", "hydra_plugins", "scripts"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if private := sorted(module for module in imported(file) if is_private(module)):
                found[file.relative_to(ROOT).as_posix()] = private
    assert found.keys() == PRIVATE_IMPORTS.keys(), found
    for name, prefix in PRIVATE_IMPORTS.items():
        assert all(module.startswith(prefix) for module in found[name] if module != "wandb"), found[name]


def test_hydras_flags() -> None:
    options = hydra_flags().parse_args(["--multirun", "--config-dir", "x", "a=1"])
    assert (options.multirun, options.config_dir, options.overrides) == (True, "x", ["a=1"])
    assert {"run", "cfg", "info", "resolve", "hydra_help", "shell_completion", "config_name", "config_path"} <= set(
        vars(options)
    )


def test_hydras_application_runs_a_task(tmp_path: Path) -> None:
    seen = []
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "train.yaml").write_text("seed: 0\n")
    options = hydra_flags().parse_args(
        ["--config-path", str(tmp_path / "conf"), "hydra.run.dir=here", "hydra/job_logging=none", "seed=7"]
    )
    version.setbase("1.3")
    with restored():
        run_hydra_app(options, lambda config: seen.append(config.seed))
    assert seen == [7]


@pytest.mark.parametrize(
    ("arguments", "jobs", "compositions"),
    [
        (["seed=1", "hydra.run.dir=run"], 1, 1),
        (["-m", "seed=1,2", "hydra.sweep.dir=sweep"], 2, 2),  # one of the sweep, and one of its jobs
        (["hydra.mode=MULTIRUN", "seed=1,2", "hydra.sweep.dir=sweep"], 2, 3),
        (["sweep=seeds", "seed=1,2", "hydra.sweep.dir=sweep"], 2, 3),
        (["--config-dir", "own", "+several=yes", "seed=1,2", "hydra.sweep.dir=sweep"], 2, 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_hydra_composes_for_its_mode_only_if_something_may_set_it(
    arguments: list[str],
    jobs: int,
    compositions: int,
    small: list[str],
    tmp_path: Path,
    mnist_train: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "own" / "several").mkdir(parents=True)
    (tmp_path / "own" / "several" / "yes.yaml").write_text("# @package _global_\nhydra:\n  mode: MULTIRUN\n")
    calls = []
    original = ConfigLoaderImpl.load_configuration

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return original(*arguments, **options)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    assert mnist_train(*small, "trainer.epochs=1", "data.limit=64", "quiet=true", *arguments) == 0
    assert len(list(tmp_path.rglob("run.json"))) == jobs
    assert len(calls) == compositions


def test_only_sweeps_set_hydras_mode() -> None:
    setting = [path for path in CONF.rglob("*.yaml") if re.search(r"^\s+mode:\s*(MULTI)?RUN", path.read_text(), re.M)]
    assert {path.parent.relative_to(CONF).as_posix() for path in setting} == {"sweep"}


def test_hydras_launcher_for_this_process_and_its_sweeper() -> None:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("train", return_hydra_config=True)
    assert config.hydra.launcher._target_ == BASIC_LAUNCHER
    assert config.hydra.sweeper._target_ == BASIC_SWEEPER


def test_exceptions_of_hydras_loader_pass_through_this_function() -> None:
    with (
        initialize_config_dir(config_dir=str(CONF), version_base="1.3"),
        pytest.raises(ConfigCompositionException) as raised,
    ):
        compose("train", overrides=["absent=1"])
    trace, codes = raised.value.__traceback__, []
    while trace is not None:
        codes.append(trace.tb_frame.f_code)
        trace = trace.tb_next
    assert composing_code() in codes


def test_the_directory_part_of_a_job() -> None:
    overrides = OverridesParser.create().parse_overrides(["seed=1", "model=mlp"])
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("train", return_hydra_config=True)
    assert directory_part_of(overrides, config) == "model=mlp,seed=1"


def test_hydras_context_without_callbacks() -> None:
    assert empty_callbacks().on_job_start(config=OmegaConf.create(), task_function=print) is None


def test_the_root_of_a_configuration() -> None:
    config = OmegaConf.create({"a": {"b": {"c": 1}}})
    assert root_of(config.a.b) is config


def test_interpolations_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    original = base.parse  # type: ignore[attr-defined]  # it is not exported
    monkeypatch.setattr(base, "parse", lambda text: parsed.append(text) or original(text))
    with interpolations_parsed_once():
        for number in range(3):
            config = OmegaConf.create({"number": number, "copy": "${number}", "text": "a-${number}-b"})
            assert OmegaConf.to_container(config, resolve=True) == {
                "number": number,
                "copy": number,
                "text": f"a-{number}-b",
            }
    assert parsed == ["${number}", "a-${number}-b"]
    assert base.parse is not original  # type: ignore[attr-defined]  # the patch of this test is in place again


@pytest.mark.parametrize("name", wandb_private.DEAD_SERVICE)
def test_wandbs_exceptions(name: str) -> None:
    error = getattr(import_module(wandb_private.DEAD_SERVICE[name]), name)
    assert issubclass(error, Exception)
    assert wandb_private.is_of_a_dead_service(error.__new__(error))
    assert not wandb_private.is_of_a_dead_service(ValueError())


def test_wandbs_statistics_can_be_turned_off() -> None:
    from wandb.analytics.opentelemetry import opentelemetry_proxy

    assert list(inspect.signature(opentelemetry_proxy.disable).parameters) == []


def test_wandbs_list_of_packages_is_read_where_we_replace_it() -> None:
    from wandb.sdk import wandb_run

    assert "from wandb.util import working_set" in inspect.getsource(wandb_run)
    packages = list(wandb.util.working_set())
    assert "torch" in {package.key for package in packages}


def test_wandbs_service_says_that_rows_are_refused() -> None:
    (program,) = (Path(wandb.__file__).parent / "bin").glob("wandb-core*")
    assert wandb_private.ROWS_REFUSED.encode() in program.read_bytes()


def test_wandbs_settings() -> None:
    assert wandb_private.SERVICE_WAIT in wandb.Settings.model_fields
    assert {"sweep_id", "sweep_param_path", "sync_file", "base_url"} <= {
        *wandb.Settings.model_fields,
        *dir(wandb.Settings),
    }


def test_wandbs_records() -> None:
    record = wandb_internal_pb2.Record(num=3, exit=wandb_internal_pb2.RunExitRecord(exit_code=1))
    assert wandb_private.record_from(record.SerializeToString()) == record
    with pytest.raises(ValueError, match="no record"):
        wandb_private.record_from(b"\xff")


def test_wandbs_folder_of_copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    assert wandb_private.staging_folder() == (tmp_path / "data" / "artifacts" / "staging").resolve()


def test_wandbs_reports() -> None:
    workspaces = pytest.importorskip("wandb_workspaces.reports.v2")
    model = wandb_private.report_model(workspaces.Report(project="p", entity="e", title="t"))
    assert model.display_name == "t"
    assert '"blocks"' in model.spec.model_dump_json(by_alias=True)


def test_submitit_asks_its_watcher_for_the_state_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")
    watcher = submitit.SlurmJob.watcher
    assert "update" in vars(type(watcher)) or hasattr(type(watcher), "update")
    with monkeypatch.context() as patch:
        patch.setattr(watcher, "update", watcher.update, raising=True)
        disable_sacct()
        watcher.update_if_long_enough("force")
        assert watcher.num_calls == 0
        assert watcher.get_info("1", mode="force") == {}


def test_training_imports_no_compiler_and_gives_the_same_bits(warm_commands: WarmCommands, small: list[str]) -> None:
    """In a process of its own: in this one, another test may have compiled."""
    script = Path("without.py")
    script.write_text(WITHOUT_DYNAMO)
    command = [warm_commands.bin / "python", script, *small, "quiet=true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("as PyTorch makes it\n")


HOOKS: dict[str, Callable[[nn.Module, torch.optim.Optimizer], Any]] = {
    "of every forward pass": lambda model, optimizer: nn.modules.module.register_module_forward_hook(print),
    "before every forward pass": lambda model, optimizer: nn.modules.module.register_module_forward_pre_hook(print),
    "of every backward pass": lambda model, optimizer: nn.modules.module.register_module_full_backward_hook(print),
    "before every backward pass": lambda model, optimizer: nn.modules.module.register_module_full_backward_pre_hook(
        print
    ),
    "of every optimizer": lambda model, optimizer: register_optimizer_step_post_hook(print),
    "before every optimizer": lambda model, optimizer: register_optimizer_step_pre_hook(print),
    "of the optimizer": lambda model, optimizer: optimizer.register_step_post_hook(print),
    "before the optimizer": lambda model, optimizer: optimizer.register_step_pre_hook(print),
    "of a layer": lambda model, optimizer: model[0].register_forward_hook(print),  # type: ignore[index]
    "before a layer": lambda model, optimizer: model[0].register_forward_pre_hook(print),  # type: ignore[index]
    "of a layer's backward pass": lambda model, optimizer: model[0].register_full_backward_hook(print),  # type: ignore[index]
    "before a layer's backward pass": lambda model, optimizer: model[0].register_full_backward_pre_hook(print),  # type: ignore[index]
    "of a gradient": lambda model, optimizer: next(model.parameters()).register_hook(print),
    "after a gradient": lambda model, optimizer: next(model.parameters()).register_post_accumulate_grad_hook(print),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_are_seen(kind: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters())
    assert not has_hooks(model, optimizer)
    handle = HOOKS[kind](model, optimizer)
    try:
        assert has_hooks(model, optimizer)
    finally:
        handle.remove()
    assert not has_hooks(model, optimizer)
