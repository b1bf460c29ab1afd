"""Changes to a stored configuration when its run is resumed or evaluated. torch is not imported."""

from __future__ import annotations

import copy
import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.config import Component, Config, Data, OwnData, Wandb, check, check_logger
from mnist_exp.errors import UsageError, nearest, report
from mnist_exp.hashing import HASH_VERSION, config_hash, is_our_logger
from mnist_exp.runs.directory import resume_command
from mnist_exp.runs.files import refuse_links
from mnist_exp.runs.reading import read_config, read_metrics, read_overrides, read_record
from mnist_exp.runs.record import RunRecord, Status
from mnist_exp.runs.sweep import read_sweep
from mnist_exp.trust import logger_to_use

CHANGEABLE = ("data.root", "logger", "quiet", "show_layers", "trainer.epochs", "trust")
# Schedules whose learning rate does not depend on the number of epochs: such a run can be continued to more epochs.
OPEN_ENDED = {"mnist_exp.training.constant", "mnist_exp.training.step_decay"}


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides with Hydra's grammar.

    Raises:
        OverrideParseException: an override is malformed.
        UsageError: an override has several values, or deletes a key.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        if override.is_sweep_override():
            raise UsageError(f"{override.input_line} names several values; one is needed here")
        if override.is_delete():
            raise UsageError(f"{override.input_line}: nothing can be deleted here, only set")
    return parsed


