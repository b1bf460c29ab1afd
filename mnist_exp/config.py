"""The schema of the configuration and every check that needs no data.

``conf/`` holds the values, this module their types, ranges and combinations. Nothing heavy is imported here: a mistake
on the command line is answered before torch is loaded and before any directory exists.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError

from mnist_exp.compose import choices_with, resolve
from mnist_exp.errors import UsageError, as_typed, explain_validation
from mnist_exp.explain import through_hydra
from mnist_exp.runs.directory import read_record, refuse_unless_free
from mnist_exp.trust import refuse_unless_plain
from mnist_exp.types import BatchNorm, Classes, Count, Dropout, NonNegative, PerChannel, Positive, Probability

if TYPE_CHECKING:
    from mnist_exp.build import Parts


class Section(BaseModel):
    """A closed set of keys, checked and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Component(BaseModel):
    """Something that ``_target_`` names; types and ranges of its other keys are its constructor's."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    target: str = Field(alias="_target_")


Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Preparation(Section):
    """What is done to images wherever they come from. ``conf/data/common/preparation.yaml``."""

    image_size: Count | None  # None: as stored
    channels: Literal[1, 3] = 1  # runs of earlier versions do not say
    num_classes: Classes = 10  # nor this
    mean: PerChannel[float] | None  # None: of the images that are trained on
    std: PerChannel[Positive] | None
    val_size: Annotated[int, Field(ge=0)]
    split_seed: Seed
    limit: Count | None
    swap_splits: bool


class Data(Preparation):
    """Where our own loaders find digits. ``conf/data``."""

    target: Literal["mnist_exp.data.idx_folder", "mnist_exp.data.png_folder", "mnist_exp.data.mnist5k"] = Field(
        alias="_target_"
    )
    root: str | None = None
    download: Literal["MNIST", "FashionMNIST", "KMNIST"] | None = None


class OwnData(Preparation):
    """A user's function or class that returns arrays; what is no key of the preparation is an argument of it."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    target: str = Field(alias="_target_")


def _whose_data(tree: Any) -> str:
    target = tree.get("_target_") if isinstance(tree, Mapping) else getattr(tree, "target", None)
    return "own" if isinstance(target, str) and not target.startswith("mnist_exp.") else "ours"


class Optimizer(Component):
    """A partial of a ``torch.optim.Optimizer`` or of one of ours. ``conf/optimizer``."""

    partial: Literal[True] = Field(alias="_partial_")
    lr: Positive
    weight_decay: NonNegative = 0.0
    momentum: Probability = 0.0


class Scheduler(Component):
    """A partial called with (optimizer, epochs=, steps_per_epoch=). ``conf/scheduler``."""

    partial: Literal[True] = Field(alias="_partial_")


class Augmentation(Section):
    """Amplitudes of the random distortions of training images."""

    rotation: Annotated[float, Field(ge=0, le=180)]
    translation: Annotated[float, Field(ge=0, lt=1)]
    scale: Annotated[float, Field(ge=0, lt=1)]
    shear: Annotated[float, Field(ge=0, lt=90)]
    elastic_alpha: NonNegative
    elastic_sigma: Annotated[float, Field(gt=0, le=100)]  # pixels; memory grows with it
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
    early_stopping: Count | None
    distillation: Distillation = Distillation()  # runs of earlier versions have none
    augmentation: Augmentation


class Trainer(Section):
    """How long, how much at once, and on what. ``conf/trainer``."""

    epochs: Count
    batch_size: Count
    eval_batch_size: Count
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    threads: Annotated[int, Field(ge=1, le=1024)] | None
    precision: Literal["float32", "bfloat16"]
    compile: bool
    backend: Literal["auto", "torch", "native"] = "auto"  # runs of earlier versions do not say
    selection: Literal["last", "best"]


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_number_as_text)]  # a project or a tag may be called 2024


class Wandb(Section):
    """Settings of ``mnist_exp.loggers.wandb.WandbLogger``. ``conf/logger``; runs of earlier versions may not say all."""

    target: Literal["mnist_exp.loggers.wandb.WandbLogger"] = Field(alias="_target_")
    partial: Literal[True] | None = Field(alias="_partial_", default=None)  # of earlier versions
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


Logger = Annotated[Annotated[Wandb, Tag("wandb")] | Annotated[Component, Tag("other")], Discriminator(_kind_of_logger)]


class SweepSettings(Section):
    """How a sweep is run; never what a run computes."""

    name: Annotated[str, Field(min_length=1)]
    resume: str | None
    fail_fast: bool


