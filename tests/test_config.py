"""A user's mistake gives one line with what, where and what is allowed, and exit status 2; no file is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mnist_exp.compose import choices
from mnist_exp.config import check
from mnist_exp.errors import UsageError, nearest
from mnist_exp.hashing import config_hash
from mnist_exp.trust import check_target_types

MISTAKES = [
    (["modle=lenet5"], "modle is not a key; did you mean model?"),
    (["trainer.epoch=5"], "trainer.epoch is not a key; did you mean trainer.epochs?"),
    (["regularization.augmentation.rotate=5"], "regularization.augmentation.rotate is not a key; "
     "did you mean regularization.augmentation.rotation?"),
    (["zzzz=5"], "zzzz is not a key; mnist-train --cfg job lists the keys"),
    (["model=lenet6"], "model=lenet6 is not a choice; choose from lenet5, lenet5_1998, mlp; did you mean lenet5?"),
    (["regularization=droput"], "regularization=droput is not a choice; choose from augment, batch_norm, dropout, "
     "dropout_batch_norm, ema, full, label_smoothing, mixup, none, weight_decay; did you mean dropout?"),
    (["trainer.epochs=0"], "trainer.epochs=0 should be greater than or equal to 1"),
    (["trainer.epochs=ten"], "trainer.epochs=ten should be a valid integer"),
    (["trainer.epochs=1.5"], "trainer.epochs=1.5 should be a valid integer"),
    (["trainer.epochs=true"], "trainer.epochs=true should be a valid integer"),
    (["trainer.epochs=null"], "trainer.epochs=null should be a valid integer"),
    (["seed=-1"], "seed=-1 should be greater than or equal to 0"),
    (["optimizer.lr=0"], "optimizer.lr=0 should be greater than 0"),
    (["optimizer.lr=fast"], "optimizer.lr=fast should be a valid number"),
    (["data.image_size=0"], "data.image_size=0 should be greater than or equal to 1"),
    (["data.limit=0"], "data.limit=0 should be greater than or equal to 1"),
    (["trainer.device=gpu"], "trainer.device=gpu should be auto, cpu, cuda, cuda:N or mps"),
    (["model.channels=6"], "model.channels=6 should be a list: 'model.channels=[6]'"),
    (["trainer.precision=float16"], "trainer.precision=float16 should be float32 or bfloat16"),
    (["name=a/b"], "name=a/b should be letters, digits and . _ + = , - only, 100 at most"),
    (["regularization.dropout=1.0"], "regularization.dropout=1.0 should be less than 1"),
    (["model.activation=rleu"], "model.activation=rleu should be one of relu, tanh, sigmoid, gelu, silu; did you mean relu?"),
    (["+model.colour=red"], "model.colour is not a key"),
    (["+trainer.epoch=3"], "trainer.epoch is not a key; did you mean trainer.epochs?"),
    (["data=idx"], "data.root is not set and has no default; type data.root=VALUE"),
    (["regularization.early_stopping=3"],
     "regularization.early_stopping=3 needs validation data; hold some out: data.val_size=5000"),
    (["trainer.selection=best"], "trainer.selection=best needs validation data; hold some out: data.val_size=5000"),
    (["trainer.selection=best", "data=mnist5k"],
     "trainer.selection=best needs validation data; hold some out: data.val_size=500"),
    (["regularization.dropout=[0,0.5]"], "regularization.dropout=[0.0,0.5] has 2 values; this model has 3 layers "
     "that take one (linear1, linear2, linear3): give one for each, or a single one"),
    (["model=mlp", "model.hidden=[64]", "regularization.dropout=[0,0.5,0.5]"], "regularization.dropout=[0.0,0.5,0.5] "
     "has 3 values; this model has 2 layers that take one (linear1, linear2): give one for each, or a single one"),
    (["regularization.batch_norm=[true]"], "regularization.batch_norm=[true] has 1 values; this model has 4 layers "
     "that take one (conv1, conv2, linear1, linear2): give one for each, or a single one"),
    (["model=lenet5_1998", "regularization=dropout"],
     "regularization.dropout=0.5: mnist_exp.models.LeNet5_1998 has no argument dropout; leave it off"),
    (["model.padding=0", "model.kernel_size=11"], "data.image_size=28, model.padding=0, model.kernel_size=11: conv2 sees 9x9 "
     "pixels and must leave 2x2 or more; use larger images, more padding or a smaller kernel"),
    (["model=mlp", "model.hidden=[64]", "model.depth=2"],
     "model.depth=2 contradicts model.hidden=[64]; give one of them"),
    (["model._target_=os.nothing"], "model._target_=os.nothing does not exist: os has no nothing"),
    (["trainer.epochs=[1"], "trainer.epochs=[1 is not valid: a bracket or a quote has no partner, or a key no value"),
    (["trainer.epochs"], "trainer.epochs is no setting; type trainer.epochs=VALUE"),
    (["seed=1,2"], "seed=1,2 names several values; train each with mnist-train -m seed=1,2, or write a list as "
     "'seed=[1,2]'"),
    (["lr=0.1"], "lr is not a key; did you mean optimizer.lr?"),
    (["epochs=3"], "epochs is not a key; did you mean trainer.epochs?"),
    (["batch_size=3"], "batch_size is not a key; did you mean trainer.batch_size?"),
    (["dropout=0.1"], "dropout is not a key; did you mean regularization.dropout?"),
    (["hidden=[3,3]"], "hidden is not a key; did you mean model.hidden?"),
    (["epoch=3"], "epoch is not a key; did you mean trainer.epochs?"),
    (["optim.lr=3"], "optim.lr is not a key; did you mean optimizer.lr?"),
    (["model.depth=3"], "model.depth is not a key; model.depth is a key of model=mlp only"),
    (["depth=3"], "depth is not a key; model.depth is a key of model=mlp only"),
    (["++model.depth=3"], "model.depth is not a key; model.depth is a key of model=mlp only"),
    (["optimizer.betas=[0.9,0.99]"], "optimizer.betas is not a key; optimizer.betas is a key of optimizer=adam and adamw "
     "and muon only"),
    (["hydra/launchr=joblib"], "hydra/launchr is not a key; did you mean hydra/launcher?"),
    (["hydra.job.chdri=true"], "hydra.job.chdri is not a key; did you mean hydra.job.chdir?"),
    (["model=mlp,lenet5"], "model=mlp,lenet5 names several values; train each with mnist-train -m model=mlp,lenet5"),
    (["model=3"], "model=3 is not a choice; choose from lenet5, lenet5_1998, mlp"),
    (["scheduler=null"], "scheduler=null: a run needs a scheduler; choose from constant, cosine, one_cycle, step_decay"),
    (["scheduler=step"], "scheduler=step is not a choice; choose from constant, cosine, one_cycle, step_decay; did you mean "
     "step_decay?"),
    (["~model"], "~model: a run needs a model; choose from lenet5, lenet5_1998, mlp"),
    (["~data.download"], "data.download is missing"),
    (["~seed", "~trainer.epochs"], "trainer.epochs is missing\nmnist-train: seed is missing"),
    (["~lr"], "~lr: there is nothing to delete, lr does not exist or is null; mnist-train --cfg job lists the keys"),
    (["~name"], "~name is not possible; give it another value instead"),
    (["+seed=3"], "+seed=3: seed exists already; type seed=3"),
    (["++model=mlp"], "++model=mlp: a group is chosen without +; type model=mlp"),
    (["optimizer.lr=${optimizer.lr}"],
     "optimizer.lr: its value refers to itself; give it a value of its own"),
    (["seed=${trainer.epoch}"],
     "seed: there is no trainer.epoch to take its value from; did you mean trainer.epochs?"),
    (["hydra.run.dir=${nope}"], "hydra.run.dir: there is no nope to take its value from"),
    (["optimizer.lr='0.05'"], 'optimizer.lr="0.05" should be a valid number'),
    (["logger.tags=mytag"], "logger.tags=mytag should be a list: 'logger.tags=[mytag]'"),
    (["logger.tags=null"], "logger.tags=null should be a list; for an empty one type 'logger.tags=[]'"),
    (["logger.timeout_seconds=abc"], "logger.timeout_seconds=abc should be a valid number"),
    (["logger.project=null"], "logger.project=null should be a valid string"),
    (["+logger.colour=red"], "logger.colour is not a key"),
    (["DIR"], "DIR is no setting; settings are typed KEY=VALUE"),
    (["resume=missing"], "missing is not a directory"),
    (["resume=missing", "seed=3"], "missing is not a directory"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_mistake_is_one_line(
    arguments: list[str],
    message: str,
    mnist_train: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert mnist_train(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == f"mnist-train: {message}\n"
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == [], "nothing was created"


def test_nested_choices_are_suggested(mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for typed, meant in [("record/lenet", "record/lenet5"), ("speedrun", "record/speedrun")]:
        assert mnist_train(f"experiment={typed}") == 2
        message = capsys.readouterr().err
        assert message.startswith(
            f"mnist-train: experiment={typed} is not a choice; choose from lenet5_1998, record/lenet5"
        )
        assert message.endswith(f"; did you mean {meant}?\n")


def test_choices_of_a_users_own_folder_are_suggested(
    mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "resnet.yaml").write_text("_target_: torch.nn.Flatten\nstages: 3\n")
    for arguments in (["model=resnt"], ["-m", "model=mlp,resnt"]):
        assert mnist_train("--config-dir", "mine", *arguments) == 2
        assert "choose from lenet5, lenet5_1998, mlp, resnet; did you mean resnet?" in capsys.readouterr().err
    assert mnist_train("--config-dir", "mine", "model.stages=3") == 2
    assert (
        capsys.readouterr().err
        == "mnist-train: model.stages is not a key; model.stages is a key of model=resnet only\n"
    )


def test_numbers_become_text_in_the_logger(
    composed: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnist_exp.loggers.wandb import WandbLogger

    tree = composed("logger.tags=[1,a]", "logger.group=3", "logger.project=2024")
    logger = check(tree).logger
    assert logger is not None
    assert logger.model_dump(include={"tags", "group", "project"}) == {
        "tags": ["1", "a"],
        "group": "3",
        "project": "2024",
    }
    own = {key: value for key, value in tree["logger"].items() if not key.startswith("_")}
    made = WandbLogger(directory=tmp_path, label="x", config={}, parameters=0, **own)
    assert (made._tags, made._group, made._project) == (("1", "a"), "3", "2024")


def test_loggers_of_others_and_of_earlier_versions_are_read(composed: Callable[..., dict[str, Any]]) -> None:
    tree = composed()
    for logger in (
        None,
        {},
        {"_target_": "mnist_exp.mine.Logger", "_partial_": True, "tags": "free"},
        {"_target_": "mnist_exp.loggers.wandb.WandbLogger", "_partial_": True, "project": "x", "mode": "offline"},
    ):
        check({**tree, "logger": logger})


def test_every_mistake_gets_its_line(mnist_train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert mnist_train("trainer.epochs=0", "seed=-1") == 2
    assert capsys.readouterr().err.splitlines() == [
        "mnist-train: trainer.epochs=0 should be greater than or equal to 1",
        "mnist-train: seed=-1 should be greater than or equal to 0",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.device=cuda:7"], r"trainer\.device=cuda:7 is not there; this machine has .*cpu"),
        (["data.val_size=4000"], r"4,000|4000"),
    ],
)
def test_mistake_that_needs_the_machine(
    overrides: list[str],
    message: str,
    mnist_train: Callable[..., int],
    small: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert mnist_train(*small, *overrides) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mnist-train: ")
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+optimizer.colour=1", "optimizer: SGD.__init__() got an unexpected keyword argument 'colour'"),
        ("+scheduler.colour=1", "scheduler: constant() got an unexpected keyword argument 'colour'"),
        ("optimizer.momentum=0.0 optimizer.nesterov=true",
         "optimizer: Nesterov momentum requires a momentum and zero dampening"),
    ],
)  # fmt: skip
def test_argument_that_the_target_refuses(
    override: str, message: str, mnist_train: Callable[..., int], small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_train(*small, *override.split()) == 2
    assert capsys.readouterr().err == f"mnist-train: {message}\n"


def test_config_of_a_stranger_cannot_run_code(composed: Callable[..., dict[str, Any]]) -> None:
    tree = composed()
    for group, target in [
        ("model", "torch.nn.modules.module.warnings.warn"),
        ("optimizer", "torch.optim.optimizer.functools.reduce"),
        ("scheduler", "mnist_exp.training.save_checkpoint"),
        ("logger", "mnist_exp.cli.train.main"),
        ("model", "torch.nn.NoSuchThing"),
    ]:
        hostile = {**tree, group: {"_target_": target, "_partial_": True, "lr": 0.1}}
        with pytest.raises(UsageError, match=rf"{group}\._target_={target} (is not allowed there|does not exist)"):
            check_target_types(check(hostile), ())


def test_targets_below_a_section_are_checked(composed: Callable[..., dict[str, Any]]) -> None:
    tree = composed()
    hostile = {
        **tree,
        "model": {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.system", "command": "ls"}]},
    }
    with pytest.raises(UsageError, match=r"model\._args_\.0\._target_=os\.system is not allowed"):
        check_target_types(check(hostile), ())


def test_any_torch_module_can_be_the_model(mnist_train: Callable[..., int], small: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "linear.yaml").write_text(
        "_target_: torch.nn.Sequential\n_args_:\n- {_target_: torch.nn.Flatten}\n"
        "- {_target_: torch.nn.Linear, in_features: 784, out_features: 10}\n"
    )
    assert mnist_train("--config-dir", str(tmp_path / "mine"), "model=linear", *small) == 0


def test_hash_ignores_what_does_not_change_the_result(composed: Callable[..., dict[str, Any]]) -> None:
    base = config_hash(check(composed()))
    for same in (["name=other"], ["logger=none"], ["trainer.threads=1"], ["trainer.device=cpu"], ["quiet=true"]):
        assert config_hash(check(composed(*same))) == base, same
    for different in (["seed=1"], ["trainer.epochs=11"], ["data=mnist5k"], ["regularization=ema"], ["model=mlp"]):
        assert config_hash(check(composed(*different))) != base, different


def test_seed_zero_is_a_seed_and_the_default(composed: Callable[..., dict[str, Any]]) -> None:
    assert composed()["seed"] == 0
    assert config_hash(check(composed("seed=0"))) == config_hash(check(composed()))


def test_regularization_reaches_model_and_optimizer(composed: Callable[..., dict[str, Any]]) -> None:
    for model in ("lenet5", "mlp"):
        tree = composed(f"model={model}", "regularization=full", "optimizer=adamw")
        assert tree["model"]["dropout"] == tree["regularization"]["dropout"] == 0.2
        assert tree["model"]["batch_norm"] is True
        assert tree["optimizer"]["weight_decay"] == tree["regularization"]["weight_decay"] == 5e-4


def test_none_is_exactly_nothing(composed: Callable[..., dict[str, Any]]) -> None:
    knobs = composed()["regularization"]
    assert not any(value for value in knobs.values() if not isinstance(value, dict))
    assert knobs["distillation"]["teachers"] == []
    shape = {"elastic_sigma", "interpolation", "strength"}
    assert not any(value for key, value in knobs["augmentation"].items() if key not in shape)


def test_nearest_is_silent_about_far_words() -> None:
    assert nearest("epoch", ["epochs", "device"]) == "; did you mean epochs?"
    assert nearest("zebra", ["epochs", "device"]) == ""


CHOICES = [
    f"{group}={choice}"
    for group in ("data", "model", "optimizer", "scheduler", "regularization", "trainer", "logger", "experiment")
    for choice in choices(group)
]


@pytest.mark.parametrize("choice", CHOICES)
def test_the_typed_configuration_is_the_composed_one(choice: str, composed: Callable[..., dict[str, Any]]) -> None:
    folder = ["data.root=/d"] if choice in {"data=idx", "data=png"} else []
    tree = composed(choice, *folder)
    config = check(tree)
    stored = {key: value for key, value in tree.items() if key not in {"sweep", "trust"}}
    assert config.plain() == {**stored, "logger": tree.get("logger") or None, "callbacks": tree.get("callbacks") or {}}
    assert check(config.plain()).plain() == config.plain()
    assert config_hash(check(config.plain())) == config_hash(config)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("regularization.augmentation.rotation", ("10", "10.0", "1e1")),
        ("optimizer.lr", ("1", "1.0")),
        ("optimizer.betas", ("[0,0.5]", "[0.0,0.5]")),
        ("scheduler.final", ("0", "0.0", "-0.0")),
        ("model.hidden", ("[4,1]", "[4.0,1]")),
    ],
)
def test_equal_numbers_hash_alike(key: str, values: Sequence[str], composed: Callable[..., dict[str, Any]]) -> None:
    base = ["optimizer=adam", "scheduler=cosine", "regularization=augment"]
    hashes = {config_hash(check(composed(*base, f"{key}={value}"))) for value in values}
    assert len(hashes) == 1
    assert hashes != {config_hash(check(composed(*base)))} or key == "scheduler.final"


def test_an_argument_equal_to_the_default_of_the_schema_is_hashed(
    composed: Callable[..., dict[str, Any]],
) -> None:
    """``torch.optim.AdamW`` without a weight decay decays by 0.01."""
    tree = composed("optimizer=adamw")
    without = {key: value for key, value in tree["optimizer"].items() if key != "weight_decay"}
    assert tree["optimizer"]["weight_decay"] == 0
    assert config_hash(check({**tree, "optimizer": without})) != config_hash(check(tree))


def test_true_is_not_one(composed: Callable[..., dict[str, Any]]) -> None:
    tree = composed()
    first, second = ({**tree, "model": {**tree["model"], "padding": value}} for value in (1, True))
    assert config_hash(check(first)) != config_hash(check(second))