def changed(tree: Mapping[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """A copy of a stored configuration with the values of the overrides.

    Raises:
        UsageError: it has no such key, or the value is an interpolation that cannot be resolved.
    """
    result = copy.deepcopy(dict(tree))
    for override in overrides:
        key = override.key_or_group
        *sections, last = key.split(".")
        node: Any = result
        for section in sections:
            node = node.get(section) if isinstance(node, Mapping) else None
        if not isinstance(node, dict) or last not in node:
            known = node if isinstance(node, dict) else ()
            raise UsageError(f"{key} is not a key of the stored configuration{nearest(last, known)}")
        try:
            # Resolved alone: the user's value may read the environment, but stored values must not be interpreted.
            value = OmegaConf.to_container(OmegaConf.create({"value": override.value()}), resolve=True)
        except OmegaConfBaseException as error:
            raise UsageError(f"{override.input_line}: {str(error).splitlines()[0]}") from error
        assert isinstance(value, dict)
        node[last] = value["value"]
    return result


def with_existing_folder(data: Data | OwnData) -> Data | OwnData:
    """The data in the folder ``MNIST_DIR``, if they are MNIST and the stored folder does not exist; else unchanged."""
    folder = os.environ.get("MNIST_DIR")
    if not folder or not data.folder or not isinstance(data, Data) or data.download != "MNIST":
        return data
    return (
        data if Path(data.folder).expanduser().is_dir() else data.in_folder(str(Path(folder).expanduser().absolute()))
    )


def describe_data(data: Data | OwnData) -> str:
    """Name and folder of the data, for messages: ``MNIST in /data/mnist``."""
    name = (isinstance(data, Data) and data.download) or data.target.rpartition(".")[2]
    return f"{name} in {data.folder}" if data.folder else name


def resumed(
    path: Path, overrides: Sequence[str], composed: DictConfig, record: RunRecord, config: Config
) -> tuple[dict[str, Any], Config]:
    """The changed record and configuration of a run that is resumed.

    Args:
        path: of the run.
        overrides: as typed, ``resume`` included.
        composed: ``conf/`` with these overrides; a logger that is chosen now is taken from it.
        record: ``run.json`` before.
        config: ``config.yaml`` before.

    Returns:
        fields of ``run.json`` that change, and the whole configuration.

    Raises:
        UsageError: an override would change what is computed, or nothing is left to train.
    """
    typed = [override for override in parse(overrides) if override.key_or_group != "resume"]
    for override in typed:
        key = override.key_or_group
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in CHANGEABLE):
            raise UsageError(
                f"{override.input_line} is not possible with resume, which can change {', '.join(CHANGEABLE)} only"
            )
    keys = {override.key_or_group for override in typed}
    if "logger" not in keys and config.logger is None and any(key.startswith("logger.") for key in keys):
        unused = next(override for override in typed if override.key_or_group.startswith("logger."))
        raise UsageError(f"{unused.input_line}: the run has no logger; choose one, too: logger=wandb")
    others = [override for override in typed if override.key_or_group.partition(".")[0] not in {"logger", "trust"}]
    logger, _ = _logger(config, composed, keys)
    result = check(changed(config.plain(), others))
    result = result.model_copy(update={"logger": logger, "callbacks": _callbacks(config, composed, keys)})
    if any(override.key_or_group == "data.root" for override in typed):
        result = result.with_absolute_paths(Path.cwd())
    else:
        result = result.with_data(with_existing_folder(result.data))
    return _continued(path, record, config, result), result


def _logger(config: Config, composed: DictConfig, typed: Collection[str]) -> tuple[Component | Wandb | None, list[str]]:
    """The logger of a resumed run, and the stored logger settings that are lost unless the user types them."""
    logger = OmegaConf.select(composed, "logger")
    present: Any = OmegaConf.to_container(logger, resolve=True) if logger else None
    return logger_to_use(config.logger, check_logger(present), typed)


def _callbacks(config: Config, composed: DictConfig, typed: Collection[str]) -> dict[str, Component]:
    """The callbacks of a resumed run: the stored ones; if a logger is chosen now, it replaces our stored loggers."""
    if "logger" not in typed:
        return config.callbacks
    own = {name: callback for name, callback in config.callbacks.items() if not is_our_logger(callback)}
    chosen: Any = OmegaConf.to_container(composed.callbacks, resolve=True) if composed.get("callbacks") else {}
    made = {str(name): Component.model_validate(node) for name, node in chosen.items() if "_target_" in node}
    return {**own, **{name: callback for name, callback in made.items() if is_our_logger(callback)}}


def check_runs_named(config: Config) -> None:
    """Check that the runs in ``init_from`` and ``distillation.teachers`` exist.

    Raises:
        UsageError: a directory holds no run.
    """
    for key, directories in (
        ("init_from", [config.init_from] if config.init_from else []),
        ("regularization.distillation.teachers", config.regularization.distillation.teachers),
    ):
        for directory in directories:
            try:
                read_record(Path(directory).expanduser())
            except UsageError as error:
                raise UsageError(f"{key}: {error}") from error


def check_resume(composed: DictConfig, overrides: Sequence[str]) -> None:
    """Check that the run of ``resume=DIR`` can be resumed with these overrides.

    Raises:
        UsageError: it cannot.
    """
    directory = composed.resume
    if not any(override.lstrip("+").startswith("resume=") for override in overrides):
        raise UsageError(
            f"resume={directory} is set by a configuration file, so that every run would resume this one; type it: "
            f"{resume_command(directory)}"
        )
    if not directory:
        raise UsageError("resume= needs a run directory: mnist-train resume=DIR")
    path = Path(directory)
    record = read_record(path)
    config = read_config(path)
    refuse_links(path)  # now, because Hydra opens its log there before the run begins
    resumed(path, overrides, composed, record, config)
    _, lost = _logger(config, composed, {override.key_or_group for override in parse(overrides)})
    if lost:
        more = [override for override in overrides if not override.lstrip("+").startswith("resume=")]
        report(
            UsageError(
                f"the logger settings of {path} are not used again; if you want the same, type "
                f"{resume_command(path, *more, *lost)}"
            )
        )


def _continued(path: Path, record: RunRecord, before: Config, after: Config) -> dict[str, Any]:
    """Fields of ``run.json`` that change with the number of epochs.

    Raises:
        UsageError: the run is completed or diverged, or cannot be continued to this number of epochs.
    """
    status = record.status
    old, new = before.trainer.epochs, after.trainer.epochs
    done = len(read_metrics(path))
    if status == Status.DIVERGED:
        raise UsageError(f"{path} holds a diverged run; there is nothing to resume, a new run needs other settings")
    if old == new:
        if status != Status.COMPLETED:
            return {}
        more = resume_command(path, f"trainer.epochs={2 * old}")
        also = f", {more} trains it further" if after.scheduler.target in OPEN_ENDED else ""
        raise UsageError(
            f"{path} holds a completed run; there is nothing to resume, {shlex.join(['mnist-eval', str(path)])} evaluates it{also}"
        )
    if after.scheduler.target not in OPEN_ENDED:
        name = after.scheduler.target.rpartition(".")[2]
        raise UsageError(
            f"{path}: with scheduler={name} every learning rate depends on the number of epochs, so {new} epochs are "
            f"another run from the start: {_command(path, record, new)}"
        )
    if new <= done:
        raise UsageError(f"{path} has {done} epochs already; trainer.epochs={new} is not more")
    if status == Status.COMPLETED and done < old:
        raise UsageError(
            f"{path} was ended by early stopping after {done} of {old} epochs; with more epochs it would end there, too"
        )
    if _is_job(path):
        raise UsageError(
            f"{path} is a job of a sweep that needs {old} epochs; continue a copy: "
            f"cp -r {shlex.quote(str(path))} NEW, then mnist-train resume=NEW trainer.epochs={new}"
        )
    history = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "epochs": {"from": old, "to": new},
        "config_hash": record.config_hash,
        **record.model_dump(include={"final", "best"}, exclude_unset=True),
    }
    continued = [*record.continued, history]
    hashed = {"config_hash": config_hash(after), "config_hash_version": HASH_VERSION}
    return {**hashed, "continued": continued, "final": None, "best": None}


def _command(path: Path, record: RunRecord, epochs: int) -> str:
    """The command for a new run with the same settings and another number of epochs."""
    try:
        typed = shlex.split(record.command or "")[1:]
    except ValueError:  # somebody else may have written it
        typed = []
    if record.sweep or not typed:
        typed = read_overrides(path)
    replaced = ("trainer.epochs=", "hydra.run.dir=", "hydra.sweep.dir=", "resume=")
    kept = [argument for argument in typed if not argument.lstrip("+").startswith(replaced)]
    return shlex.join(["mnist-train", *kept, f"trainer.epochs={epochs}"])


def _is_job(path: Path) -> bool:
    """Whether the run is listed in a ``sweep.json``."""
    path = path.absolute()
    if not (path.parent / "sweep.json").is_file():
        return False
    return any(job.directory == path.name for job in read_sweep(path.parent).jobs)