class Config(Section):
    """One training run."""

    data: Annotated[Annotated[Data, Tag("ours")] | Annotated[OwnData, Tag("own")], Discriminator(_whose_data)]
    regularization: Regularization  # before what reads it, so that a mistake is named where it was made
    model: Component
    optimizer: Optimizer
    scheduler: Scheduler
    trainer: Trainer
    logger: Logger | None  # None: nobody but the run directory
    callbacks: dict[str, Component] = {}  # by name; TensorBoard's logger is one of them
    seed: Seed
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+=,-]{0,99}$")]
    resume: str | None
    init_from: str | None = None  # runs of earlier versions do not say
    trust: list[str] = []  # of a run that is stored: none
    quiet: bool
    show_layers: bool
    sweep: SweepSettings | None = None  # of a run that is stored: none


def check(tree: Mapping[str, Any]) -> Config:
    """The configuration as typed, frozen sections.

    Args:
        tree: resolved, as ``resolve`` returns it or as ``config.yaml`` of a run holds it.

    Raises:
        UsageError: one line for each mistake.
    """
    refuse_unless_plain(tree)
    try:
        none = {"logger": tree.get("logger") or None, "callbacks": tree.get("callbacks") or {}}
        config = Config.model_validate({**tree, **none})
    except ValidationError as error:
        raise UsageError("\n".join(explain_validation(error, tree, choices_with))) from error
    if problems := list(_contradictions(config)):
        raise UsageError("\n".join(problems))
    return config


# What a run is called, where it runs, who hears of it and in which folder its data lie: none of it changes what is computed.
NOT_COUNTED = (
    *("name", "resume", "quiet", "show_layers", "logger", "sweep", "trust"),
    *("trainer.device", "trainer.threads", "trainer.backend", "data.root"),
)
# Keys that earlier versions did not have, by the value that means what those did.
ADDED = {"init_from": None, "data.channels": 1, "data.num_classes": 10}


