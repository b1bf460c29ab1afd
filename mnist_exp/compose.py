"""Composing the configuration: where ``conf/`` lies, what can be chosen there, what it may interpolate.

Light on purpose: a mistyped key is answered with nothing imported but Hydra. What is taken from Hydra and OmegaConf that
they do not promise to keep is taken here, at the end, and nowhere else.
"""

from __future__ import annotations

import argparse
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mnist_exp.errors import UsageError, near_miss, same_ending

PACKAGE = Path(__file__).parent
# A checkout has conf/ beside the package; an installed wheel carries it inside.
CONF = PACKAGE.parent / "conf" if (PACKAGE.parent / "conf" / "train.yaml").is_file() else PACKAGE / "conf"

# Groups that may be empty: null, or taken away with ~GROUP. A run needs one of every other group.
OPTIONAL = ("logger", "callbacks", "experiment", "sweep")

OmegaConf.register_new_resolver("run_token", lambda: secrets.token_hex(3), use_cache=True, replace=True)


HELP = """\
mnist-train: train LeNet-5 variants and MLPs on MNIST.

  mnist-train                                            LeNet-5 on full MNIST
  mnist-train model=mlp regularization=dropout seed=3    swap a group, override a line
  mnist-train -m seed=0,1,2                              several runs
  mnist-train -m sweep=mlp_width                         a whole sweep; the same again finishes it
  mnist-train -m sweep.resume=DIR                        finish any sweep
  mnist-train resume=DIR                                 continue an interrupted run
  mnist-train --cfg job --resolve                        print the configuration, run nothing

mnist-eval DIR evaluates a finished run; mnist-report DIR... compares runs. --hydra-help explains Hydra's own flags.
"""


def first_comment(file: Path) -> str:
    """What a file of ``conf/`` says of itself: its first comment that is no directive to Hydra."""
    with file.open(encoding="utf-8") as lines:
        comments = (line.removeprefix("# ").rstrip() for line in lines if line.startswith("# "))
        return next((comment for comment in comments if not comment.startswith("@package")), "")


def help_text() -> str:
    """What ``--help`` prints: examples, every choice with the first comment of its file, and the root knobs.

    Hydra's own help reads and composes every file of ``conf/``, which takes longer the more presets there are.
    """
    groups: dict[str, list[str]] = {}
    for file in sorted(CONF.rglob("*.yaml")):
        group, _, choice = file.relative_to(CONF).with_suffix("").as_posix().partition("/")
        if group == "hydra":
            group, _, choice = f"hydra/{choice}".rpartition("/")
        if choice and not choice.startswith("common/"):
            groups.setdefault(group, []).append(f"  {f'{group}={choice}':34s} {first_comment(file)}")
    knobs = (CONF / "train.yaml").read_text(encoding="utf-8").partition("\n\n")[2].partition("\nhydra:")[0]
    sections = [HELP, "Choices (--cfg job prints the knobs of each)"]
    sections += ["\n".join(choices) for choices in groups.values()]
    sections += ["Knobs of the run itself", "\n".join(f"  {line}" for line in knobs.strip().splitlines())]
    return "\n\n".join(section.rstrip() for section in sections) + "\n"


def required_groups() -> list[str]:
    """The groups of ``conf/`` of which every run needs one choice."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in {*OPTIONAL, "hydra"})


def choices(group: str, folders: Sequence[Path] = (CONF,)) -> list[str]:
    """What a group can be: the files below its folders, those in folders of their own included."""
    files = [(folder / group, file) for folder in folders for file in (folder / group).rglob("*.yaml")]
    names = {file.relative_to(parent).with_suffix("").as_posix() for parent, file in files}
    return sorted(name for name in names if not name.startswith("common/"))


def groups(folders: Sequence[Path] = (CONF,)) -> list[str]:
    """All groups, Hydra's in ``conf/`` included."""
    found = {file.parent.relative_to(folder).as_posix() for folder in folders for file in folder.rglob("*.yaml")}
    outer = {name if name.startswith("hydra/") else name.partition("/")[0] for name in found - {"."}}
    return sorted(outer)


def choices_with_key(key: str, folders: Sequence[Path] = (CONF,)) -> str:
    """``; it is a key of GROUP=CHOICE``, for a key that only some choices of a group have, else nothing."""
    section, _, last = key.rpartition(".")
    found: dict[str, list[str]] = {}
    for group in [section] if section else required_groups():
        for choice in choices(group, folders):
            if any(last in content_of(folder / group / f"{choice}.yaml") for folder in folders):
                found.setdefault(group, []).append(choice)
    for group, names in found.items():
        return f"; {group}.{last} is a key of {group}={' and '.join(names)} only"
    return ""


