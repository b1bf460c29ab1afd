"""The schema of the configuration, and all checks of it that need no data.

``conf/`` holds the values, this module their types, ranges and allowed combinations. torch is not imported, so that a
mistake on the command line is reported quickly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from mnist_exp.errors import UsageError, as_typed, explain_validation
from mnist_exp.plain import refuse_unless_plain
from mnist_exp.types import BatchNorm, Classes, Count, Dropout, NonNegative, PerChannel, Positive, Probability


class Frozen(BaseModel):
    """A checked, immutable part of the configuration; ``model_copy(update=...)`` returns a changed copy."""

    model_config = ConfigDict(frozen=True, strict=True)

    def plain(self) -> dict[str, Any]:
        """The content of a configuration file: plain data, only the keys that were given."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Section(Frozen):
    """A section that allows no other keys than these."""

    model_config = ConfigDict(extra="forbid")


class Component(Frozen):
    """A class or function that ``_target_`` names. Its constructor checks types and ranges of the other keys."""

    model_config = ConfigDict(extra="allow")
    target: str = Field(alias="_target_")


Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Preparation(Section):
    """Size, normalisation and splits of the images of any data set. ``conf/data/common/preparation.yaml``."""

    image_size: Count | None  # pixels; None: the size in the files
    # A default marks a key that runs of earlier versions do not have, here and in the sections below.
    channels: Literal[1, 3] = 1
    num_classes: Classes = 10
    mean: PerChannel[float] | None  # None: computed from the training images
    std: PerChannel[Positive] | None
    val_size: Annotated[int, Field(ge=0)]
    split_seed: Seed
    limit: Count | None
    swap_splits: bool

    @property
    def folder(self) -> str | None:
        """``root``, the folder of the data; None without one. A string ``root`` of a user's own loader counts as a folder."""
        root = getattr(self, "root", None)
        return root if isinstance(root, str) else None

    def in_folder(self, root: str | None) -> Self:
        """A copy with another folder."""
        return self.model_copy(update={"root": root})


class Data(Preparation):
    """One of our own loaders. ``conf/data``."""

    target: Literal["mnist_exp.data.idx_folder", "mnist_exp.data.png_folder", "mnist_exp.data.mnist5k"] = Field(
        alias="_target_"
    )
    root: str | None = None
    download: Literal["MNIST", "FashionMNIST", "KMNIST"] | None = None


class OwnData(Preparation):
    """A user's function or class that returns arrays; keys other than those of ``Preparation`` are its arguments."""

    model_config = ConfigDict(extra="allow")
    target: str = Field(alias="_target_")


def _target(section: Any) -> Any:
    """The target of a section, checked or unchecked."""
    return section.get("_target_") if isinstance(section, Mapping) else getattr(section, "target", None)


def _data_tag(section: Any) -> str:
    target = _target(section)
    return "own" if isinstance(target, str) and not target.startswith("mnist_exp.") else "ours"


class ImageProperties(Section):
    """Size and normalisation of the training images, which the configuration may leave to the data."""

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
    """Amplitudes of the random distortions of training images: degrees, fractions of the image side, pixels."""

    rotation: Annotated[float, Field(ge=0, le=180)]
    translation: Annotated[float, Field(ge=0, lt=1)]
    scale: Annotated[float, Field(ge=0, lt=1)]
    shear: Annotated[float, Field(ge=0, lt=90)]
    elastic_alpha: NonNegative
    elastic_sigma: Annotated[float, Field(gt=0, le=100)]  # pixels; memory grows with it
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    strength: Annotated[float, Field(ge=0, le=5)] = 1.0


class Distillation(Section):
    """Trained networks whose outputs the network learns to imitate."""

    teachers: list[str] = []
    weight: Annotated[float, Field(ge=0, le=1)] = 0.9
    temperature: Positive = 3.0


class Regularization(Section):
    """All methods against overfitting. ``conf/regularization``."""

    dropout: Dropout
    batch_norm: BatchNorm
    weight_decay: NonNegative
    decay_all: bool
    label_smoothing: Probability
    gradient_clipping: Positive | None
    mixup: NonNegative
    ema: Annotated[float, Field(gt=0, lt=1)] | None
    early_stopping: Count | None
    distillation: Distillation = Distillation()
    augmentation: Augmentation


class Trainer(Section):
    """Epochs, batch sizes, device and precision. ``conf/trainer``."""

    epochs: Count
    batch_size: Count
    eval_batch_size: Count
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    threads: Annotated[int, Field(ge=1, le=1024)] | None
    precision: Literal["float32", "bfloat16"]
    compile: bool
    backend: Literal["auto", "torch", "native"] = "auto"
    selection: Literal["last", "best"]
    evaluate_test: Literal["every", "last", "never"] = "every"
    profile: bool = False


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_number_as_text)]  # a project or a tag may be called 2024


class Wandb(Section):
    """Settings of ``mnist_exp.loggers.wandb.WandbLogger``. ``conf/logger``."""

    target: Literal["mnist_exp.loggers.wandb.WandbLogger"] = Field(alias="_target_")
    partial: Literal[True] | None = Field(alias="_partial_", default=None)  # in runs of earlier versions only
    project: Annotated[Text, Field(min_length=1)] = "mnist-exp"
    entity: Text | None = None
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    group: Text | None = None
    job_type: Text | None = None
    notes: Text | None = None
    tags: list[Text] = []
    save_code: bool = False
    upload_files: bool = False
    timeout_seconds: Positive = 15.0