def hashed_config(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides what is computed: all but ``NOT_COUNTED`` and our loggers.

    The folder of the data does count where nothing else says which data they are.
    """
    own = {name: node for name, node in (tree.get("callbacks") or {}).items() if not is_our_logger(node)}
    tree = {**{key: value for key, value in tree.items() if key != "callbacks"}, **({"callbacks": own} if own else {})}
    named = tree["data"]["_target_"] == "mnist_exp.data.idx_folder" and tree["data"].get("download")
    left_out = {key for key in NOT_COUNTED if key != "data.root" or named}

    def counts(key: str, value: Any) -> bool:
        return key not in left_out and not (key in ADDED and value == ADDED[key])

    what: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            value = {name: inner for name, inner in value.items() if counts(f"{key}.{name}", inner)}
        if counts(key, value):
            what[key] = value
    return what


def is_our_logger(node: Any) -> bool:
    """Whether a section of ``callbacks`` is a logger of this package, which changes nothing that is computed."""
    return isinstance(node, Mapping) and str(node.get("_target_")).startswith("mnist_exp.loggers.")


def config_hash(tree: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that are equal exactly for runs that compute the same thing."""
    return hashlib.sha256(json.dumps(hashed_config(tree), sort_keys=True).encode()).hexdigest()[:12]


def with_preparation(tree: Mapping[str, Any], found: Any) -> dict[str, Any]:
    """The configuration with the size and the normalisation of the images, where it leaves them to the data, and with what
    earlier versions do not say of them.

    Args:
        found: ``preparation`` of ``run.json``: what the run found; runs of earlier versions have none.
    """
    data = tree["data"]
    missing = {key for key in ("image_size", "mean", "std") if data.get(key) is None}
    values = {key: found[key] for key in missing if key in found} if isinstance(found, Mapping) else {}
    added = {key.removeprefix("data."): value for key, value in ADDED.items() if key.startswith("data.")}
    return {**tree, "data": {**added, **data, **values}}


def with_absolute_paths(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with every path in it made absolute, so that it means the same wherever a run is started.

    Args:
        folder: the one in which the command was given.
    """

    def absolute(path: str) -> str:
        return str(folder / Path(path).expanduser())

    result = dict(tree)
    root = tree["data"].get("root")
    if root and isinstance(root, str):  # an argument of this name of a user's own loader is a folder, too
        result["data"] = {**tree["data"], "root": absolute(root)}
    if start := tree.get("init_from"):
        result["init_from"] = absolute(start)
    distillation = tree["regularization"].get("distillation") or {}
    if teachers := distillation.get("teachers"):
        distillation = {**distillation, "teachers": [absolute(teacher) for teacher in teachers]}
        result["regularization"] = {**tree["regularization"], "distillation": distillation}
    return result


def as_stored(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What ``config.yaml`` holds of a configuration: all that says what is computed, with absolute paths.

    Args:
        folder: the one in which the command was given.
    """
    left_out = ("sweep", "trust")
    return {key: value for key, value in with_absolute_paths(tree, folder).items() if key not in left_out}


def check_runs_named(tree: Mapping[str, Any]) -> None:
    """Check that the runs which a new run needs are there.

    Raises:
        UsageError: a directory holds no run.
    """
    teachers = (tree["regularization"].get("distillation") or {}).get("teachers") or []
    for key, directories in (
        ("init_from", [tree.get("init_from")]),
        ("regularization.distillation.teachers", teachers),
    ):
        for directory in directories:
            try:
                _ = directory and read_record(Path(directory).expanduser())
            except UsageError as error:
                raise UsageError(f"{key}: {error}") from error


class CheckBeforeRun(Callback):
    """Hydra's hook in front of a run: stops at a mistake before Hydra creates, or writes into, the run directory.

    Everything is built here, so that what a constructor refuses leaves nothing on disk. Where the configuration says
    ``resume``, whatever set it, the run directory is that one.

    Attributes:
        built: what the next run of this process trains with, and the seconds that it took with the import of torch.
            Hydra's hook and its task share nothing else.
    """

    built: ClassVar[tuple[Parts, float] | None] = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        HydraConfig.instance().set_config(config)
        with through_hydra():
            if config.sweep.resume is not None:
                raise UsageError(f"sweep.resume={config.sweep.resume} goes with -m: mnist-train -m sweep.resume=DIR")
            if config.resume is not None:
                from mnist_exp.stored import check_resume

                typed = [override for override in config.hydra.overrides.hydra if override != "hydra.mode=RUN"]
                check_resume(job, [*config.hydra.overrides.task, *typed])
                with read_write(config.hydra):
                    config.hydra.run.dir = config.resume
                    config.hydra.output_subdir = None  # .hydra/ stays as the run began
                return
            tree = resolve(job)
            check(tree)
            check_runs_named(tree)
            refuse_unless_free(Path(config.hydra.run.dir))
            tree = with_absolute_paths(tree, Path.cwd())
            began = time.perf_counter()
            from mnist_exp.build import build, check_parts, facts_of

            here = Path(config.hydra.runtime.cwd)
            directory = here / config.hydra.run.dir
            facts = facts_of(directory, as_stored(tree, here))
            check_parts(tree, check(tree), directory)  # before data are read, or fetched
            parts = build(tree, check(tree), facts=facts)
            CheckBeforeRun.built = parts, time.perf_counter() - began


# About a tenth of the training images, for messages.
_A_TENTH = {"mnist_exp.data.mnist5k": 500, "mnist_exp.data.idx_folder": 5000, "mnist_exp.data.png_folder": 5000}


def _contradictions(config: Config) -> Iterable[str]:
    """Values that are fine alone and wrong together."""
    regularization = config.regularization
    needed = {"mnist_exp.data.idx_folder": ("root", "download"), "mnist_exp.data.png_folder": ("root",)}
    for key in needed.get(config.data.target, ()):
        if key not in config.data.model_fields_set:
            yield f"data.{key} is missing"
    for key, numbers in (("mean", config.data.mean), ("std", config.data.std)):
        if isinstance(numbers, list) and len(numbers) != config.data.channels:
            yield (
                f"data.{key}={as_typed(numbers)} has {len(numbers)} values and data.channels={config.data.channels}: give one number, or "
                "one for each channel"
            )
    if config.trainer.backend == "native":
        for setting, value, allowed in (
            ("device", config.trainer.device, ("auto", "cpu")),
            ("precision", config.trainer.precision, ("float32",)),
            ("compile", config.trainer.compile, (False,)),
        ):
            if value not in allowed:
                yield (
                    f"trainer.backend=native contradicts trainer.{setting}={as_typed(value)}; "
                    f"use trainer.{setting}={as_typed(allowed[-1])} or trainer.backend=auto"
                )
    if config.data.val_size == 0:
        advice = f"hold some out: data.val_size={_A_TENTH.get(config.data.target, 100)}"
        if regularization.early_stopping is not None:
            yield (f"regularization.early_stopping={regularization.early_stopping} needs validation data; {advice}")
        if config.trainer.selection == "best":
            yield f"trainer.selection=best needs validation data; {advice}"