def content_of(file: Path) -> dict[str, Any]:
    """A configuration file's own keys; none where it cannot be read."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def with_choices_checked(overrides: Sequence[str], folders: Sequence[Path] = (CONF,)) -> list[str]:
    """Overrides as Hydra takes them: it refuses null for a group, and has ``~GROUP`` for that.

    Raises:
        UsageError: a group is set to null that every run needs, or to something that is no name.
    """
    required, known = required_groups(), groups(folders)
    checked = []
    for override in overrides:
        key, separator, value = override.partition("=")
        group, word = key.lstrip("+~"), value.strip().lower()
        away = key.startswith("~") or word == "null"
        if group in required and away:
            raise UsageError(f"{override}: a run needs a {group}; choose from {', '.join(choices(group, folders))}")
        if group in OPTIONAL and separator and word == "null":
            checked.append(f"~{group}")
            continue
        if group in known and re.fullmatch(r"true|false|[-+]?\d+|[-+]?\d*\.\d*(e[-+]?\d+)?", word):
            raise UsageError(f"{override} is not a choice; choose from {', '.join(choices(group, folders))}")
        checked.append(override)
    return checked


def resolve(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain data, every interpolation replaced by its value.

    Raises:
        UsageError: a section or a mandatory value is missing, or an interpolation leads nowhere.
    """
    for group in required_groups():
        if OmegaConf.select(config, group, default=None) is None:
            raise UsageError(f"{group} is missing; a run needs one, choose from {', '.join(choices(group))}")
    try:
        tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or str(error).rsplit(": ", 1)[-1].splitlines()[0]
        raise UsageError(f"{key} is not set and has no default; type {key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise UsageError(explain_interpolation(error, OmegaConf.to_container(config, resolve=False))) from error
    assert isinstance(tree, dict)
    # One form of none, whether it was null, taken away or empty.
    none = {"logger": tree.get("logger") or None, "callbacks": tree.get("callbacks") or {}}
    return {str(key): value for key, value in {**tree, **none}.items()}


def explain_interpolation(error: OmegaConfBaseException, tree: Any) -> str:
    """Which key cannot have a value, and why."""
    text = str(error).splitlines()[0]
    if missing := re.search(r"Interpolation key '([^']+)' not found", text):
        near = same_ending(missing[1], tree) or near_miss(missing[1], tree)
        return f"{error.full_key}: there is no {missing[1]} to take its value from{near}"
    if "Recursive interpolation" in text:
        return f"{error.full_key}: its value leads back to itself; give it a value of its own"
    return f"{error.full_key}: {text}"


# The rest is about private parts of Hydra 1.3 and OmegaConf 2.3. tests/test_private_parts.py fails if they change.

# The launcher that runs one job after the other in this process, and the sweeper that tries every combination: Hydra has no
# other names for them.
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def hydra_flags() -> argparse.ArgumentParser:
    """The parser that ``hydra.main`` reads flags with: it has no public way to read them from elsewhere than ``sys.argv``."""
    from hydra._internal.utils import get_args_parser

    return get_args_parser()


def run_hydra_app(options: argparse.Namespace, task: Callable[[DictConfig], Any]) -> None:
    """What ``hydra.main`` does with options once they are read.

    Raises:
        Exception: what Hydra, a callback or ``task`` raised, if ``HYDRA_FULL_ERROR`` is set.
    """
    from hydra._internal.utils import _run_hydra

    _run_hydra(
        args=options,
        args_parser=hydra_flags(),
        task_function=task,
        config_path=options.config_path or str(CONF),
        config_name=options.config_name or "train",
    )


def composing_code() -> CodeType:
    """The function that Hydra composes in: it marks exceptions of other libraries in no way, only their frames tell."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    return ConfigLoaderImpl.load_configuration.__code__


def directory_part_of(overrides: Sequence[Override], config: DictConfig) -> str:
    """What ``hydra.job.override_dirname`` is for these overrides of a job."""
    from hydra._internal.config_loader_impl import get_overrides_dirname

    settings = config.hydra.job.config.override_dirname
    return get_overrides_dirname(
        overrides=list(overrides),
        kv_sep=settings.kv_sep,
        item_sep=settings.item_sep,
        exclude_keys=settings.exclude_keys,
    )


def empty_callbacks() -> Any:
    """The callbacks of a ``HydraContext`` that has none: there is no public class for it."""
    from hydra._internal.callbacks import Callbacks

    return Callbacks()


def root_of(node: Node) -> Any:
    """The whole configuration that a node is a part of: OmegaConf has no public way up."""
    return node._get_root()  # noqa: SLF001  # no public name, see above
