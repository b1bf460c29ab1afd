"""Claims files: what a report says about its networks, and how to train them. docs/audits.md describes the format."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mnist_exp.config import Section
from mnist_exp.errors import UsageError, explain_validation, nearest, printable
from mnist_exp.plain import load_yaml
from mnist_exp.reports.statistics import Interval
from mnist_exp.runs.files import LARGEST_TEXT, read_file

NUMBER = re.compile(r"(above|below|about)?\s*((\d*)\.?(\d*))\s*(%?)", re.ASCII)
NAME = re.compile(r"\w[\w.-]{0,79}", re.ASCII)
# Settings that an audit chooses, or that say how a run goes on and not what it computes.
NOT_OF_A_RECIPE = ("seed", "name", "resume", "init_from", "trust", "quiet", "show_layers", "logger", "callbacks")


@dataclass(frozen=True)
class Claimed:
    """A number as a report gives it.

    Attributes:
        text: with the report's digits and unit.
        interval: the values that a report would round to these digits, or that are above or below the number.
    """

    text: str
    interval: Interval


def _claimed(value: object) -> Claimed:
    """Read ``0.977``, ``97.7 %``, ``above 0.98`` or ``about 95 %``; "about" adds nothing to the rounding."""
    found = NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found or not found[2].strip("."):
        raise ValueError("should be a number with the digits of the report, such as 0.977, 97.7 % or above 0.98")
    word, text, _, decimals, percent = found.groups()
    unit = 100 if percent else 1
    number, half = float(text) / unit, 0.5 * 10 ** -len(decimals) / unit
    between = {"above": Interval(number, math.inf), "below": Interval(-math.inf, number)}
    return Claimed(" ".join(str(value).split()), between.get(word, Interval(number - half, number + half)))


def _fraction(value: Claimed) -> Claimed:
    """Check an accuracy or an error rate."""
    ends = [end for end in (value.interval.low, value.interval.high) if math.isfinite(end)]
    if min(ends) > 1:
        raise ValueError(f"should be a fraction, or have a percent sign: {value.text} %")
    return value


Number = Annotated[Claimed, BeforeValidator(_claimed)]
Fraction = Annotated[Number, AfterValidator(_fraction)]


def _words(value: object) -> list[str]:
    """The words of a recipe, as a shell would split them.

    Raises:
        ValueError: it sets what an audit sets itself, or is a sweep.
    """
    if not isinstance(value, str):
        raise ValueError("should be the settings as typed after mnist-train, such as model=mlp trainer.epochs=10")
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise ValueError(f"has a quote without a partner: {error}") from error
    for word in words:
        key, separator, _ = word.lstrip("+").partition("=")
        first = key.partition(".")[0]
        if word[:1] in {"-", "~"} or not separator:
            raise ValueError(f"holds {word}; only settings KEY=VALUE are allowed")
        if first in NOT_OF_A_RECIPE or first in {"hydra", "sweep"} or first.startswith("hydra/"):
            raise ValueError(f"sets {key}, which does not belong to a recipe; leave it out")
    return words


ALLOWED_NAME = "should be letters, digits and . _ - only, 80 at most"


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError(ALLOWED_NAME)
    return value


class Part(Section):
    """A part of a claims file. Its scalars are read as text, because 0.99 and 0.990 claim different digits."""

    model_config = ConfigDict(frozen=True, strict=False, extra="forbid", arbitrary_types_allowed=True)


class Results(Part):
    """What a report gives for one epoch: accuracies and errors are fractions or have a percent sign, losses are in nats."""

    train_loss: Number | None = None
    train_accuracy: Fraction | None = None
    train_error: Fraction | None = None
    test_loss: Number | None = None
    test_accuracy: Fraction | None = None
    test_error: Fraction | None = None

    def given(self) -> Iterator[tuple[str, Claimed]]:
        """Name and value of each number that is given."""
        return ((name, value) for name in type(self).model_fields if (value := getattr(self, name)) is not None)


Epoch = Annotated[int, Field(ge=1)]


class Model(Part):
    """What a report says about one network.

    Attributes:
        run: the recipe that is trained, as typed after ``mnist-train``.
        said: the recipe as the report describes it, where that differs or leaves something open.
        parameters: number of trainable parameters.
        final: results at the end of training. epochs: results after these epochs.
        note: for the reader of the audit.
    """

    run: Annotated[list[str], BeforeValidator(_words)]
    said: str = ""
    parameters: Annotated[int, Field(ge=1)] | None = None
    final: Results = Results()
    epochs: dict[Epoch, Results] = Field(default={})
    note: str = ""


class Claims(Part):
    """A claims file.

    Attributes:
        source: the report: author, title, where it can be read.
        recipe: the recipe that its networks share, as the report describes it.
        models: by name.
    """

    source: Annotated[str, Field(min_length=1)]
    recipe: str = ""
    models: Annotated[dict[Annotated[str, AfterValidator(_name)], Model], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_names(self) -> Claims:
        if repeated := [name for name, times in Counter(map(str.lower, self.models)).items() if times > 1]:
            raise ValueError(f"the names {repeated[0]} differ in capitals only, and each is the name of a folder")
        return self


@dataclass(frozen=True)
class Report:
    """A claims file that was read.

    Attributes:
        name: of the file, without suffix.
    """

    name: str
    path: Path
    claims: Claims


def read_claims(path: Path) -> Report:
    """Read a claims file.

    Raises:
        UsageError: it cannot be read, or a value is not possible; one line for each mistake.
    """
    if not NAME.fullmatch(path.stem):
        raise UsageError(f"{path}: the name of a claims file {ALLOWED_NAME}, because it is the name of a folder")
    try:
        content = read_file(path, LARGEST_TEXT)
        tree = load_yaml(content, texts_only=True)
        twice = _repeated_key(content)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"{path} cannot be read: {printable(reason)}") from error
    if twice:
        raise UsageError(f"{path}: {printable(twice)} is there twice")
    if not isinstance(tree, dict) or not {"source", "models"} <= tree.keys():
        raise UsageError(f"{path} is no claims file: it needs source and models; docs/audits.md describes it")
    try:
        claims = Claims.model_validate(tree)
    except ValidationError as error:
        keys = [key for part in (Claims, Model, Results) for key in part.model_fields]
        lines = (
            f"{path}: {printable(line)}"
            for line in explain_validation(error, tree, lambda key: nearest(key.rpartition(".")[2], keys))
        )
        raise UsageError("\n".join(lines)) from error
    return Report(path.stem, path, claims)


def _repeated_key(content: bytes) -> str | None:
    """A key that a mapping has twice, of which YAML would keep the last only.

    Raises:
        ValueError: there is a YAML alias, with which a short file can describe a huge tree.
    """
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, yaml.SafeLoader)):
        raise ValueError("it holds a YAML alias; write the values themselves")

    def visit(node: yaml.Node | None) -> Iterator[str]:
        if isinstance(node, yaml.MappingNode):
            keys = Counter(str(key.value) for key, _ in node.value)
            yield from (key for key, times in keys.items() if times > 1)
            for _, value in node.value:
                yield from visit(value)

    return next(visit(yaml.compose(content, yaml.SafeLoader)), None)


def find_claims(paths: Iterable[Path]) -> list[Report]:
    """Read these files, and all ``*.yaml`` in these folders.

    Raises:
        UsageError: a path does not exist, a folder has no file, two files have the same name, or a file is not valid.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        if not found:
            raise UsageError(f"{path} holds no claims file; expected files that end in .yaml")
        files += found
    reports = _read_all(list(dict.fromkeys(files)))
    for name, times in Counter(report.name for report in reports).items():
        if times > 1:
            same = ", ".join(str(report.path) for report in reports if report.name == name)
            raise UsageError(f"{same}: the names of claims files must differ, because each is the name of a folder")
    return reports


def _read_all(files: Sequence[Path]) -> list[Report]:
    reports, mistakes = [], []
    for file in files:
        try:
            reports.append(read_claims(file))
        except UsageError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UsageError("\n".join(mistakes))
    return reports


def value_of(quantity: str, row: dict[str, Any]) -> float | None:
    """A quantity of ``Results`` in a row of metrics; None if the row does not have it."""
    if quantity.endswith("_error"):
        accuracy = row.get(quantity.replace("_error", "_accuracy"))
        return None if accuracy is None else 1 - float(accuracy)
    value = row.get(quantity)
    return None if value is None else float(value)
