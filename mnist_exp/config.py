"""The schema of the configuration and every check that needs no data.

``conf/`` holds the values, this module their types, ranges and combinations. Nothing heavy is imported here: a mistake
on the command line is answered before torch is loaded and before any directory exists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError

from mnist_exp.composition import choices_with, resolve
from mnist_exp.explain import exit_status
from mnist_exp.mistakes import UsageError, as_typed, explain_validation
from mnist_exp.runs.directory import refuse_unless_free


class Section(BaseModel):
    """A closed set of keys, checked and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class OpenSection(BaseModel):
    """Something Hydra instantiates whose remaining arguments belong to its target."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    target: str = Field(alias="_target_")


def _number_or_list(value: object) -> str:
    return "list" if isinstance(value, list) else "number"


Probability = Annotated[float, Field(ge=0, lt=1)]
# One for all layers, or one for each; told apart first, so that a mistake is explained once.
Dropout = Annotated[
    Annotated[Probability, Tag("number")] | Annotated[list[Probability], Tag("list")], Discriminator(_number_or_list)
]
BatchNorm = Annotated[
    Annotated[bool, Tag("number")] | Annotated[list[bool], Tag("list")], Discriminator(_number_or_list)
]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Width = Annotated[int, Field(ge=1)]
Activation = Literal["relu", "tanh", "sigmoid", "gelu", "silu"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Data(Section):
    """Where digits come from and how they are split. ``conf/data``."""

    target: Literal["mnist_exp.data.idx_folder", "mnist_exp.data.png_folder", "mnist_exp.data.mnist5k"] = Field(
        alias="_target_"
    )
    root: str | None = None
    download: Literal["MNIST", "FashionMNIST", "KMNIST"] | None = None
    image_size: Literal[28, 32]
    mean: float
    std: Positive
    val_size: Annotated[int, Field(ge=0)]
    split_seed: Seed
    limit: Annotated[int, Field(ge=1)] | None
    swap_splits: bool


class LeNet5(Section):
    """Settings of ``mnist_exp.models.LeNet5``."""

    target: Literal["mnist_exp.models.LeNet5"] = Field(alias="_target_")
    image_size: int
    padding: Literal[0, 2]
    channels: Annotated[list[Width], Field(min_length=2, max_length=2)]
    hidden: Annotated[list[Width], Field(min_length=2, max_length=2)]
    kernel_size: Annotated[int, Field(ge=1, le=15)]
    activation: Activation
    pooling: Literal["max", "average"]
    batch_norm: BatchNorm
    batch_norm_position: Literal["before", "after"]
    dropout: Dropout
    softmax_output: bool

    def linear_layers(self) -> int:
        return len(self.hidden) + 1

    def hidden_layers(self) -> int:
        return len(self.channels) + len(self.hidden)

    def problems(self) -> Iterable[str]:
        first = self.image_size + 2 * self.padding - self.kernel_size + 1
        second = first // 2 - self.kernel_size + 1
        if second < 2:
            yield (
                f"data.image_size={self.image_size} with model.padding={self.padding} and model.kernel_size="
                f"{self.kernel_size} leaves no map after the second pooling; enlarge the first two or shrink the kernel"
            )


class LeNet51998(Section):
    """Settings of ``mnist_exp.models.LeNet5_1998``."""

    target: Literal["mnist_exp.models.LeNet5_1998"] = Field(alias="_target_")
    image_size: int
    background: float
    rubbish_penalty: Positive
    output: Literal["rbf", "linear"]

    def problems(self) -> Iterable[str]:
        return ()


class MLP(Section):
    """Settings of ``mnist_exp.models.MLP``."""

    target: Literal["mnist_exp.models.MLP"] = Field(alias="_target_")
    image_size: int
    hidden: Annotated[list[Width], Field(min_length=1)] | None
    depth: Annotated[int, Field(ge=1)] | None
    budget: Annotated[int, Field(ge=1)]
    activation: Activation
    batch_norm: BatchNorm
    batch_norm_position: Literal["before", "after"]
    dropout: Dropout

    def hidden_layers(self) -> int:
        return len(self.hidden) if self.hidden is not None else (self.depth or 2)

    def linear_layers(self) -> int:
        return self.hidden_layers() + 1

    def problems(self) -> Iterable[str]:
        if self.hidden is not None and self.depth is not None:
            yield f"model.depth={self.depth} contradicts model.hidden={self.hidden}; give one of them"


KNOWN_MODELS = {
    "mnist_exp.models.LeNet5": "lenet5",
    "mnist_exp.models.LeNet5_1998": "lenet5_1998",
    "mnist_exp.models.MLP": "mlp",
}


def _kind_of_model(tree: Any) -> str:
    return KNOWN_MODELS.get(tree.get("_target_", ""), "other") if isinstance(tree, Mapping) else "other"


Model = Annotated[
    Annotated[LeNet5, Tag("lenet5")]
    | Annotated[LeNet51998, Tag("lenet5_1998")]
    | Annotated[MLP, Tag("mlp")]
    | Annotated[OpenSection, Tag("other")],
    Discriminator(_kind_of_model),
]


class Optimizer(OpenSection):
    """A partial of a ``torch.optim.Optimizer`` or of one of ours. ``conf/optimizer``."""

    partial: Literal[True] = Field(alias="_partial_")
    lr: Positive
    weight_decay: NonNegative = 0.0
    momentum: Probability = 0.0


class Scheduler(OpenSection):
    """A partial called with (optimizer, epochs=, steps_per_epoch=). ``conf/scheduler``."""

    partial: Literal[True] = Field(alias="_partial_")


class Augmentation(Section):
    """Amplitudes of the random distortions of training images."""

    rotation: Annotated[float, Field(ge=0, le=180)]
    translation: Annotated[float, Field(ge=0, lt=1)]
    scale: Annotated[float, Field(ge=0, lt=1)]
    shear: Annotated[float, Field(ge=0, lt=90)]
    elastic_alpha: NonNegative
    elastic_sigma: Positive
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # runs of earlier versions do not say
    strength: Annotated[float, Field(ge=0, le=5)] = 1.0


class Distillation(Section):
    """Trained networks to learn from."""

    teachers: list[str] = []
    weight: Annotated[float, Field(ge=0, le=1)] = 0.9
    temperature: Positive = 3.0


class Regularization(Section):
    """Everything that fights overfitting. ``conf/regularization``."""

    dropout: Dropout
    batch_norm: BatchNorm
    weight_decay: NonNegative
    decay_all: bool
    label_smoothing: Probability
    gradient_clipping: Positive | None
    mixup: NonNegative
    ema: Annotated[float, Field(gt=0, lt=1)] | None
    early_stopping: Annotated[int, Field(ge=1)] | None
    distillation: Distillation = Distillation()  # runs of earlier versions have none
    augmentation: Augmentation


class Trainer(Section):
    """How long, how much at once, and on what. ``conf/trainer``."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    eval_batch_size: Annotated[int, Field(ge=1)]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    threads: Annotated[int, Field(ge=1, le=1024)] | None
    precision: Literal["float32", "bfloat16"]
    compile: bool
    selection: Literal["last", "best"]


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_number_as_text)]  # a project or a tag may be called 2024


