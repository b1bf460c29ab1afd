"""The schema of the configuration, every check of it that needs no data.

``conf/`` holds the values, this module their types, ranges and combinations. Nothing heavy is imported here: a mistake
on the command line is answered before torch is loaded and before any directory exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from mnist_exp.errors import UsageError, as_typed, explain_validation
from mnist_exp.trust import refuse_unless_plain
from mnist_exp.types import BatchNorm, Classes, Count, Dropout, NonNegative, PerChannel, Positive, Probability


class Frozen(BaseModel):
    """A part of the configuration, checked and never changed; ``model_copy(update=...)`` makes another one."""

    model_config = ConfigDict(frozen=True, strict=True)

    def plain(self) -> dict[str, Any]:
        """As configuration files have it: plain data, and only the keys that were given."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Section(Frozen):
    """A closed set of keys."""

    model_config = ConfigDict(extra="forbid")


class Component(Frozen):
    """Something that ``_target_`` names; types and ranges of its other keys are its constructor's."""

    model_config = ConfigDict(extra="allow")
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

    @property
    def folder(self) -> str | None:
        """``root``, the folder of the data where they have one; that of a user's own loader is taken for a folder, too."""
        root = getattr(self, "root", None)
        return root if isinstance(root, str) else None

    def in_folder(self, root: str | None) -> Self:
        """The same data in another folder."""
        return self.model_copy(update={"root": root})


class Data(Preparation):
    """Where our own loaders find digits. ``conf/data``."""

    target: Literal["mnist_exp.data.idx_folder", "mnist_exp.data.png_folder", "mnist_exp.data.mnist5k"] = Field(
        alias="_target_"
    )
    root: str | None = None
    download: Literal["MNIST", "FashionMNIST", "KMNIST"] | None = None


class OwnData(Preparation):
    """A user's function or class that returns arrays; what is no key of the preparation is an argument of it."""

    model_config = ConfigDict(extra="allow")
    target: str = Field(alias="_target_")


def _target(section: Any) -> Any:
    """What a section names, whether it is checked already or not."""
    return section.get("_target_") if isinstance(section, Mapping) else getattr(section, "target", None)


def _whose_data(section: Any) -> str:
    target = _target(section)
    return "own" if isinstance(target, str) and not target.startswith("mnist_exp.") else "ours"


class Found(Section):
    """Size and normalisation of the images that a run was trained on: what its configuration may leave to the data."""

    image_size: Count
    mean: PerChannel[float]
    std: PerChannel[Positive]


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
    profile: bool = False  # runs of earlier versions do not say


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


def _kind_of_logger(section: Any) -> str:
    return "wandb" if _target(section) == "mnist_exp.loggers.wandb.WandbLogger" else "other"


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

    def plain(self) -> dict[str, Any]:
        """What ``config.yaml`` of a run holds: all but how a run is started, ``sweep`` and ``trust``."""
        return self.model_dump(by_alias=True, exclude_unset=True, exclude={"sweep", "trust"})

    def with_data(self, data: Data | OwnData) -> Config:
        """The same with other data."""
        return self.model_copy(update={"data": data})

    def with_found(self, found: Found | None) -> Config:
        """The same with the size and the normalisation of the images, where it leaves them to the data, and with what earlier
        versions do not say of them.

        Args:
            found: by the run, as ``run.json`` has it; None for a run of an earlier version.
        """
        data = self.data
        values = {key: getattr(data, key) for key in ("channels", "num_classes")}
        if found is not None:
            values |= {key: getattr(found, key) for key in Found.model_fields if getattr(data, key) is None}
        return self.with_data(data.model_copy(update=values))

    def with_absolute_paths(self, folder: Path) -> Config:
        """The same with every path in it made absolute, so that it means the same wherever a run is started.

        Args:
            folder: the one in which the command was given.
        """

        def absolute(path: str) -> str:
            return str(folder / Path(path).expanduser())

        changes: dict[str, Any] = {}
        if self.data.folder:
            changes["data"] = self.data.in_folder(absolute(self.data.folder))
        if self.init_from:
            changes["init_from"] = absolute(self.init_from)
        if teachers := self.regularization.distillation.teachers:
            wanted = {"teachers": [absolute(teacher) for teacher in teachers]}
            distillation = self.regularization.distillation.model_copy(update=wanted)
            changes["regularization"] = self.regularization.model_copy(update={"distillation": distillation})
        return self.model_copy(update=changes)


def check(tree: Mapping[str, Any]) -> Config:
    """The configuration as typed, frozen sections.

    Args:
        tree: resolved, as ``resolve`` returns it or as ``config.yaml`` of a run holds it.

    Raises:
        UsageError: one line for each mistake.
    """
    refuse_unless_plain(tree)
    try:
        # Both have been empty in several ways: absent, null, {}.
        empty = {"logger": tree.get("logger") or None, "callbacks": tree.get("callbacks") or {}}
        config = Config.model_validate({**tree, **empty})
    except ValidationError as error:
        from mnist_exp.compose import choices_with  # with Hydra, which a configuration without a mistake does not need

        raise UsageError("\n".join(explain_validation(error, tree, choices_with))) from error
    if problems := list(_contradictions(config)):
        raise UsageError("\n".join(problems))
    return config


# About a tenth of the training images, for messages.
_A_TENTH = {"mnist_exp.data.mnist5k": 500, "mnist_exp.data.idx_folder": 5000, "mnist_exp.data.png_folder": 5000}


def check_logger(section: Mapping[str, Any] | None) -> Component | Wandb | None:
    """The logger's section alone, where the rest belongs to no run.

    Raises:
        UsageError: one line for each mistake.
    """
    try:
        return _LOGGER.validate_python(section) if section else None
    except ValidationError as error:
        raise UsageError("\n".join(explain_validation(error, {"logger": section}, within=("logger",)))) from error


_LOGGER: TypeAdapter[Component | Wandb] = TypeAdapter(Logger)


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