def _logger_tag(section: Any) -> str:
    return "wandb" if _target(section) == "mnist_exp.loggers.wandb.WandbLogger" else "other"


Logger = Annotated[Annotated[Wandb, Tag("wandb")] | Annotated[Component, Tag("other")], Discriminator(_logger_tag)]


class SweepSettings(Section):
    """Settings of the sweep itself, not of its runs."""

    name: Annotated[str, Field(min_length=1)]
    resume: str | None
    fail_fast: bool
    until: Annotated[float, Field(gt=0, le=100)] | None
    max_seeds: Annotated[int, Field(ge=3, le=1000)]


class Config(Section):
    """One training run."""

    data: Annotated[Annotated[Data, Tag("ours")] | Annotated[OwnData, Tag("own")], Discriminator(_data_tag)]
    regularization: Regularization  # first, because model and optimizer interpolate from it: a mistake is named here
    model: Component
    optimizer: Optimizer
    scheduler: Scheduler
    trainer: Trainer
    logger: Logger | None
    callbacks: dict[str, Component] = {}  # by name; the TensorBoard logger is one of them
    seed: Seed
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+=,-]{0,99}$")]
    resume: str | None
    init_from: str | None = None
    trust: list[str] = []  # not stored with a run
    quiet: bool
    show_layers: bool
    sweep: SweepSettings | None = None  # not stored with a run

    def plain(self) -> dict[str, Any]:
        """The content of ``config.yaml`` of a run: everything except ``sweep`` and ``trust``."""
        return self.model_dump(by_alias=True, exclude_unset=True, exclude={"sweep", "trust"})

    def with_data(self, data: Data | OwnData) -> Config:
        """A copy with other data."""
        return self.model_copy(update={"data": data})

    def with_image_properties(self, properties: ImageProperties | None) -> Config:
        """A copy with size and normalisation of the images, where this configuration leaves them to the data, and with keys
        that earlier versions did not store.

        Args:
            properties: as recorded in ``run.json``; None for a run of an earlier version.
        """
        data = self.data
        values = {key: getattr(data, key) for key in ("channels", "num_classes")}
        if properties is not None:
            values |= {
                key: getattr(properties, key) for key in ImageProperties.model_fields if getattr(data, key) is None
            }
        return self.with_data(data.model_copy(update=values))

    def with_absolute_paths(self, folder: Path) -> Config:
        """A copy in which every path is absolute.

        Args:
            folder: the folder in which the command was started.
        """

        def absolute(path: str) -> str:
            return str(folder / Path(path).expanduser())

        changes: dict[str, Any] = {}
        if self.data.folder:
            changes["data"] = self.data.in_folder(absolute(self.data.folder))
        if self.init_from:
            changes["init_from"] = absolute(self.init_from)
        if teachers := self.regularization.distillation.teachers:
            whole = [absolute(teacher) for teacher in teachers]
            distillation = self.regularization.distillation.model_copy(update={"teachers": whole})
            changes["regularization"] = self.regularization.model_copy(update={"distillation": distillation})
        return self.model_copy(update=changes)


def check(tree: Mapping[str, Any]) -> Config:
    """Check a configuration and return it typed.

    Args:
        tree: resolved, as ``compose.resolve`` returns it or as in ``config.yaml`` of a run.

    Raises:
        UsageError: one line for each mistake.
    """
    refuse_unless_plain(tree)
    try:
        # An empty section is null, {} or absent.
        empty = {"logger": tree.get("logger") or None, "callbacks": tree.get("callbacks") or {}}
        config = Config.model_validate({**tree, **empty})
    except ValidationError as error:
        from mnist_exp.compose import choices_with_key  # imports Hydra, which a correct configuration does not need

        raise UsageError("\n".join(explain_validation(error, tree, choices_with_key))) from error
    if problems := list(_contradictions(config)):
        raise UsageError("\n".join(problems))
    return config


# About a tenth of the training images, for messages.
_TENTH_OF_IMAGES = {"mnist_exp.data.mnist5k": 500, "mnist_exp.data.idx_folder": 5000, "mnist_exp.data.png_folder": 5000}


def check_logger(section: Mapping[str, Any] | None) -> Component | Wandb | None:
    """Check the logger's section alone.

    Raises:
        UsageError: one line for each mistake.
    """
    try:
        return _LOGGER.validate_python(section) if section else None
    except ValidationError as error:
        raise UsageError("\n".join(explain_validation(error, {"logger": section}, within=("logger",)))) from error


_LOGGER: TypeAdapter[Component | Wandb] = TypeAdapter(Logger)


def _contradictions(config: Config) -> Iterable[str]:
    """A line for each combination of values that is not possible although each value is allowed."""
    required = {"mnist_exp.data.idx_folder": ("root", "download"), "mnist_exp.data.png_folder": ("root",)}
    for key in required.get(config.data.target, ()):
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
        advice = f"hold some out: data.val_size={_TENTH_OF_IMAGES.get(config.data.target, 100)}"
        if (patience := config.regularization.early_stopping) is not None:
            yield f"regularization.early_stopping={patience} needs validation data; {advice}"
        if config.trainer.selection == "best":
            yield f"trainer.selection=best needs validation data; {advice}"