class Wandb(Section):
    """Settings of ``mnist_exp.loggers.wandb.WandbLogger``. ``conf/logger``; runs of earlier versions may not say all."""

    target: Literal["mnist_exp.loggers.wandb.WandbLogger"] = Field(alias="_target_")
    partial: Literal[True] = Field(alias="_partial_")
    project: Annotated[Text, Field(min_length=1)] = "mnist-exp"
    entity: Text | None = None
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    group: Text | None = None
    tags: list[Text] = []
    upload_files: bool = False
    timeout_seconds: Positive = 15.0


def _kind_of_logger(tree: Any) -> str:
    ours = isinstance(tree, Mapping) and tree.get("_target_") == "mnist_exp.loggers.wandb.WandbLogger"
    return "wandb" if ours else "other"


Logger = Annotated[
    Annotated[Wandb, Tag("wandb")] | Annotated[OpenSection, Tag("other")], Discriminator(_kind_of_logger)
]


class SweepSettings(Section):
    """How a sweep is run; never what a run computes."""

    name: Annotated[str, Field(min_length=1)]
    resume: str | None
    fail_fast: bool


class Config(Section):
    """One training run."""

    data: Data
    regularization: Regularization  # before what reads it, so that a mistake is named where it was made
    model: Model
    optimizer: Optimizer
    scheduler: Scheduler
    trainer: Trainer
    logger: Logger | None  # None: nobody but the run directory
    seed: Seed
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+=,-]{0,99}$")]
    resume: str | None
    quiet: bool
    show_layers: bool
    sweep: SweepSettings | None = None  # of a run that is stored: none


ALLOWED_TARGETS = ("mnist_exp.", "torch.nn.", "torch.optim.", "torchvision.transforms.")


def check(tree: Mapping[str, Any]) -> Config:
    """The configuration as typed, frozen sections.

    Args:
        tree: resolved, as ``resolve`` returns it or as ``config.yaml`` of a run holds it.

    Raises:
        UsageError: one line for each mistake.
    """
    _check_targets(tree)
    try:
        config = Config.model_validate({**tree, "logger": tree.get("logger") or None})
    except ValidationError as error:
        raise UsageError("\n".join(explain_validation(error, tree, choices_with))) from error
    if problems := list(_contradictions(config)):
        raise UsageError("\n".join(problems))
    return config


def what_counts(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides what is computed.

    What a run is called, where it runs, who hears of it and in which folder its data lie do not count.
    """
    what = {
        key: value
        for key, value in tree.items()
        if key not in {"name", "resume", "quiet", "show_layers", "logger", "sweep"}
    }
    what["trainer"] = {k: v for k, v in what["trainer"].items() if k not in {"device", "threads"}}
    if what["data"]["_target_"] != "mnist_exp.data.png_folder" and what["data"].get("download"):
        what["data"] = {key: value for key, value in what["data"].items() if key != "root"}
    return what


def config_hash(tree: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that are equal exactly for runs that compute the same thing."""
    return hashlib.sha256(json.dumps(what_counts(tree), sort_keys=True).encode()).hexdigest()[:12]


class CheckBeforeRun(Callback):
    """Hydra's hook in front of a run: stops at a mistake before Hydra creates, or writes into, the run directory."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        HydraConfig.instance().set_config(config)
        # Hydra turns a callback's exceptions into warnings; only leaving stops it.
        with exit_status():
            check(resolve(job))
            refuse_unless_free(Path(config.hydra.run.dir))


def _check_targets(tree: Any, path: str = "") -> None:
    """A configuration found in somebody else's run directory must not be able to run code."""
    if isinstance(tree, Mapping):
        target = tree.get("_target_")
        if target is not None and not str(target).startswith(ALLOWED_TARGETS):
            raise UsageError(
                f"{path}_target_={target} is not allowed; it may name "
                + ", ".join(f"{prefix}*" for prefix in ALLOWED_TARGETS)
                + " only"
            )
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        _check_targets(value, f"{path}{key}.")


def _contradictions(config: Config) -> Iterable[str]:
    """Values that are fine alone and wrong together."""
    model, regularization = config.model, config.regularization
    if not isinstance(model, OpenSection):
        yield from model.problems()
    for knob, layers in (("dropout", "linear_layers"), ("batch_norm", "hidden_layers")):
        wanted = getattr(regularization, knob)
        used = getattr(model, knob, None)
        if wanted and used is None and not isinstance(model, OpenSection):
            yield f"regularization.{knob}={as_typed(wanted)}: {model.target} has no {knob}; leave it off"
        elif isinstance(used, list) and len(used) != getattr(model, layers)():
            yield (
                f"regularization.{knob}={as_typed(used)} has {len(used)} values; this model has "
                f"{getattr(model, layers)()} {layers.replace('_', ' ')}, give one value for each, or a single one"
            )
    needed = {"mnist_exp.data.idx_folder": ("root", "download"), "mnist_exp.data.png_folder": ("root",)}
    for key in needed.get(config.data.target, ()):
        if key not in config.data.model_fields_set:
            yield f"data.{key} is missing"
    if config.data.val_size == 0:
        if regularization.early_stopping is not None:
            yield (
                f"regularization.early_stopping={regularization.early_stopping} needs validation data; "
                "hold some out: data.val_size=5000"
            )
        if config.trainer.selection == "best":
            yield "trainer.selection=best needs validation data; hold some out: data.val_size=5000"


def authorize(tree: Mapping[str, Any]) -> None:
    """Check that every ``_target_`` is of the kind its place calls for. Imports torch.

    The name alone is not enough: ``torch.nn.modules.module.warnings.warn`` begins with ``torch.nn`` and is no module.

    Raises:
        UsageError: a target does not exist or is something else.
    """
    import torch
    from hydra.utils import get_object

    from mnist_exp import training
    from mnist_exp.training import schedules

    kinds: dict[str, type[Any]] = {
        "model": torch.nn.Module,
        "optimizer": torch.optim.Optimizer,
        "scheduler": torch.optim.lr_scheduler.LRScheduler,
        "logger": training.Listener,
    }
    functions = [schedules.constant, schedules.step, schedules.cosine, schedules.one_cycle]

    def visit(node: Any, group: str, path: str) -> None:
        if isinstance(node, Mapping) and "_target_" in node:
            try:
                found = get_object(node["_target_"])
            except Exception as error:
                raise UsageError(f"{path}_target_={node['_target_']} does not exist") from error
            kind = kinds[group]
            fits = isinstance(found, type) and issubclass(found, kind)
            if not fits and not (group == "scheduler" and found in functions):
                raise UsageError(f"{path}_target_={node['_target_']} is not allowed there: it is no {kind.__name__}")
        items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            visit(value, group, f"{path}{key}.")

    for group in kinds:
        visit(tree[group], group, f"{group}.")
